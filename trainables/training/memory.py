"""Bytes of the training process: its peak, its tensors, and what a piece of work takes.

On a GPU, torch's allocator counts the tensors. On a CPU the resident memory of a process says
little about a single pass, because freed pages stay and pages of files come and go; there, the
storages of the tensors that operations return are counted from their first use until they are
freed. What an operation takes for itself in between is not counted on a CPU.
"""

from __future__ import annotations

import resource
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainables.packing.kernels import KEPT_DENSE

_peaks: dict[torch.device, int] = {}
"""Largest peak of each GPU before torch's own count was started anew."""


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of this process in GiB: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return _peak(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def _peak(device: torch.device) -> int:
    return max(_peaks.get(device, 0), torch.cuda.max_memory_allocated(device))


def bytes_of_work(device: torch.device, work: Callable[[], Any], known: Iterable[int]) -> int:
    """Most bytes of new tensors at once while a piece of work runs.

    Args:
        device: The device that the work runs on.
        work: The work; its errors are passed on.
        known: Addresses of storages that existed before; needed on a CPU.
    """
    if device.type == "cuda":
        _peaks[device] = _peak(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    live: Any = LiveTensors(known)
    with live:
        work()
    return int(live.peak)


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Bytes of the storages under tensors, each once, by address."""
    found = {}
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def dense_copies(model: nn.Module) -> Iterator[torch.Tensor]:
    """Dequantized weights that layers of a base keep."""
    kept = (getattr(module, KEPT_DENSE, None) for module in model.modules())
    yield from (one for one in kept if one is not None)


def model_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """All tensors of a base, constants of quantized layers included."""
    for parameter in model.parameters():
        yield parameter
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            yield from (one for one in vars(state).values() if isinstance(one, torch.Tensor))
            state = state.state2
        scale = getattr(parameter, "SCB", None)
        if isinstance(scale, torch.Tensor):
            yield scale
    yield from model.buffers()
    for module in model.modules():  # the first pass moves an 8-bit layer's constants
        rows = getattr(getattr(module, "state", None), "SCB", None)
        if isinstance(rows, torch.Tensor):
            yield rows


class LiveTensors(TorchDispatchMode):
    """Adds up storages from their first use as a result until they are freed.

    Args:
        static: Addresses of storages that do not count.

    Attributes:
        now: Bytes at this moment.
        peak: Most bytes at once.
    """

    def __init__(self, static: Iterable[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known, self.now, self.peak = set(static), 0, 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
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
