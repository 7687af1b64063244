"""Rows of one seat as the model takes them: padded behind one another, with what they score on.

A micro-batch that does not fit into memory is passed in parts. The sums are those of the whole,
and dropout masks are drawn for the whole and cut, so the trial stays the same trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from trainables.data import IGNORED_TARGET, EncodedRow, collate
from trainables.pack import Block, Dropout

_ANY_TOKEN = 0
"""Fills short rows up: nobody attends to it, but the base looks it up, and a tokenizer's own pad
token may have no row in the embeddings."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of one seat for one forward pass, and what they are scored on.

    Attributes:
        input_ids: (1, rows * length).
        scored: Positions in the block whose logits are wanted.
        targets: The token that should follow each of them.
        row_answers: Scored positions of each row.
        real_tokens: Tokens of the rows, padding left out.
    """

    block: Block
    input_ids: torch.Tensor
    scored: torch.Tensor
    targets: torch.Tensor
    row_answers: tuple[int, ...]
    real_tokens: int


def build_batch(
    seat: str | None,
    rows: Sequence[EncodedRow],
    device: torch.device,
    dropout: Dropout | None = None,
) -> Batch:
    """Rows of a seat, or of the bare base for `None`, on the device."""
    input_ids, labels = (torch.from_numpy(part) for part in collate(rows, _ANY_TOKEN))
    # The logits of position t - 1 are scored on the token at t.
    is_scored = labels[:, 1:] != IGNORED_TARGET
    scored = F.pad(is_scored, (0, 1)).flatten().nonzero().flatten()
    block = Block(
        seat=seat,
        rows=input_ids.shape[0],
        length=input_ids.shape[1],
        answers=len(scored),
        dropout=dropout,
    )
    return Batch(
        block=block,
        input_ids=input_ids.reshape(1, -1).to(device),
        scored=scored.to(device),
        targets=labels[:, 1:][is_scored].to(device),
        row_answers=tuple(is_scored.sum(dim=1).tolist()),
        real_tokens=sum(len(row.input_ids) for row in rows),
    )


def build_passes(
    seat: str,
    rows: Sequence[EncodedRow],
    device: torch.device,
    *,
    key: tuple[int, int, int],
    passes: int,
) -> list[Batch]:
    """One micro-batch as one batch for each forward pass.

    Args:
        seat: Whose rows these are.
        rows: The rows of the micro-batch.
        device: Where the tensors go.
        key: (seed, step, micro-step), which dropout masks are drawn from.
        passes: Passes to split the rows into; the first ones take what does not divide.
    """
    length = max(len(row.input_ids) for row in rows)
    batches, first = [], 0
    for size in part_sizes(len(rows), passes):
        dropout = Dropout(key=key, rows=len(rows), length=length, first=first)
        part = rows[first : first + size]
        batches.append(build_batch(seat, part, device, dropout))
        first += size
    return batches


def batches_by_length(
    lengths: Sequence[int], size: int, boundary: int | None = None
) -> list[list[int]]:
    """Numbers of rows in batches of similar length, the shortest first.

    Args:
        lengths: Tokens of each row.
        size: Rows of a batch at most.
        boundary: Tokens that all rows of a batch are within or all beyond, where a base computes
            both kinds differently.
    """
    by_length = sorted(range(len(lengths)), key=lambda row: lengths[row])
    within = [row for row in by_length if boundary is None or lengths[row] <= boundary]
    return [
        rows[start : start + size]
        for rows in (within, by_length[len(within) :])
        for start in range(0, len(rows), size)
    ]


def part_sizes(rows: int, passes: int) -> list[int]:
    """Rows of each pass: as even as can be, the larger first, none empty."""
    passes = min(rows, passes)
    return [rows // passes + (part < rows % passes) for part in range(passes)]
