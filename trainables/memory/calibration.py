"""Correction of a forecast by the bytes that a host measured, and both side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trainables.memory.forecast import Forecast

MOST_FACTOR = 2.0
"""Bound of a correction, up and down: beyond, the measurement is of something else."""


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What was learnt from a measurement.

    Attributes:
        base: Bytes that the base takes beyond its forecast.
        factor: Measured bytes of a pass over its forecast, at most `MOST_FACTOR` and at least its
            inverse.
    """

    base: int = 0
    factor: float = 1.0

    def total(self, forecast: Forecast) -> int:
        """All bytes of a host, corrected."""
        return forecast.total + self.base + round((self.factor - 1) * forecast.passing)


NO_CORRECTION = Correction()


@dataclass(frozen=True, kw_only=True)
class TrialBytes:
    """Bytes of tensors that a trial takes as if it were alone on its host.

    Base, adapter and optimizer state, and its largest pass with the gradients.

    Attributes:
        forecast: Before anything was measured.
        found: With the real bytes of base, adapter and optimizer state, and the pass corrected by
            what the host measured.
    """

    forecast: int
    found: int


@dataclass(frozen=True, kw_only=True)
class MemoryReading:
    """Forecast and outcome of the first passes with the longest rows, side by side.

    The parts are `base`, `adapters`, `optimizer` and `passing`: what a forward and backward pass
    takes besides, gradients included.

    Attributes:
        seats: Number of seats in the pass.
        train_tokens: Tokens of the longest training row.
        forecast: Bytes of each part before the measurement, without a correction.
        measured: Bytes of each part's tensors.
        capacity: Bytes of the device.
        correction: What later forecasts are corrected by.
    """

    seats: int
    train_tokens: int
    forecast: Mapping[str, int]
    measured: Mapping[str, int]
    capacity: int
    correction: Correction

    @property
    def forecast_bytes(self) -> int:
        """Sum of the forecast parts."""
        return sum(self.forecast.values())

    @property
    def measured_bytes(self) -> int:
        """Sum of the measured parts."""
        return sum(self.measured.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def correct(
    forecast: Mapping[str, int], measured: Mapping[str, int], bound: float = MOST_FACTOR
) -> Correction:
    """The correction that makes a forecast equal to its outcome, within the bound.

    Args:
        forecast: Bytes of `base` and `passing`.
        measured: Bytes of the same parts.
        bound: Largest factor; its inverse is the least.
    """
    base, least = forecast["base"], 1 / bound
    factor = measured["passing"] / max(1, forecast["passing"])
    return Correction(
        base=round(max(base * least, min(measured["base"], base * bound))) - base,
        factor=max(least, min(factor, bound)),
    )


@dataclass(kw_only=True)
class Calibration:
    """Corrections of a group (base, form, compute type) by the length of the rows.

    Attributes:
        by_length: Correction for each number of tokens of the longest training row.
    """

    by_length: dict[int, Correction] = field(default_factory=dict)

    def learn(self, tokens: int, correction: Correction) -> None:
        """Keep what was measured with rows of up to `tokens` tokens."""
        self.by_length[tokens] = correction

    def of(self, tokens: int) -> Correction:
        """The correction measured with rows of the nearest length; none before the first."""
        if not self.by_length:
            return NO_CORRECTION
        nearest = min(self.by_length, key=lambda known: (abs(known - tokens), known))
        return self.by_length[nearest]
