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
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import TypeAdapter, ValidationError

from orchestrator.complaint import complaint, nearest, require, translate, unknown
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

_MAX_TRIED = 4096
"""Whole numbers of one range that are all tried when a sweep is parsed."""

KNOBS: dict[str, Any] = _field_types()
"""Every setting a space may hold, with its type."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of a few values, without order."""

    values: tuple[Any, ...]

    def build(self) -> CategoricalDistribution:
        """The same for Optuna."""
        return CategoricalDistribution([_category(value) for value in self.values])

    def decode(self, category: Any) -> Any:
        """The value behind one of Optuna's categories."""
        return next(value for value in self.values if _category(value) == category)


@dataclass(frozen=True, kw_only=True)
class Range:
    """A number between two bounds, both included."""

    low: float
    high: float
    is_log: bool
    is_whole: bool
    is_float: bool
    """The setting is a float, even where only whole values are drawn."""

    def build(self) -> BaseDistribution:
        """The same for Optuna."""
        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high), log=self.is_log)
        return FloatDistribution(self.low, self.high, log=self.is_log)

    def decode(self, number: float) -> float:
        """The value behind what Optuna drew."""
        return float(number) if self.is_float else number


Distribution = Choice | Range


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Knobs and their distributions, checked."""

    knobs: Mapping[str, Distribution]

    @property
    def size(self) -> int | None:
        """How many configurations there are; `None` for infinitely many."""
        sizes = [_size(distribution) for distribution in self.knobs.values()]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def distributions(self) -> dict[str, BaseDistribution]:
        """What `optuna.Study.ask` and `optuna.trial.create_trial` take."""
        return {name: distribution.build() for name, distribution in self.knobs.items()}

    def decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Knobs of a trial from the parameters Optuna drew."""
        return {name: knob.decode(params[name]) for name, knob in self.knobs.items()}

    def encode(self, knobs: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters from the knobs of a trial."""
        return {name: _category(knobs[name]) for name in self.knobs}

    def configurations(self) -> Iterator[dict[str, Any]]:
        """Every configuration of a finite space, in the order of the sweep file."""
        for values in itertools.product(*map(_values, self.knobs.values())):
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
        knobs={name: _parse_distribution(name, written) for name, written in mapping.items()}
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


def _parse_distribution(name: str, written: object) -> Distribution:
    where = f"space.{name}"
    kinds = ("choice", "uniform", "log_uniform", "int", "log_int")
    if not isinstance(written, Mapping) or len(written) != 1:
        raise complaint(
            where,
            written,
            f"one distribution: {', '.join(kinds)}",
            "Write it as {choice: [a, b]} or {log_uniform: [low, high]}.",
        )
    kind, values = next(iter(written.items()))
    if kind not in kinds:
        near = nearest(str(kind), kinds)
        remedy = f"Did you mean {near}?" if near else "Choose one of these."
        raise complaint(where, kind, ", ".join(kinds), remedy)
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise complaint(where, values, f"a list of values for {kind}", "Write it in brackets.")
    if kind == "choice":
        return _parse_choice(name, values)
    return _parse_range(name, kind, values)


def _parse_choice(name: str, written: Sequence[Any]) -> Choice:
    values = tuple(_coerce(name, value) for value in written)
    for i, value in enumerate(values):
        require(
            value not in values[:i],
            f"space.{name}",
            written[i],
            "each choice once",
            "Remove the repeated one.",
        )
    return Choice(values=values)


def _parse_range(name: str, kind: str, written: Sequence[Any]) -> Range:
    where = f"space.{name}"
    takes = set(get_args(KNOBS[name]) or (KNOBS[name],))
    allowed = (
        ("uniform", "log_uniform", "int", "log_int")
        if float in takes
        else (("int", "log_int") if int in takes else ())
    )
    require(
        kind in allowed,
        where,
        kind,
        ", ".join(("choice", *allowed)),
        "This setting has no values in between." if allowed else "This setting has no range.",
    )
    require(len(written) == 2, where, written, "[low, high]", "Give two bounds.")
    is_whole, is_log = kind.endswith("int"), kind.startswith("log")
    low, high = (_bound(where, bound, is_whole) for bound in written)
    require(low < high, where, list(written), "low < high", "Swap or widen the bounds.")
    require(
        not is_log or low > 0, where, low, f"a low bound > 0 for {kind}", "Raise it above zero."
    )
    return Range(low=low, high=high, is_log=is_log, is_whole=is_whole, is_float=float in takes)


def _bound(where: str, written: object, is_whole: bool) -> float:
    # PyYAML reads 1e-4 as a string; a float wants 1.0e-4 there.
    try:
        number = math.nan if isinstance(written, bool) else float(written)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    require(math.isfinite(number), where, written, "a finite number", "Correct the bound.")
    require(
        not is_whole or number.is_integer(), where, written, "a whole number", "Round the bound."
    )
    return int(number) if is_whole else number


def _coerce(name: str, written: object) -> Any:
    """The value as the setting's type, so that `"1e-4"` is a number; names become a list."""
    hint = KNOBS[name]
    where = f"space.{name}"
    takes = set(get_args(hint) or (hint,))
    require(
        not isinstance(written, bool) or bool in takes,
        where,
        written,
        "no yes/no value",
        "Give a number, or quote the word.",
    )
    try:
        value = TypeAdapter(hint).validate_python(written)
    except ValidationError as error:
        raise translate(error, hint, where) from error
    # The order of layer names means nothing: one order makes equal choices equal.
    return sorted(set(value)) if isinstance(value, tuple) else value


def _try_values(space: SearchSpace, spec: SweepSpec) -> None:
    """Build a trial with each value of each knob, and with each pair of coupled values."""
    coupled = [
        name for name in ("optim.batch_size", "optim.micro_batch_size") if name in space.knobs
    ]
    groups = [[name] for name in space.knobs if name not in coupled] + [coupled]
    for group in groups:
        for values in itertools.product(*(_samples(space.knobs[name]) for name in group)):
            config = dict(zip(group, values, strict=True))
            try:
                build_trial(spec, config)
            except SweepSpecError as error:
                text = str(error)
                if any(text.startswith(f"{name}:") for name in config):
                    raise SweepSpecError(f"space.{text}") from error
                shown = ", ".join(f"{name} {value!r}" for name, value in config.items())
                raise SweepSpecError(f"space.{group[0]}: with {shown}: {text}") from error


def _samples(distribution: Distribution) -> tuple[Any, ...]:
    """The values to try: all of a few, the bounds of many."""
    if isinstance(distribution, Choice):
        return distribution.values
    low, high = distribution.low, distribution.high
    is_short = distribution.is_whole and high - low < _MAX_TRIED
    inner = range(int(low) + 1, int(high)) if is_short else ()
    return tuple(map(distribution.decode, (low, high, *inner)))


def _size(distribution: Distribution) -> int | None:
    if isinstance(distribution, Choice):
        return len(distribution.values)
    return int(distribution.high - distribution.low) + 1 if distribution.is_whole else None


def _values(distribution: Distribution) -> Sequence[Any]:
    if isinstance(distribution, Choice):
        return distribution.values
    whole = range(int(distribution.low), int(distribution.high) + 1)
    return [distribution.decode(number) for number in whole]


def _category(value: Any) -> Any:
    """Optuna's categories are primitive: a list is its JSON."""
    return json.dumps(value) if isinstance(value, list) else value
