"""Batches: rows of one seat, concatenated with padding, and the positions to score.

A micro-batch that exceeds the memory is passed in parts. The loss sums are those of the whole, and
dropout masks are drawn for the whole and sliced, so the trial stays the same trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from trainables.packing.pack import Block, Dropout
from trainables.rows.data import IGNORED_TARGET, EncodedRow, collate

_ANY_TOKEN = 0
"""Padding of short rows. No position attends to padding, but the base looks up its embedding, and
a tokenizer's own pad token may have no embedding."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of a seat for one forward pass, with the positions and targets to score.

    Attributes:
        input_ids: (1, rows * length).
        scored: Positions in the block whose logits are computed.
        targets: Next token after each scored position.
        row_answers: Number of scored positions of each row.
        real_tokens: Number of tokens of the rows, without padding.
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
    """A batch of a seat's rows on the device; seat `None` stands for the bare base."""
    input_ids, labels = (torch.from_numpy(part) for part in collate(rows, _ANY_TOKEN))
    # The logits at position t - 1 score the token at t.
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
    """A micro-batch, split into one batch for each forward pass.

    Args:
        seat: Name of the seat.
        rows: The rows of the micro-batch.
        device: Device of the tensors.
        key: (seed, step, micro-step), the key of the dropout masks.
        passes: Number of passes; the first passes take the remainder.
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
    """Row numbers in batches of similar length, the shortest batch first.

    Args:
        lengths: Tokens of each row.
        size: Most rows of a batch.
        boundary: Length in tokens that no batch crosses: a base may compute rows within and beyond
            this length differently.
    """
    by_length = sorted(range(len(lengths)), key=lambda row: lengths[row])
    within = [row for row in by_length if boundary is None or lengths[row] <= boundary]
    return [
        rows[start : start + size]
        for rows in (within, by_length[len(within) :])
        for start in range(0, len(rows), size)
    ]


def part_sizes(rows: int, passes: int) -> list[int]:
    """Number of rows of each pass: as even as possible, larger passes first, none empty."""
    passes = min(rows, passes)
    return [rows // passes + (part < rows % passes) for part in range(passes)]
