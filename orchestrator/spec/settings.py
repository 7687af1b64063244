"""The settings of a trial by dotted name, and the settings that a search may vary."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, get_args, get_type_hints

from orchestrator.errors import SweepSpecError
from orchestrator.spec.complaint import require, unknown
from trainables.base.stored import StoredForm, settle_form, stored_form
from trainables.errors import BaseModelError, SpecError
from trainables.memory_settings import MEMORY_NAMES
from trainables.spec import (
    BaseSpec,
    DataSpec,
    EvalSpec,
    LoraSpec,
    OptimSpec,
    TrialSpec,
)

ALPHA_PER_RANK = "lora.alpha_per_rank"
"""A knob that is not a setting: `lora.alpha` is `lora.rank` multiplied by its value."""

MAX_SEED = 2**32 - 1

_SECTIONS = {
    "base": BaseSpec,
    "lora": LoraSpec,
    "optim": OptimSpec,
    "data": DataSpec,
    "eval": EvalSpec,
}
_COMPARABLE = "results are comparable only on the same data with the same evaluation"
_NO_RESULT = "it decides memory and time, not a result"
_HORIZON = "trials are compared at equal steps of one horizon"

SETTINGS: dict[str, Any] = {
    f"{section}.{field.name}": get_type_hints(kind)[field.name]
    for section, kind in _SECTIONS.items()
    for field in dataclasses.fields(kind)
} | {"seed": int}
"""Every setting of a trial, with its type."""


def why_fixed(name: str) -> str:
    """Reason to refuse a setting in a space; empty for an allowed setting."""
    if name == "optim.steps":
        return _HORIZON
    if name in MEMORY_NAMES:
        return _NO_RESULT
    # data.train_max_tokens cuts training rows only: evaluations stay comparable.
    is_measured = name.startswith(("data.", "eval.")) or name in ("data", "eval")
    return _COMPARABLE if is_measured and name != "data.train_max_tokens" else ""


KNOBS: dict[str, Any] = {name: hint for name, hint in SETTINGS.items() if not why_fixed(name)} | {
    ALPHA_PER_RANK: float
}
"""Every name that a space may have, with its type."""

NUMBERS = tuple(
    name for name, hint in SETTINGS.items() if {int, float} & set(get_args(hint) or (hint,))
)
"""The numeric settings, for expressions."""


def require_knob(name: object) -> str:
    """The name, checked to be valid in a space.

    Raises:
        SweepSpecError: The name is not a setting, or the setting cannot be searched.
    """
    require(
        isinstance(name, str), "space", name, "dotted settings", "Write a name such as lora.rank."
    )
    word = str(name)
    reason = why_fixed(word)
    if reason:
        raise SweepSpecError(
            f"space.{word}: cannot be searched, as {reason}. Set {word} outside of `space`."
        )
    if word not in KNOBS:
        raise unknown("space", word, KNOBS)
    return word


class Sections(Protocol):
    """Sections that a sweep and a trial have in common."""

    @property
    def base(self) -> BaseSpec: ...  # noqa: D102
    @property
    def lora(self) -> LoraSpec: ...  # noqa: D102
    @property
    def optim(self) -> OptimSpec: ...  # noqa: D102
    @property
    def data(self) -> DataSpec: ...  # noqa: D102
    @property
    def eval(self) -> EvalSpec: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class FixedSettings:
    """A sweep's fixed settings for all trials; only types are checked."""

    base: BaseSpec
    lora: LoraSpec
    optim: OptimSpec
    data: DataSpec
    eval: EvalSpec
    seed: int


def without_rows(sections: Sections) -> FixedSettings:
    """The same settings, with a name in place of rows in memory."""
    names: dict[str, Any] = {
        split: f"rows of {split}"
        for split in ("train", "validation", "test")
        if not isinstance(getattr(sections.data, split), str | None)
    }
    return FixedSettings(
        base=sections.base,
        lora=sections.lora,
        optim=sections.optim,
        data=dataclasses.replace(sections.data, **names) if names else sections.data,
        eval=sections.eval,
        seed=sections.seed,
    )


def flatten(sections: Sections) -> dict[str, Any]:
    """Settings by dotted name; layer names are a sorted list, as in a space."""
    values = {
        f"{section}.{field.name}": getattr(getattr(sections, section), field.name)
        for section, kind in _SECTIONS.items()
        for field in dataclasses.fields(kind)
    }
    targets = sections.lora.targets
    layers = targets if isinstance(targets, str) else sorted(set(targets))
    return values | {"lora.targets": layers, "seed": sections.seed}


def changed_sections(sections: Sections, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changed sections, and the seed if changed, by name.

    Raises:
        SweepSpecError: A changed section is not valid.
    """
    fields: dict[str, dict[str, Any]] = {}
    changed: dict[str, Any] = {}
    for name, value in changes.items():
        if name == ALPHA_PER_RANK:
            continue
        section, _, field = name.partition(".")
        if field:
            plain = tuple(value) if isinstance(value, list) else value
            fields.setdefault(section, {})[field] = plain
        else:
            require(
                0 <= value <= MAX_SEED,
                name,
                value,
                f"0 to {MAX_SEED}",
                "Use a seed in that range.",
            )
            changed[name] = value
    try:
        for section, values in fields.items():
            # Rows in memory are not hashable.
            replace = _replace if section == "data" else _replace_once
            changed[section] = replace(getattr(sections, section), tuple(values.items()))
    except SpecError as error:
        raise SweepSpecError(str(error)) from error
    return changed


def _replace(section: Any, fields: tuple[tuple[str, Any], ...]) -> Any:
    return dataclasses.replace(section, **dict(fields))


_replace_once = lru_cache(maxsize=4096)(_replace)
"""The configurations of a listed space have few different sections; checking one takes 10 us."""


def assemble(sections: Sections, changes: Mapping[str, Any]) -> TrialSpec:
    """The trial with the fixed settings and some changes.

    For a base with quantized files, `base.double_quant` is taken from the files.

    Raises:
        SweepSpecError: The settings are not valid together.
    """
    changed = changed_sections(sections, changes)
    parts = {name: changed.get(name, getattr(sections, name)) for name in (*_SECTIONS, "seed")}
    parts["base"] = settled_base(parts["base"], changes.get("base.double_quant"))
    try:
        return TrialSpec(**parts)
    except SpecError as error:
        raise SweepSpecError(str(error)) from error


def settled_base(base: BaseSpec, double_quant: bool | None = None) -> BaseSpec:
    """The base, with the stored form of quantized files.

    Args:
        base: Base with the requested form.
        double_quant: Value from the search; `None` if `base.double_quant` is not searched.

    Raises:
        SweepSpecError: The files have a form that was not requested or cannot be trained on.
    """
    try:
        settled = settle_form(base, form_of_files(base))
    except SpecError as error:
        raise SweepSpecError(str(error)) from error
    require(
        double_quant is None or double_quant == settled.double_quant,
        "base.double_quant",
        double_quant,
        f"{str(settled.double_quant).lower()} for {base.model!r}, whose own files are quantized",
        "Take it out of `space`, or name the original, unquantized weights in base.model.",
    )
    return settled


def form_of_files(base: BaseSpec) -> StoredForm | None:
    """The stored form of a base's quantized files; `None` for plain or unknown files.

    Raises:
        SweepSpecError: The files are quantized in a form that cannot be trained on.
    """
    try:
        return stored_form(base)
    except BaseModelError as error:
        raise SweepSpecError(str(error)) from error
