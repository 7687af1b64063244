"""Bytes of the loss: logits of one chunk of positions at a time, and the gradient of the rest."""

from __future__ import annotations

from trainables.memory.stored_bytes import FLOAT32

LOGITS_PER_CHUNK = 2**25
"""Most logits of a seat that exist at once: 128 MiB in float32."""

_LOSS_TENSORS = 3
"""Float32 tensors of the size of a chunk's logits in its backward: log-probabilities, the gradient
of the likelihood, and that of the logits."""


def positions_per_chunk(vocabulary: int, logits: int = LOGITS_PER_CHUNK) -> int:
    """Most positions of a seat whose logits exist at once, at most `logits` of them."""
    return max(1, logits // vocabulary)


def chunk_bytes(
    scored: int, vocabulary: int, compute: int, *, has_cap: bool, is_whole: bool = False
) -> int:
    """Passing bytes of the largest chunk of a seat's loss.

    Args:
        scored: Scored positions of the seat's pass.
        vocabulary: Logits of a position.
        compute: Bytes of a number of the compute type.
        has_cap: Whether logits are bounded: the bound keeps its result, and has a gradient.
        is_whole: All positions are one chunk.
    """
    chunks = 1 if is_whole else max(1, -(-scored // positions_per_chunk(vocabulary)))
    capped = 2 * compute if has_cap else 0
    return -(-scored // chunks) * vocabulary * (_LOSS_TENSORS * FLOAT32 + capped)


def hidden_gradient_bytes(scored: int, hidden: int, compute: int) -> int:
    """Kept bytes of the gradient of a seat's scored hidden states."""
    return scored * hidden * compute
