"""Rows as the model takes them, whole or in passes."""

import numpy as np
import pytest
import torch

from trainables.packing.batches import build_batch, build_passes, part_sizes
from trainables.packing.kernels import dropout_mask, dropout_seed
from trainables.rows.data import EncodedRow

CPU = torch.device("cpu")


def row(length: int) -> EncodedRow:
    ids = np.arange(1, length + 1)
    return EncodedRow(input_ids=ids, is_answer=ids > length - 2)


@pytest.mark.parametrize(
    ("rows", "passes", "sizes"), [(8, 1, [8]), (3, 2, [2, 1]), (7, 3, [3, 2, 2]), (2, 4, [1, 1])]
)
def test_rows_are_split_over_passes_evenly(rows, passes, sizes):
    assert part_sizes(rows, passes) == sizes


def test_a_batch_scores_the_token_after_each_position():
    batch = build_batch("seat", [row(3), row(5)], CPU)
    assert (batch.block.rows, batch.block.length, batch.block.answers) == (2, 5, 4)
    assert batch.input_ids.tolist() == [[1, 2, 3, 0, 0, 1, 2, 3, 4, 5]]
    assert batch.scored.tolist() == [0, 1, 7, 8]
    assert batch.targets.tolist() == [2, 3, 4, 5]
    assert (batch.row_answers, batch.real_tokens) == ((2, 2), 8)


def test_passes_hold_every_row_once_padded_for_themselves():
    passes = build_passes("seat", [row(3), row(5), row(7)], CPU, key=(0, 1, 2), passes=2)
    assert [(part.block.rows, part.block.length) for part in passes] == [(2, 5), (1, 7)]
    assert [part.block.dropout.first for part in passes] == [0, 2]
    assert sum(part.real_tokens for part in passes) == 15


def test_masks_of_passes_are_parts_of_one_mask():
    whole, *parts = (
        part.block
        for passes in (1, 2)
        for part in build_passes(
            "seat", [row(3), row(5), row(7)], CPU, key=(0, 1, 2), passes=passes
        )
    )

    def mask(block):
        like = torch.empty(block.tokens, 11)
        return dropout_mask("layer", block.dropout, (block.rows, block.length), 0.3, like)

    torch.manual_seed(dropout_seed("layer", (0, 1, 2)))
    assert torch.equal(mask(whole), torch.nn.Dropout(0.3)(torch.ones(3, 7, 11)))
    assert torch.equal(mask(parts[0]), mask(whole)[:2, :5])
    assert torch.equal(mask(parts[1]), mask(whole)[2:])
