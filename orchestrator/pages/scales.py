"""Scales of charts: where a value lies on an axis, and the axis's ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.report.columns import format_cell
from orchestrator.report.plots import is_number, is_wide

_FEW = 6
"""Numbers with at most this many distinct values are drawn at equal distances."""
_TICKS = 5
_PAD = 0.05
"""Share of an axis that stays free at both ends, so that no mark is cut."""
_MOST_PLACES, _THOUSAND = 5, 1000
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


class Tick(NamedTuple):
    """A tick of an axis, at a share of its length."""

    share: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis of numbers or of words.

    Attributes:
        low: The number at share 0.
        high: The number at share 1.
        is_log: Whether equal distances are equal ratios.
        is_whole: Whether ticks are whole numbers, such as those of steps.
        words: Texts at equal distances in place of numbers; empty for an axis of numbers.
    """

    low: float = 0.0
    high: float = 1.0
    is_log: bool = False
    is_whole: bool = False
    words: tuple[str, ...] = ()

    def share(self, value: Any) -> float:
        """The place of a value on the axis, from 0 to 1."""
        if self.words:
            return (self.words.index(format_cell(value)) + 0.5) / len(self.words)
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (float(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[Tick]:
        """Ticks at all words, or at about five round numbers."""
        if self.words:
            return [Tick((n + 0.5) / len(self.words), word) for n, word in enumerate(self.words)]
        if self.is_log:
            values = _log_ticks(self.low, self.high)
            return [Tick(self.share(value), format_tick(value)) for value in values]
        least = 1.0 if self.is_whole else 0.0
        ticks = _ticks(self.low, self.high, least)
        return [Tick(self.share(value), text) for value, text in ticks]


def scale_of(
    values: Iterable[Any], *, is_setting: bool = False, holds: Sequence[float] = ()
) -> Scale:
    """A scale that holds all values.

    Args:
        values: Numbers, or values of a setting.
        is_setting: Whether few numbers are drawn as words, at equal distances.
        holds: Further numbers that the scale must hold, such as 0.
    """
    known = list(values)
    distinct = set(map(str, known))
    are_numbers = all(map(is_number, known))
    if not are_numbers or (is_setting and len(distinct) <= _FEW):
        ordered = sorted(known) if are_numbers else sorted(known, key=format_cell)
        return Scale(words=tuple(dict.fromkeys(map(format_cell, ordered))))
    numbers = [*map(float, known), *holds] or [0.0, 1.0]
    low, high = min(numbers), max(numbers)
    if is_wide(numbers):
        room = (high / low) ** _PAD
        return Scale(low=low / room, high=high * room, is_log=True)
    gap = (high - low) * _PAD or abs(high) * _PAD or 1.0
    is_whole = bool(known) and all(isinstance(value, int) for value in known)
    low = low if low == 0.0 and holds else low - gap
    return Scale(low=low, high=high + gap, is_whole=is_whole)


def format_tick(value: float) -> str:
    """A number in few characters: `0.25`, `1e-4`, `230k`."""
    for unit, letter in _UNITS:
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return format_cell(float(value))


def _ticks(low: float, high: float, least: float) -> list[tuple[float, str]]:
    """Round numbers, at least `least` apart, with equally many digits after the point."""
    rough = max(0.7 * (high - low) / _TICKS, least)
    power = math.floor(math.log10(rough))
    step = next(n * 10.0**power for n in (1, 2, 5, 10) if n * 10.0**power >= rough)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    values = [n * step for n in range(first, last + 1)]
    if places > _MOST_PLACES or step >= _THOUSAND:
        return [(value, format_tick(value)) for value in values]
    return [(value, f"{value:.{places}f}") for value in values]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps: tuple[int, ...] = (1, 2, 5) if len(powers) <= _TICKS - 2 else (1,)
    if len(powers) == _TICKS - 1:
        steps = (1, 3)
    every = math.ceil(len(powers) / (2 * _TICKS))
    found = [step * 10.0**power for power in powers[::every] for step in steps]
    return [value for value in found if low <= value <= high]
