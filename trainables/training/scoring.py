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
        is_whole: The row has its answer to the end; `EncodedRow.is_cut` negated.
    """

    loss_sum: tuple[float, ...]
    answer_tokens: tuple[int, ...]
    correct_tokens: tuple[int, ...]
    is_whole: tuple[bool, ...]

    def metrics(self) -> dict[str, float]:
        """`eval_loss` per answer token, `eval_accuracy` per row, `eval_token_accuracy` per token.

        A row is right when every answer token, the end token included, is the most likely one
        given the true ones before it. By induction that is when greedy decoding writes exactly the
        answer and stops, so no generation is needed to know it. A row whose answer was cut at
        `data.max_tokens` has no end token to stop at and is never right.
        """
        tokens = sum(self.answer_tokens)
        exact = sum(
            is_whole and correct == total
            for correct, total, is_whole in zip(
                self.correct_tokens, self.answer_tokens, self.is_whole, strict=True
            )
        )
        return {
            "eval_loss": sum(self.loss_sum) / tokens,
            "eval_accuracy": exact / len(self.answer_tokens),
            "eval_token_accuracy": sum(self.correct_tokens) / tokens,
        }


def score_batch(
    logits: torch.Tensor, targets: torch.Tensor, rows: Sequence[int], is_whole: Sequence[bool]
) -> RowScores:
    """Score the answer tokens of a batch, row by row.

    Args:
        logits: (answer tokens of all rows, vocabulary).
        targets: (answer tokens of all rows,).
        rows: How many of them each row has.
        is_whole: Whether each row has its answer to the end.
    """
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    hits = logits.argmax(dim=-1) == targets
    return RowScores(
        loss_sum=tuple(float(run.double().sum()) for run in losses.split(list(rows))),
        answer_tokens=tuple(rows),
        correct_tokens=tuple(int(run.sum()) for run in hits.split(list(rows))),
        is_whole=tuple(is_whole),
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
            rows,
            part.loss_sum,
            part.answer_tokens,
            part.correct_tokens,
            part.is_whole,
            strict=True,
        )
    ]
    flat.sort()
    return RowScores(
        loss_sum=tuple(float(item[1]) for item in flat),
        answer_tokens=tuple(int(item[2]) for item in flat),
        correct_tokens=tuple(int(item[3]) for item in flat),
        is_whole=tuple(bool(item[4]) for item in flat),
    )
