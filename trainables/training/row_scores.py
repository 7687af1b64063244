"""Scores of rows by teacher forcing: loss, token accuracy and exact match of greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainables.packing.head import score_tokens


@dataclass(frozen=True, kw_only=True)
class RowScores:
    """Scores of each row of a split, in the split's order.

    Attributes:
        loss_sum: Negative log-likelihood of the row's answer tokens, in nats.
        answer_tokens: Number of answer tokens of the row.
        correct_tokens: Number of answer tokens that were the most likely token.
        is_whole: Whether the answer is complete; the negation of `EncodedRow.is_cut`.
    """

    loss_sum: tuple[float, ...]
    answer_tokens: tuple[int, ...]
    correct_tokens: tuple[int, ...]
    is_whole: tuple[bool, ...]

    def metrics(self) -> dict[str, float]:
        """`eval_loss` per answer token, `eval_accuracy` per row, `eval_token_accuracy` per token.

        A row is correct when every answer token, including the end token, is the most likely one
        given the true tokens before. By induction greedy decoding then writes exactly the answer
        and stops, so no generation is needed. A row whose answer was cut at `data.max_tokens` has
        no end token and is never correct.
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


def batch_scores(
    logits: torch.Tensor, targets: torch.Tensor, rows: Sequence[int], is_whole: Sequence[bool]
) -> RowScores:
    """Scores of the rows of a batch, from the logits at their answer tokens.

    Args:
        logits: (answer tokens of all rows, vocabulary).
        targets: (answer tokens of all rows,).
        rows: Number of answer tokens of each row.
        is_whole: Whether the answer of each row is complete.
    """
    return row_scores(*score_tokens(logits, targets), rows, is_whole)


def row_scores(
    losses: torch.Tensor, hits: torch.Tensor, rows: Sequence[int], is_whole: Sequence[bool]
) -> RowScores:
    """Scores of the rows of a batch, from those of their answer tokens.

    Args:
        losses: (answer tokens of all rows,), negative log-likelihoods in nats.
        hits: (answer tokens of all rows,), whether each was the most likely token.
        rows: Number of answer tokens of each row.
        is_whole: Whether the answer of each row is complete.
    """
    return RowScores(
        loss_sum=tuple(float(run.double().sum()) for run in losses.split(list(rows))),
        answer_tokens=tuple(rows),
        correct_tokens=tuple(int(run.sum()) for run in hits.split(list(rows))),
        is_whole=tuple(is_whole),
    )


def in_order(parts: Sequence[tuple[Sequence[int], RowScores]]) -> RowScores:
    """Scores of all batches in the order of the split.

    Args:
        parts: Row numbers and scores of each batch.
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
