"""A metric of the user, computed at each evaluation from greedy completions or from row scores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.errors import SpecError
from trainables.functions import function_error, load_function, split_name
from trainables.rows.data import EncodedRow
from trainables.spec import METRIC_COST, EvalSpec
from trainables.training.row_scores import RowScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIELD = "eval.metric"
_ANY_TOKEN = 0

NextTokens = Callable[[Sequence[EncodedRow]], Sequence[int]]
"""The most likely token at the single scored position of each row."""


@dataclass(frozen=True, kw_only=True)
class OwnMetric:
    """The metric of one trial.

    Attributes:
        how: Names the function and the tokens of a completion.
        tokenizer: Turns answers into text.
        ends: Tokens that end an answer.
        longest: Most tokens of a row on this base; `None` for no limit.
    """

    how: EvalSpec
    tokenizer: PreTrainedTokenizerBase
    ends: Collection[int]
    longest: int | None = None

    def measure(
        self, rows: Sequence[EncodedRow], scores: RowScores, next_tokens: NextTokens
    ) -> dict[str, float]:
        """`eval_<function>`, the mean over the rows, and its cost `metric_s` in seconds.

        Raises:
            SpecError: The function failed or gave something other than one finite number for each
                row; or a completion would be longer than the base's positions.
        """
        name, began = str(self.how.metric), time.perf_counter()
        function = load_function(name, FIELD)
        given: tuple[Any, ...] = (_columns(scores),)
        if self.how.max_new_tokens:
            given = self._texts(rows, next_tokens)
        try:
            column = [float(number) for number in function(*given)]
        except Exception as error:
            raise function_error(name, FIELD, error, _allowed(rows)) from error
        if len(column) != len(rows) or not all(map(math.isfinite, column)):
            shown = f"{len(column)} numbers"
            if len(column) == len(rows):
                shown = str(next(one for one in column if not math.isfinite(one)))
            raise SpecError(
                f"{FIELD}: {name} gave {shown}; allowed: {_allowed(rows)}. Correct the function."
            )
        value = math.fsum(column) / len(column)
        return {f"eval_{split_name(name)[1]}": value, METRIC_COST: time.perf_counter() - began}

    def _texts(
        self, rows: Sequence[EncodedRow], next_tokens: NextTokens
    ) -> tuple[list[str], list[str]]:
        """Greedy completions of the last answers, and these answers as references."""
        spans = [_last_answer(row) for row in rows]
        prompts = [
            row.input_ids[:start].tolist() for row, (start, _) in zip(rows, spans, strict=True)
        ]
        longest = max(map(len, prompts))
        if longest < 2:
            raise SpecError(
                f"eval.max_new_tokens: got {self.how.max_new_tokens}, but the rows are text "
                "without prompts; allowed: 0, or rows with a prompt. Set it to 0."
            )
        if self.longest is not None and longest + self.how.max_new_tokens > self.longest:
            raise SpecError(
                f"eval.max_new_tokens: got {self.how.max_new_tokens} behind a prompt of {longest} "
                f"tokens; allowed: together at most {self.longest}, the base's positions. Lower "
                "it or shorten the prompts."
            )
        written = complete_greedily(prompts, self.ends, self.how.max_new_tokens, next_tokens)
        answers = [
            row.input_ids[start:end].tolist()
            for row, (start, end) in zip(rows, spans, strict=True)
        ]
        return self._decode(written), self._decode(answers)

    def _decode(self, answers: Sequence[Sequence[int]]) -> list[str]:
        return [
            str(
                self.tokenizer.decode(
                    list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            )
            for ids in answers
        ]


def complete_greedily(
    prompts: Sequence[Sequence[int]],
    ends: Collection[int],
    max_new_tokens: int,
    next_tokens: NextTokens,
) -> list[list[int]]:
    """The most likely continuation of each prompt, without its end token.

    Packed layers keep no cache of keys, so each token reads its prompt again: the cost is that of
    `max_new_tokens` evaluations of prompts that have not ended.
    """
    written: list[list[int]] = [[] for _ in prompts]
    going = [number for number, prompt in enumerate(prompts) if prompt]
    for _ in range(max_new_tokens):
        if not going:
            break
        rows = [_asking([*prompts[number], *written[number]]) for number in going]
        found = dict(zip(going, next_tokens(rows), strict=True))
        going = [number for number in going if found[number] not in ends]
        for number in going:
            written[number].append(found[number])
    return written


def _asking(tokens: Sequence[int]) -> EncodedRow:
    """A row whose only scored position is behind the given tokens."""
    is_answer = np.zeros(len(tokens) + 1, dtype=np.bool_)
    is_answer[-1] = True
    return EncodedRow(
        input_ids=np.array([*tokens, _ANY_TOKEN], dtype=np.int64), is_answer=is_answer
    )


def _last_answer(row: EncodedRow) -> tuple[int, int]:
    """First token of the last answer, and the token behind it."""
    end = int(np.flatnonzero(row.is_answer)[-1]) + 1
    others = np.flatnonzero(~row.is_answer[:end])
    return (int(others[-1]) + 1 if len(others) else 0), end


def _columns(scores: RowScores) -> Mapping[str, list[Any]]:
    return {
        "loss_sum": list(scores.loss_sum),
        "answer_tokens": list(scores.answer_tokens),
        "correct_tokens": list(scores.correct_tokens),
        "is_whole": list(scores.is_whole),
    }


def _allowed(rows: Sequence[EncodedRow]) -> str:
    return f"a list of {len(rows)} finite numbers, one for each row"
