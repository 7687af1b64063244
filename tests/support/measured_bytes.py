"""Bytes of real tensors of an engine: base, adapters, optimizer, kept for the backward, peak."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainables.engine import Engine
from trainables.training.optim import moments_of


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Bytes of the storages under tensors, each once, by address."""
    found = {}
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def base_tensors(engine: Engine) -> Iterator[torch.Tensor]:
    """All tensors of a base, constants of quantized layers included."""
    for parameter in engine.base.model.parameters():
        yield parameter
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            yield from (one for one in vars(state).values() if isinstance(one, torch.Tensor))
            state = state.state2
        if getattr(parameter, "SCB", None) is not None:
            yield parameter.SCB
    yield from engine.base.model.buffers()
    for module in engine.base.model.modules():  # the first pass moves an 8-bit layer's constants
        rows = getattr(getattr(module, "state", None), "SCB", None)
        if isinstance(rows, torch.Tensor):
            yield rows


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


class LiveTensors(TorchDispatchMode):
    """Adds up storages from their first use as a result until they are freed."""

    def __init__(self, static: Iterable[int]) -> None:
        super().__init__()
        self.known, self.now, self.peak = set(static), 0, 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor):
                self._note(one.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self.known or not size:
            return
        self.known.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, address, size)

    def _free(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.now -= size


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
