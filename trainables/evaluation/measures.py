"""Measures of an adapter, each a formula over columns with one entry for each row.

A measure's value is `scale(sum of its column / sum of another)`. A reader with the columns of an
evaluation document can therefore compute the value again, on all rows, on a part or resampled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainables.contract import Formula, Mode

Columns = Mapping[str, Sequence[Any]]
"""Columns by name, one entry for each row: texts, or numbers with `None` for non-finite ones."""


def _mean(column: str) -> Formula:
    return Formula(of=column, per=None, scale="identity", mode="max")


MEASURES: dict[str, Formula] = {
    "loss": Formula(of="loss_sum", per="answer_tokens", scale="identity", mode="min"),
    "perplexity": Formula(of="loss_sum", per="answer_tokens", scale="exp", mode="min"),
    # Bytes do not depend on the tokenizer. The end token costs bits and has no bytes.
    "bits_per_byte": Formula(of="loss_sum", per="answer_bytes", scale="bits", mode="min"),
    "token_accuracy": Formula(
        of="correct_tokens", per="answer_tokens", scale="identity", mode="max"
    ),
    "accuracy": _mean("accuracy"),
    "exact_match": _mean("exact_match"),
    "pattern_match": _mean("pattern_match"),
    "choice_match": _mean("choice_match"),
}
"""Built-in measures; a measure is computed where its columns exist."""

RESERVED = frozenset(
    {*MEASURES, "prediction", "reference"}
    | {column for one in MEASURES.values() for column in (one.of, one.per) if column is not None}
)
"""Names that a user's metric may not take."""


def value_of(columns: Columns, formula: Formula) -> float | None:
    """Value of the measure; `None` if it is not finite, or a row's entry is `None` or NaN."""
    of = columns[formula.of]
    per = [1] * len(of) if formula.per is None else columns[formula.per]
    if any(entry is None for entry in (*of, *per)) or sum(per) == 0:
        return None
    value = float(formula.scaled(math.fsum(of) / math.fsum(per)))
    return value if math.isfinite(value) else None


def measured(columns: Columns, own: Mapping[str, Mode]) -> dict[str, dict[str, Any]]:
    """Records of all measures whose columns exist, in the form of an evaluation document.

    Args:
        columns: Columns of the evaluated rows.
        own: Mode of each user metric, by its column; the measure is the mean of the column.
    """
    formulas = {
        name: formula
        for name, formula in MEASURES.items()
        if formula.of in columns and (formula.per is None or formula.per in columns)
    }
    formulas |= {
        name: Formula(of=name, per=None, scale="identity", mode=mode) for name, mode in own.items()
    }
    return {
        name: {"value": value_of(columns, formula), **dataclasses.asdict(formula)}
        for name, formula in formulas.items()
    }
