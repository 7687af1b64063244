"""Memory of the seats on a base: forecast, corrected by what was measured, against the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from trainables.base.loading import LoadedBase
from trainables.errors import BaseModelError
from trainables.memory.architecture import Architecture
from trainables.memory.calibration import Calibration, MemoryReading, TrialBytes, correct
from trainables.memory.forecast import Choices, Device, Forecast, RowLengths, forecast_host
from trainables.memory.seating import MOST_SEATS_THAT_PAY
from trainables.memory.verdict import MOST_SEATS
from trainables.packing.batches import Batch, part_sizes
from trainables.spec import TrialSpec
from trainables.training.memory import bytes_of_work, dense_copies, model_tensors, storages
from trainables.training.optim import moments_of
from trainables.training.seat import Seat


def device_memory(device: torch.device) -> int | None:
    """Bytes of a GPU's memory; `None` on a CPU, whose memory others share."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


class Foresight:
    """Forecasts the memory of the seats on a base.

    Args:
        base: The base.
        seats: The taken seats by name; the owner adds and removes them.
        memory: Bytes of its device; `None` limits nothing.
        calibration: What other hosts of the same base and form have measured.

    Attributes:
        memory: Bytes of the device; `None` where nothing limits it.
        calibration: Corrections of the forecast so far.
        saves_memory: Whether trials with `gradient_checkpointing: auto` save memory.
        is_dense: Whether 4-bit weights are also kept dequantized.
    """

    def __init__(
        self,
        base: LoadedBase,
        seats: Mapping[str, Seat],
        memory: int | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self._seats = seats
        self.memory = memory
        self.calibration = calibration or Calibration()
        self.saves_memory = self.is_dense = False
        self._device = Device(
            is_cuda=base.device.type == "cuda", has_bfloat16=base.compute_dtype.itemsize == 2
        )
        self._base = base
        self._base_bytes: int | None = None
        self._measured: tuple[Sequence[Seat], Forecast, int] | None = None
        try:
            config = base.model.config.get_text_config().to_dict()
            self._shape: Architecture | None = Architecture.from_config(config)
        except BaseModelError:  # a kind of model whose memory is not known
            self._shape = None

    @property
    def base_bytes(self) -> int:
        """Bytes of the base's tensors."""
        if self._base_bytes is None:
            self._base_bytes = sum(storages(model_tensors(self._base.model)).values())
        return self._base_bytes

    def exceeds(self) -> bool:
        """Whether a pass of all seats is forecast to take more than there is.

        Each row counts as the longest of its seat. Seats of a kind of model that is not known
        never exceed anything.
        """
        return self._exceeds([*self._seats.values()])

    def room(self) -> int | None:
        """Most seats that the memory holds: the taken ones, and more like the largest of them.

        At least one, as a trial that is alone may be trained in smaller passes, and at most
        `MOST_SEATS`; `None` where it is not known.
        """
        held = [*self._seats.values()]
        if self.memory is None or self._shape is None or not held:
            return None
        largest = max(held, key=lambda seat: self._total([seat]) or 0)
        held.sort(key=lambda seat: seat is not largest)
        low, high = 1, MOST_SEATS
        while low < high:
            middle = (low + high + 1) // 2
            if self._exceeds([*held, *[largest] * middle][:middle]):
                high = middle - 1
            else:
                low = middle
        return low

    def has_room_for_dense(self) -> bool:
        """Whether a dense copy of the base fits beside as many seats as could pay without it.

        Not where no limit of the memory is known, or the base has no 4-bit weights.
        """
        if self._base.record.quantization not in ("nf4", "fp4"):
            return False
        was_dense = self.is_dense
        try:
            self.is_dense = False
            before = self.room()
            self.is_dense = True
            after = self.room()
            fits = not self.exceeds()
        finally:
            self.is_dense = was_dense
        if before is None or after is None:
            return False
        return fits and min(after, MOST_SEATS_THAT_PAY) == min(before, MOST_SEATS_THAT_PAY)

    def trial_bytes(self, name: str) -> TrialBytes | None:
        """Bytes of a seat's trial; `None` for a kind of model whose memory is not known."""
        seat = self._seats[name]
        forecast = self._forecast([seat])
        if forecast is None:
            return None
        own = forecast.adapters + forecast.optimizer + forecast.passing
        factor = self.calibration.of(seat.row_lengths.train).factor
        found = adapter_bytes(seat) + _state_bytes(seat, forecast)
        return TrialBytes(
            forecast=forecast.base + own,
            found=self.base_bytes + found + round(factor * forecast.passing),
        )

    def learn(
        self, names: Sequence[str], batches: Sequence[Batch], work: Callable[[], Any]
    ) -> None:
        """Correct the forecast by the bytes of a pass.

        Args:
            names: The seats of the pass.
            batches: Their batches, in the same order.
            work: Passes the batches forward and backward.
        """
        own = (tensor for seat in self._seats.values() for tensor in seat.parameters)
        model = self._base.model
        known = storages((*model_tensors(model), *dense_copies(model), *own))
        passing = bytes_of_work(self._base.device, work, known)
        seats = [self._seats[name] for name in names]
        forecast = self._forecast(seats, [_lengths_of(batch) for batch in batches])
        if forecast is None:
            return
        self._measured = (seats, forecast, passing)
        found = correct(
            {"base": forecast.base, "passing": forecast.passing},
            {"base": self.base_bytes, "passing": passing},
        )
        self.calibration.learn(_longest(seats), found)

    def take_reading(self) -> MemoryReading | None:
        """Forecast and outcome of the last measured pass, once; `None` without a new one.

        After a step, so that all optimizer state exists.
        """
        measured, self._measured = self._measured, None
        if measured is None or self.memory is None:
            return None
        seats, forecast, passing = measured
        tokens = _longest(seats)
        states = sum(_state_bytes(seat, self._forecast([seat])) for seat in seats)
        return MemoryReading(
            seats=len(seats),
            train_tokens=tokens,
            forecast={
                "base": forecast.base,
                "adapters": forecast.adapters,
                "optimizer": forecast.optimizer,
                "passing": forecast.passing,
            },
            measured={
                "base": self.base_bytes,
                "adapters": sum(adapter_bytes(seat) for seat in seats),
                "optimizer": states,
                "passing": passing,
            },
            capacity=self.memory,
            correction=self.calibration.of(tokens),
        )

    def _exceeds(self, seats: Sequence[Seat]) -> bool:
        taken = None if self.memory is None else self._total(seats)
        return taken is not None and self.memory is not None and taken > self.memory

    def _total(self, seats: Sequence[Seat]) -> int | None:
        forecast = self._forecast(seats)
        if forecast is None:
            return None
        return self.calibration.of(_longest(seats)).total(forecast)

    def _forecast(
        self, seats: Sequence[Seat], lengths: Sequence[RowLengths] | None = None
    ) -> Forecast | None:
        if self._shape is None or not seats:
            return None
        chosen = lengths or [seat.row_lengths for seat in seats]
        specs = {id(seat): self._as_trained(seat) for seat in seats}
        trials = [specs[id(seat)] for seat in seats]
        choices = Choices(dense=self.is_dense)
        return forecast_host(self._shape, trials, chosen, self._device, choices)

    def _as_trained(self, seat: Seat) -> TrialSpec:
        """The trial's settings with the passes and checkpoints that the engine has chosen."""
        optim, length = seat.spec.optim, seat.row_lengths.train
        rows = part_sizes(seat.micro_batch_size, seat.passes)[0]
        asked = optim.gradient_checkpointing
        chosen = dataclasses.replace(
            optim,
            gradient_checkpointing=self.saves_memory if asked == "auto" else asked,
            max_tokens_per_pass=min(optim.max_tokens_per_pass or rows * length, rows * length),
        )
        return dataclasses.replace(seat.spec, optim=chosen)


def adapter_bytes(seat: Seat) -> int:
    """Bytes of a seat's adapter."""
    return sum(storages(seat.parameters).values())


def _state_bytes(seat: Seat, forecast: Forecast | None) -> int:
    """Bytes of a seat's optimizer state: of its tensors, or forecast before its first step."""
    moments = (moments_of(seat.optimizer, one) for one in seat.parameters)
    found = sum(storages(tensor for each in moments for _, tensor in each).values())
    return found or (0 if forecast is None else forecast.optimizer)


def _longest(seats: Sequence[Seat]) -> int:
    return max(seat.row_lengths.train for seat in seats)


def _lengths_of(batch: Batch) -> RowLengths:
    block = batch.block
    answers = -(-block.answers // block.rows)
    return RowLengths(
        train=block.length,
        evaluation=block.length,
        train_answers=answers,
        evaluation_answers=answers,
    )
