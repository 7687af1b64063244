"""Scores of rows from their logits alone."""

import pytest
import torch
from torch.nn import functional as F

from trainables.training.row_scores import batch_scores, in_order

TARGETS = torch.tensor([1, 2, 3, 1, 2])


def score(is_whole, guesses=TARGETS):
    """Two rows, of three and of two answer tokens, each guessed with near certainty."""
    logits = F.one_hot(guesses, 4) * 20.0
    return batch_scores(logits, TARGETS, (3, 2), is_whole)


def test_a_row_with_one_wrong_token_is_no_exact_match():
    metrics = score((True, True), torch.tensor([1, 2, 3, 1, 0])).metrics()
    assert metrics["eval_accuracy"] == 0.5
    assert metrics["eval_token_accuracy"] == 0.8


@pytest.mark.parametrize(
    ("is_whole", "accuracy"),
    [((True, True), 1.0), ((True, False), 0.5), ((False, False), 0.0)],
    ids=["whole", "one-cut", "both-cut"],
)
def test_a_cut_row_is_never_an_exact_match(is_whole, accuracy):
    metrics = score(is_whole).metrics()
    assert metrics["eval_accuracy"] == accuracy
    assert metrics["eval_token_accuracy"] == 1.0


def test_rows_keep_their_scores_in_the_order_of_the_split():
    parts = [((2, 0), score((True, False))), ((1, 3), score((False, True)))]
    scores = in_order(parts)
    assert scores.answer_tokens == (2, 3, 3, 2)
    assert scores.is_whole == (False, False, True, True)
