"""Score rows by teacher forcing: loss, token accuracy and the exact match of greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class RowScores:
    """Scores of each row of a split, in the split's order.

    Attributes:
        loss_sum: Negative log-likelihood of the row's answer tokens, in nats.
        answer_tokens: How many answer tokens the row has.
        correct_tokens: How many of them were the most likely token.
    """

    loss_sum: tuple[float, ...]
    answer_tokens: tuple[int, ...]
    correct_tokens: tuple[int, ...]

    def metrics(self) -> dict[str, float]:
        """`eval_loss` per answer token, `eval_accuracy` per row, `eval_token_accuracy` per token.

        A row is right when every answer token, the end token included, is the most likely one
        given the true ones before it. By induction that is when greedy decoding writes exactly the
        answer and stops, so no generation is needed to know it.
        """
        tokens = sum(self.answer_tokens)
        exact = sum(
            correct == total
            for correct, total in zip(self.correct_tokens, self.answer_tokens, strict=True)
        )
        return {
            "eval_loss": sum(self.loss_sum) / tokens,
            "eval_accuracy": exact / len(self.answer_tokens),
            "eval_token_accuracy": sum(self.correct_tokens) / tokens,
        }


def score_batch(logits: torch.Tensor, targets: torch.Tensor, rows: Sequence[int]) -> RowScores:
    """Score the answer tokens of a batch, row by row.

    Args:
        logits: (answer tokens of all rows, vocabulary).
        targets: (answer tokens of all rows,).
        rows: How many of them each row has.
    """
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    hits = logits.argmax(dim=-1) == targets
    return RowScores(
        loss_sum=tuple(float(run.double().sum()) for run in losses.split(list(rows))),
        answer_tokens=tuple(rows),
        correct_tokens=tuple(int(run.sum()) for run in hits.split(list(rows))),
    )


def in_order(parts: Sequence[tuple[Sequence[int], RowScores]]) -> RowScores:
    """Put scores of batches back into the order of the split.

    Args:
        parts: For each batch, the row numbers it held and their scores.
    """
    flat = [
        (row, *scores)
        for rows, part in parts
        for row, *scores in zip(
            rows, part.loss_sum, part.answer_tokens, part.correct_tokens, strict=True
        )
    ]
    flat.sort()
    return RowScores(
        loss_sum=tuple(float(item[1]) for item in flat),
        answer_tokens=tuple(int(item[2]) for item in flat),
        correct_tokens=tuple(int(item[3]) for item in flat),
    )
