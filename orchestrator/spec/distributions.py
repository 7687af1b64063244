"""Distributions of a knob: their form in a sweep file, and their values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import TypeAdapter, ValidationError

from orchestrator.spec.complaint import READ_AS_BOOL, complaint, nearest, require, translate

KINDS = ("choice", "uniform", "log_uniform", "int", "log_int")
FORMS = (*KINDS, "tied")
"""Forms of a knob that is not a constant."""

_MAX_TRIED = 4096
"""Largest range of whole numbers of which all values are checked when a sweep is parsed."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A choice of one of a few unordered values."""

    values: tuple[Any, ...]

    @property
    def size(self) -> int | None:
        """Number of values."""
        return len(self.values)

    @property
    def allowed(self) -> str:
        """The values, for messages."""
        return ", ".join(map(str, self.values))

    def holds(self, value: Any) -> bool:
        """Whether a value belongs to the distribution."""
        return value in self.values

    def build(self) -> CategoricalDistribution:
        """Optuna's distribution of the values."""
        return CategoricalDistribution([encode_value(value) for value in self.values])

    def decode(self, category: Any) -> Any:
        """The value of Optuna's category."""
        return next(value for value in self.values if encode_value(value) == category)

    def listed(self) -> Iterable[Any]:
        """Every value."""
        return self.values

    def samples(self) -> Iterable[Any]:
        """Values to check: each must be possible in a trial."""
        return self.values


@dataclass(frozen=True, kw_only=True)
class Range:
    """A number between two bounds, both included."""

    low: float
    high: float
    is_log: bool
    is_whole: bool
    is_float: bool
    """The type of the setting is float, even if only whole values are drawn."""

    @property
    def size(self) -> int | None:
        """Number of values; `None` for infinitely many."""
        return int(self.high - self.low) + 1 if self.is_whole else None

    @property
    def allowed(self) -> str:
        """The values, for messages."""
        return f"{'whole numbers ' if self.is_whole else ''}{self.low:g} to {self.high:g}"

    def holds(self, value: Any) -> bool:
        """Whether a value belongs to the distribution."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and (not self.is_whole or float(value).is_integer())

    def build(self) -> BaseDistribution:
        """Optuna's distribution of the range."""
        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high), log=self.is_log)
        return FloatDistribution(self.low, self.high, log=self.is_log)

    def decode(self, number: float) -> float:
        """The value of the setting for a number that Optuna drew."""
        return float(number) if self.is_float else number

    def listed(self) -> Iterable[Any]:
        """Every value of a range of whole numbers."""
        return map(self.decode, range(int(self.low), int(self.high) + 1))

    def samples(self) -> Iterable[Any]:
        """Values to check: the bounds, and all values of a short range of whole numbers."""
        size = self.size
        bounds = (self.decode(self.low), self.decode(self.high))
        return bounds if size is None or size > _MAX_TRIED else (*bounds, *self.listed())


Distribution = Choice | Range


def parse_distribution(where: str, written: object, hint: Any) -> Distribution:
    """Parse a distribution and check it against the type of the setting.

    Args:
        where: Dotted name for messages, such as `space.lora.rank`.
        written: Value in the sweep file.
        hint: Type of the setting.

    Raises:
        SweepSpecError: The value is not a distribution, or not valid for the setting.
    """
    if not isinstance(written, Mapping) or len(written) != 1:
        raise complaint(
            where,
            written,
            f"a constant, or one distribution: {', '.join(FORMS)}",
            "Write it as {choice: [a, b]} or {log_uniform: [low, high]}.",
        )
    kind, values = next(iter(written.items()))
    if kind not in KINDS:
        meant = nearest(str(kind), FORMS)
        raise complaint(where, kind, ", ".join(FORMS), "Choose one of these.", meant)
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise complaint(where, values, f"a list of values for {kind}", "Write it in brackets.")
    if kind == "choice":
        return _parse_choice(where, values, hint)
    return _parse_range(where, kind, values, hint)


def parse_value(where: str, written: object, hint: Any) -> Any:
    """The value in the setting's type: `"1e-4"` becomes a number, layer names a sorted list.

    Raises:
        SweepSpecError: The value is not of this type.
    """
    takes = set(get_args(hint) or (hint,))
    require(
        not isinstance(written, bool) or bool in takes,
        where,
        written,
        "a value other than true and false",
        f"{READ_AS_BOOL}: give another value, or quote the word.",
    )
    try:
        value = _adapter(hint).validate_python(written)
    except ValidationError as error:
        raise translate(error, hint, where) from error
    # The order of layer names has no meaning: sorting makes equal choices equal.
    return sorted(set(value)) if isinstance(value, tuple) else value


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def encode_value(value: Any) -> Any:
    """The value as Optuna's category: a list becomes JSON, as categories must be primitive."""
    return json.dumps(value) if isinstance(value, list) else value


def _parse_choice(where: str, written: Sequence[Any], hint: Any) -> Choice:
    values = tuple(parse_value(where, value, hint) for value in written)
    for i, value in enumerate(values):
        require(
            value not in values[:i],
            where,
            written[i],
            "each choice once",
            "Remove the repeated one.",
        )
    return Choice(values=values)


def _parse_range(where: str, kind: str, written: Sequence[Any], hint: Any) -> Range:
    takes = set(get_args(hint) or (hint,))
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
        "This setting takes whole numbers only." if allowed else "This setting has no range.",
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
    # PyYAML reads 1e-4 as a string; only 1.0e-4 is a float.
    try:
        number = math.nan if isinstance(written, bool) else float(written)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    require(math.isfinite(number), where, written, "a finite number", "Correct the bound.")
    require(
        not is_whole or number.is_integer(), where, written, "a whole number", "Round the bound."
    )
    return int(number) if is_whole else number
