"""The search space of a sweep: which values of which settings trials may try.

A knob is a dotted setting of a trial (`lora.rank`); its distribution is written in the sweep file:

    lora.rank: {choice: [4, 8, 16]}
    optim.learning_rate: {log_uniform: [3.0e-4, 5.0e-3]}
    lora.dropout: {uniform: [0.0, 0.1]}
    lora.rank: {int: [4, 32]}          # or log_int

Knobs become Optuna parameters of the same name (lists are JSON there, as Optuna's categories are
primitive) and, put into a sweep's fixed settings, a `TrialSpec`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from optuna.distributions import BaseDistribution

from orchestrator.complaint import require, unknown
from orchestrator.distributions import Distribution, encode_value, parse_distribution
from orchestrator.errors import SweepSpecError
from trainables.errors import SpecError
from trainables.spec import BaseSpec, LoraSpec, OptimSpec, TrialSpec

if TYPE_CHECKING:
    from orchestrator.spec import SweepSpec

ALPHA_PER_RANK = "lora.alpha_per_rank"
"""A knob that is no setting: `lora.alpha` is this times `lora.rank`."""

_FIXED = {
    "optim.steps": "trials are compared at equal steps of one horizon",
    "seed": "trials share the seed, so that they differ by their settings only",
}
"""Settings that a space may not hold, with why; so are all of `data` and `eval`."""


def _field_types() -> dict[str, Any]:
    sections = {"base": BaseSpec, "lora": LoraSpec, "optim": OptimSpec}
    hints = {
        f"{section}.{field.name}": get_type_hints(kind)[field.name]
        for section, kind in sections.items()
        for field in dataclasses.fields(kind)
    }
    return {name: hint for name, hint in hints.items() if name not in _FIXED} | {
        ALPHA_PER_RANK: float
    }


MAX_LISTED = 100_000
"""Largest space whose configurations are listed one by one."""

KNOBS: dict[str, Any] = _field_types()
"""Every setting a space may hold, with its type."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Knobs and their distributions, checked."""

    knobs: Mapping[str, Distribution]

    @property
    def size(self) -> int | None:
        """How many configurations there are; `None` for infinitely many."""
        sizes = [distribution.size for distribution in self.knobs.values()]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def distributions(self) -> dict[str, BaseDistribution]:
        """What `optuna.Study.ask` and `optuna.trial.create_trial` take."""
        return {name: distribution.build() for name, distribution in self.knobs.items()}

    def decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Knobs of a trial from the parameters Optuna drew."""
        return {name: knob.decode(params[name]) for name, knob in self.knobs.items()}

    def encode(self, knobs: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters from the knobs of a trial."""
        return {name: encode_value(knobs[name]) for name in self.knobs}

    def configurations(self) -> Iterator[dict[str, Any]]:
        """Every configuration of a finite space, in the order of the sweep file."""
        for values in itertools.product(*(knob.listed() for knob in self.knobs.values())):
            yield dict(zip(self.knobs, values, strict=True))


def parse_space(mapping: Mapping[str, Any], spec: SweepSpec) -> SearchSpace:
    """Check a space as written against the settings it varies.

    Every choice and every bound is tried in a `TrialSpec` here, before anything is started.

    Raises:
        SweepSpecError: A knob, a distribution or a value is impossible.
    """
    for name in mapping:
        _check_knob(name)
    require(
        not {"lora.alpha", ALPHA_PER_RANK} <= mapping.keys(),
        f"space.{ALPHA_PER_RANK}",
        mapping.get(ALPHA_PER_RANK),
        "one of lora.alpha and lora.alpha_per_rank",
        "Remove one of the two knobs.",
    )
    space = SearchSpace(
        knobs={
            name: parse_distribution(f"space.{name}", written, KNOBS[name])
            for name, written in mapping.items()
        }
    )
    _try_values(space, spec)
    return space


def build_trial(spec: SweepSpec, config: Mapping[str, Any]) -> TrialSpec:
    """The trial that a sweep's fixed settings and these knobs describe.

    Raises:
        SweepSpecError: The knobs do not go together.
    """
    changes: dict[str, dict[str, Any]] = {"base": {}, "lora": {}, "optim": {}}
    for name, value in config.items():
        section, _, field = name.partition(".")
        changes[section][field] = tuple(value) if isinstance(value, list) else value
    lora = changes["lora"]
    per_rank = lora.pop("alpha_per_rank", None)
    if per_rank is not None:
        lora["alpha"] = float(per_rank * lora.get("rank", spec.lora.rank))
    try:
        return TrialSpec(
            base=dataclasses.replace(spec.base, **changes["base"]),
            lora=dataclasses.replace(spec.lora, **lora),
            optim=dataclasses.replace(spec.optim, **changes["optim"]),
            data=spec.data,
            eval=spec.eval,
            seed=spec.seed,
        )
    except SpecError as error:
        raise SweepSpecError(str(error)) from error


def describe(trial: TrialSpec) -> dict[str, Any]:
    """Flat hyperparameters of a trial under readable names, for tables and tracking."""
    names = {"base.model": "base", "base.revision": "revision"}
    flat: dict[str, Any] = {}
    for section in ("base", "lora", "optim"):
        for field, value in dataclasses.asdict(getattr(trial, section)).items():
            name = f"{section}.{field}"
            short = field if section == "base" else name
            flat[names.get(name, short)] = "+".join(value) if isinstance(value, tuple) else value
    return flat | {"data.max_tokens": trial.data.max_tokens, "seed": trial.seed}


def searched_names(space: SearchSpace) -> list[str]:
    """The names among those of `describe` that differ between trials of this space."""
    names = {"base.model": "base", "base.revision": "revision", ALPHA_PER_RANK: "lora.alpha"}
    return [names.get(knob, knob.removeprefix("base.")) for knob in space.knobs]


def _check_knob(name: object) -> None:
    require(
        isinstance(name, str), "space", name, "dotted settings", "Write a name such as lora.rank."
    )
    word = str(name)
    section = word.partition(".")[0]
    reason = _FIXED.get(word)
    if section in ("data", "eval"):
        reason = "results are only comparable on the same data, measured the same way"
    if reason is not None:
        raise SweepSpecError(
            f"space.{word}: cannot be searched, as {reason}. Set {word} outside of `space`."
        )
    if word not in KNOBS:
        raise unknown("space", word, KNOBS)


def _try_values(space: SearchSpace, spec: SweepSpec) -> None:
    """Build a trial with each value of each knob, and with each pair of coupled values."""
    coupled = [
        name for name in ("optim.batch_size", "optim.micro_batch_size") if name in space.knobs
    ]
    groups = [[name] for name in space.knobs if name not in coupled] + [coupled]
    for group in groups:
        for values in itertools.product(*(space.knobs[name].samples() for name in group)):
            config = dict(zip(group, values, strict=True))
            try:
                build_trial(spec, config)
            except SweepSpecError as error:
                text = str(error)
                if any(text.startswith(f"{name}:") for name in config):
                    raise SweepSpecError(f"space.{text}") from error
                shown = ", ".join(f"{name} {value!r}" for name, value in config.items())
                raise SweepSpecError(f"space.{group[0]}: with {shown}: {text}") from error
