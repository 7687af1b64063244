"""Bytes of real tensors of an engine: base, adapters, optimizer, kept for the backward, peak."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from trainables.engine import Engine
from trainables.training.memory import LiveTensors, model_tensors, storages
from trainables.training.optim import moments_of


def base_tensors(engine: Engine) -> Iterator[torch.Tensor]:
    return model_tensors(engine.base.model)


def base_bytes(engine: Engine) -> int:
    return sum(storages(base_tensors(engine)).values())


def adapter_bytes(engine: Engine, seat: str) -> int:
    return sum(storages(engine._seats[seat].parameters).values())


def optimizer_bytes(engine: Engine, seat: str) -> int:
    """Bytes of the moments, without the step counts and the constants that tensors share."""
    seated = engine._seats[seat]
    moments = (moments_of(seated.optimizer, one) for one in seated.parameters)
    return sum(storages(tensor for each in moments for _, tensor in each).values())


@dataclass(frozen=True)
class MeasuredPass:
    """Bytes of one forward and backward pass.

    Attributes:
        kept: Kept for the backward, besides base and adapters.
        peak: Most bytes of new tensors at once, gradients of the adapters included.
    """

    kept: int
    peak: int


@contextmanager
def _kept(static: Iterable[int]) -> Iterator[dict[int, int]]:
    known, found, alive = set(static), {}, []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        for address, size in storages([tensor]).items():
            if address not in known and size:
                found[address] = size
                alive.append(tensor)  # an address is used again once it is free
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def static_storages(engine: Engine) -> set[int]:
    branches = [one for seat in engine._seats.values() for one in seat.parameters]
    return {*storages(base_tensors(engine)), *storages(branches)}


def measure_pass(engine: Engine, seats: list[str]) -> MeasuredPass:
    """Forward and backward of the seats' next micro-batch, twice: kept tensors, then the peak."""
    passes = {seat: engine._passes(seat) for seat in seats}
    answers = {seat: sum(one.block.answers for one in own) for seat, own in passes.items()}
    first = [own[0] for own in passes.values()]
    static = static_storages(engine)
    with _kept(static) as kept:
        engine._backward(first, answers)
    for seat in seats:
        engine._seats[seat].optimizer.zero_grad(set_to_none=True)
    with LiveTensors(static) as live:
        engine._backward(first, answers)
    for seat in seats:
        engine._seats[seat].optimizer.zero_grad(set_to_none=True)
    return MeasuredPass(kept=sum(kept.values()), peak=live.peak)
