"""Bytes of adapters, their gradients and the state of their optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainables.base.targets import resolve_targets
from trainables.memory.architecture import Architecture, Linear
from trainables.memory.stored_bytes import FLOAT32
from trainables.spec import LoraSpec

STATE_BLOCK = 256
"""Numbers of an 8-bit optimizer state that share a constant (arXiv:2110.02861, section 2.1)."""
_SMALLEST_8BIT = 4096
"""bitsandbytes keeps the state of smaller tensors in float32."""
_SMALLEST_PAGED = 100_000
"""bitsandbytes does not page the state of smaller tensors."""

MOMENTS = {
    "adamw": (2, 4),
    "adamw_8bit": (2, 1),
    "paged_adamw": (2, 4),
    "paged_adamw_8bit": (2, 1),
    "lion": (1, 4),
    "lion_8bit": (1, 1),
    "paged_lion_8bit": (1, 1),
}
"""Moments of an optimizer for each weight, and the bytes of a number of a moment."""


@dataclass(frozen=True, kw_only=True)
class AdapterShape:
    """The adapted layers of a trial.

    Attributes:
        layers: Adapted layers by full name.
        rank: Inner dimension of the update.
        has_dropout: Whether the inputs of the branches are dropped at random.
        has_magnitude: Whether DoRA learns the norms of rows.
    """

    layers: Mapping[str, Linear]
    rank: int
    has_dropout: bool
    has_magnitude: bool

    @property
    def tensors(self) -> tuple[int, ...]:
        """Number of weights of each trained tensor."""
        sizes: list[int] = []
        for one in self.layers.values():
            sizes += [self.rank * one.wide, self.rank * one.high]
            if self.has_magnitude:
                sizes.append(one.high)
        return tuple(sizes)


def adapter_of(shape: Architecture, lora: LoraSpec) -> AdapterShape:
    """The adapted layers of a trial on a base.

    Raises:
        SpecError: A target matches no layer.
    """
    linears = shape.named_linears()
    chosen = resolve_targets(tuple(linears), lora.targets)
    return AdapterShape(
        layers={name: linears[name] for name in chosen},
        rank=lora.rank,
        has_dropout=lora.dropout > 0,
        has_magnitude=lora.dora,
    )


def adapter_bytes(adapter: AdapterShape) -> int:
    """Bytes of the adapter's weights in float32; its gradients take as much."""
    return FLOAT32 * sum(adapter.tensors)


def optimizer_bytes(tensors: Sequence[int], optimizer: str, *, can_page: bool) -> int:
    """Bytes of an optimizer's state on the device.

    A paged optimizer keeps the moments of large tensors in memory that moves to the host under
    pressure (arXiv:2305.14314, section 3); what a step needs on the device is one of them.

    Args:
        tensors: Number of weights of each trained tensor.
        optimizer: A name in `MOMENTS`.
        can_page: Whether the device's memory is paged.
    """
    moments, size = MOMENTS[optimizer]
    is_paged = can_page and optimizer.startswith("paged_")
    state = {count: moments * _moment_bytes(count, size) for count in tensors}
    paged = [state[count] for count in tensors if is_paged and count >= _SMALLEST_PAGED]
    kept = sum(state[count] for count in tensors if not is_paged or count < _SMALLEST_PAGED)
    return kept + max(paged, default=0)


def _moment_bytes(count: int, size: int) -> int:
    if size == FLOAT32 or count < _SMALLEST_8BIT:
        return FLOAT32 * count
    return count + FLOAT32 * -(-count // STATE_BLOCK)
