"""Adapters that start where a layer's inputs vary most (EVA, arXiv:2410.07170).

The rows of `A` are the top right-singular vectors of what the layer sees of the first training
rows; `B` starts at zero, so the base stays as it is. Every layer has the trial's rank: the paper's
redistribution of ranks, by explained variance, is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from trainables.errors import SpecError
from trainables.rows.data import EncodedRow

_TOKENS = 1024
"""Tokens that are enough: the largest rank, and a decomposition of a fraction of a second."""


def first_rows(rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """Rows from the first on until they have 1024 tokens together."""
    chosen: list[EncodedRow] = []
    tokens = 0
    for row in rows:
        if tokens >= _TOKENS:
            break
        chosen.append(row)
        tokens += len(row.input_ids)
    return chosen


@torch.no_grad()
def observed_directions(
    layers: Mapping[str, nn.Module], rank: int, forward: Callable[[], object]
) -> dict[str, torch.Tensor]:
    """`input_directions` of each layer in one forward pass.

    Args:
        layers: By full name; their input is (1, tokens, features), without padding.
        rank: How many directions.
        forward: Passes the rows through the model.
    """
    found: dict[str, torch.Tensor] = {}

    def look(name: str, _layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found[name] = input_directions(inputs[0].squeeze(0), rank, name)

    hooks = [
        layer.register_forward_pre_hook(functools.partial(look, name))
        for name, layer in layers.items()
    ]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def input_directions(x: torch.Tensor, rank: int, layer: str) -> torch.Tensor:
    """Top right-singular vectors of inputs, (rank, features) in float32, rows orthonormal.

    Each has its largest entry positive, as a singular vector's sign is arbitrary.

    Args:
        x: (tokens, features).
        rank: How many.
        layer: Full name, for the error.

    Raises:
        SpecError: There are fewer tokens or features than `rank`.
    """
    if rank > min(x.shape):
        raise SpecError(
            f"lora.rank: got {rank}; allowed: at most {min(x.shape)} with lora.init eva, as "
            f"{layer} has {x.shape[1]} inputs and the training rows {x.shape[0]} tokens. "
            "Lower the rank or use another init."
        )
    x = x.double()
    if x.shape[0] < x.shape[1]:  # the smaller of the two squares
        _, vectors = torch.linalg.eigh(x @ x.T)
        columns = x.T @ vectors.flip(1)[:, :rank]
    else:
        _, vectors = torch.linalg.eigh(x.T @ x)
        columns = vectors.flip(1)[:, :rank]
    # Scales columns to one, and keeps them apart where the inputs have fewer directions than rank.
    directions = torch.linalg.qr(columns).Q.T
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    settled: torch.Tensor = (directions * largest.sign()).float().contiguous()
    return settled
