"""Whether a trial fits into a device's memory, and the nearest change with which it would."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainables.errors import SpecError
from trainables.memory.architecture import Architecture
from trainables.memory.calibration import Calibration
from trainables.memory.forecast import (
    STATED_ERROR,
    Choices,
    Device,
    Forecast,
    RowLengths,
    forecast_host,
)
from trainables.spec import TrialSpec

MOST_SEATS = 256
_SHORTEST = 64


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Lengths of the rows of a data set before the cut, which trials may cut differently.

    Attributes:
        longest_train: Tokens of the longest training row; `None` if it is not known.
        longest_evaluated: Tokens of the longest row of the other splits; `None` if not known.
        train_answers: Most answer tokens of a training row; `None` if not known.
        evaluated_answers: Most answer tokens of a row of the other splits; `None` if not known.
    """

    longest_train: int | None = None
    longest_evaluated: int | None = None
    train_answers: int | None = None
    evaluated_answers: int | None = None

    def of(self, trial: TrialSpec) -> RowLengths:
        """Lengths of a trial's longest rows, cut as the trial cuts them."""
        most = trial.data.max_tokens
        trained = min(most, trial.data.train_max_tokens or most)
        return RowLengths(
            train=min(trained, self.longest_train or trained),
            evaluation=min(most, self.longest_evaluated or most),
            train_answers=self.train_answers,
            evaluation_answers=self.evaluated_answers,
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a trial fits.

    Attributes:
        fits: Whether it does.
        is_tight: Whether it fits only with decoder layers computed again and single rows in a
            pass, as the engine trains after memory ran out.
        needed: Bytes of a host that trains this trial alone.
        capacity: Bytes of the device.
        reason: Why it does not fit; empty if it fits.
        remedy: The nearest change with which it would fit, as dotted fields with values; empty if
            none is known.
    """

    fits: bool
    needed: int
    capacity: int
    is_tight: bool = False
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """All that a forecast of a group's trials needs besides the trials.

    Attributes:
        shape: The base.
        limits: Lengths of the rows.
        device: The device of a host.
        choices: How the engine trains.
        calibration: What hosts of the group have measured.
    """

    shape: Architecture
    limits: Limits
    device: Device
    choices: Choices = field(default_factory=Choices)
    calibration: Calibration = field(default_factory=Calibration)

    def forecast(self, trial: TrialSpec, seats: int = 1) -> Forecast:
        """Bytes of a host with `seats` such trials.

        Raises:
            SpecError: A target matches no layer of the base.
        """
        lengths = self.limits.of(trial)
        return forecast_host(self.shape, [trial] * seats, lengths, self.device, self.choices)

    def needed(self, trial: TrialSpec, seats: int = 1) -> int:
        """The same in all, corrected by what hosts have measured.

        Raises:
            SpecError: A target matches no layer of the base.
        """
        return self._corrected(trial, self.forecast(trial, seats))

    def least_needed(self, trial: TrialSpec) -> int:
        """Bytes in all of `least`, corrected by what hosts have measured.

        Raises:
            SpecError: A target matches no layer of the base.
        """
        return self._corrected(trial, self.least(trial))

    def _corrected(self, trial: TrialSpec, forecast: Forecast) -> int:
        return self.calibration.of(self.limits.of(trial).train).total(forecast)

    def least(self, trial: TrialSpec) -> Forecast:
        """Bytes of a host that trains a trial alone, after memory ran out.

        Raises:
            SpecError: A target matches no layer of the base.
        """
        choices = dataclasses.replace(self.choices, saves_memory=True)
        return dataclasses.replace(self, choices=choices).forecast(trial)

    def seats(self, trial: TrialSpec, capacity: int) -> int:
        """Most trials of this size that a host holds at once, at most `MOST_SEATS`."""
        if self.needed(trial) > capacity:
            return 0
        low, high = 1, MOST_SEATS
        while low < high:
            middle = (low + high + 1) // 2
            if self.needed(trial, middle) <= capacity:
                low = middle
            else:
                high = middle - 1
        return low

    def fits(self, trial: TrialSpec, capacity: int, *, margin: float = 0.0) -> Verdict:
        """Whether a host can train a trial alone, with whatever saves memory at the same result.

        Args:
            trial: The trial.
            capacity: Bytes of the device.
            margin: Share of the forecast that may be missing: `STATED_ERROR` refuses only what
                does not fit even if the forecast is too large by its stated error.

        Raises:
            SpecError: A target matches no layer of the base.
        """
        needed = self.needed(trial)
        if needed * (1 - margin) <= capacity:
            return Verdict(fits=True, needed=needed, capacity=capacity)
        least = self.least_needed(trial)
        if least * (1 - margin) <= capacity:
            return Verdict(fits=True, is_tight=True, needed=least, capacity=capacity)
        return Verdict(
            fits=False,
            needed=least,
            capacity=capacity,
            reason=_reason(self.least(trial), least, capacity),
            remedy=self._remedy(trial, capacity),
        )

    def _remedy(self, trial: TrialSpec, capacity: int) -> str:
        """The first change that fits, of those that change the trial's result least."""
        for change in self._changes(trial):
            try:
                changed = changed_trial(trial, change)
                if self.least_needed(changed) <= capacity:
                    return ", ".join(f"{name}: {value}" for name, value in change.items())
            except SpecError:
                continue  # not valid for this trial or base: no remedy
        return ""

    def _changes(self, trial: TrialSpec) -> Iterator[dict[str, Any]]:
        """Changes in the order of their effect on the result: none at first."""
        again: dict[str, Any] = {"optim.gradient_checkpointing": "auto"}
        evaluated: dict[str, Any] = {"eval.batch_size": 1}
        if trial.optim.gradient_checkpointing is False:
            yield again
        yield evaluated
        same = {**again, **evaluated}
        lengths = list(self._shorter(trial))
        yield from ({**same, "data.max_tokens": length} for length in lengths)
        if trial.base.quantization != "nf4":
            form = {"base.quantization": "nf4"}
            yield from (form, {**form, **same})
            yield from ({**form, **same, "data.max_tokens": length} for length in lengths)
        if trial.lora.targets != "attention":
            yield {**same, "lora.targets": "attention"}
        for rank in (16, 8, 4):
            if rank < trial.lora.rank:
                yield {**same, "lora.rank": rank}

    def _shorter(self, trial: TrialSpec) -> Iterator[int]:
        length = self.limits.of(trial).train // 2
        while length >= _SHORTEST:
            yield length
            length //= 2


def changed_trial(trial: TrialSpec, change: Mapping[str, Any]) -> TrialSpec:
    """A trial with changed fields, named by section and field.

    Raises:
        SpecError: The values are not valid together.
    """
    for name, value in change.items():
        section, _, one = name.partition(".")
        changed = dataclasses.replace(getattr(trial, section), **{one: value})
        trial = dataclasses.replace(trial, **{section: changed})
    return trial


def _reason(forecast: Forecast, needed: int, capacity: int) -> str:
    parts = forecast.to_dict()
    fixed = sum(parts[name] for name in ("base", "dense", "context"))
    if fixed > capacity:
        return f"the base alone takes {gigabytes(fixed)}, and the device has {gigabytes(capacity)}"
    largest = max(
        (name for name in parts if name not in ("base", "context")), key=parts.__getitem__
    )
    return (
        f"it takes {gigabytes(needed)}, of which {gigabytes(parts[largest])} are "
        f"{_SAID[largest]}, and the device has {gigabytes(capacity)}"
    )


_SAID = {
    "dense": "the dequantized copy",
    "adapters": "the adapter",
    "gradients": "gradients",
    "optimizer": "the optimizer's state",
    "activations": "activations",
    "logits": "logits",
    "workspace": "workspace of the backward",
    "evaluation": "the batches of an evaluation",
}


def gigabytes(count: int) -> str:
    """`7.4 GB`: bytes in units of 10^9."""
    return f"{count / 1e9:.1f} GB"


__all__ = [
    "MOST_SEATS",
    "STATED_ERROR",
    "Limits",
    "MemoryModel",
    "Verdict",
    "changed_trial",
    "gigabytes",
]
