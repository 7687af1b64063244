"""Whether a pack is forecast to exceed the memory of its device, before its first pass."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from trainables.base.loading import LoadedBase
from trainables.errors import BaseModelError
from trainables.memory.architecture import Architecture
from trainables.memory.forecast import Device, RowLengths, forecast_host
from trainables.rows.data import Split
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
        memory: Bytes of its device; `None` forecasts nothing.
    """

    def __init__(self, base: LoadedBase, memory: int | None) -> None:
        self._memory = memory
        self._device = Device(
            is_cuda=base.device.type == "cuda", has_bfloat16=base.compute_dtype.itemsize == 2
        )
        try:
            config = base.model.config.get_text_config().to_dict()
            self._shape: Architecture | None = Architecture.from_config(config)
        except BaseModelError:  # a kind of model whose memory is not known
            self._shape = None

    def exceeds(self, seats: Iterable[Seat]) -> bool:
        """Whether a pass of all seats is forecast to take more than there is.

        Each row counts as the longest of the seats' rows. Seats of a kind of model that is not
        known never exceed anything.
        """
        taken = list(seats)
        if self._memory is None or self._shape is None or not taken:
            return False
        trained = [_longest(seat.splits.train) for seat in taken]
        evaluated = [_longest(seat.splits.validation) for seat in taken]
        lengths = RowLengths(
            train=max(length for length, _ in trained),
            evaluation=max(length for length, _ in evaluated),
            train_answers=max(answers for _, answers in trained),
            evaluation_answers=max(answers for _, answers in evaluated),
        )
        specs = [seat.spec for seat in taken]
        return forecast_host(self._shape, specs, lengths, self._device).total > self._memory


def _longest(split: Split) -> tuple[int, int]:
    """Most tokens and most answer tokens of a row."""
    return (
        max(len(row.input_ids) for row in split.rows),
        max(int(row.is_answer.sum()) for row in split.rows),
    )
