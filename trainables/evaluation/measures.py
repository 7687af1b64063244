"""What is measured of an adapter, each as a formula over columns with one entry for each row.

A measure's value is `scale(sum of its column / sum of another)`, so whoever holds the columns of
an evaluation document can compute it again: on all rows, on some, or on resampled ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainables.contract import Formula, Mode

Columns = Mapping[str, Sequence[Any]]
"""Numbers (`None` where one is not finite) or texts, one for each row, by name."""


def _mean(column: str) -> Formula:
    return Formula(of=column, per=None, scale="identity", mode="max")


MEASURES: dict[str, Formula] = {
    "loss": Formula(of="loss_sum", per="answer_tokens", scale="identity", mode="min"),
    "perplexity": Formula(of="loss_sum", per="answer_tokens", scale="exp", mode="min"),
    # Bytes are the same for every tokenizer. The end token costs bits and has no bytes.
    "bits_per_byte": Formula(of="loss_sum", per="answer_bytes", scale="bits", mode="min"),
    "token_accuracy": Formula(
        of="correct_tokens", per="answer_tokens", scale="identity", mode="max"
    ),
    "accuracy": _mean("accuracy"),
    "exact_match": _mean("exact_match"),
    "pattern_match": _mean("pattern_match"),
    "choice_match": _mean("choice_match"),
}
"""The measures there are; one is taken where its columns are."""

RESERVED = frozenset(
    {*MEASURES, "prediction", "reference"}
    | {column for one in MEASURES.values() for column in (one.of, one.per) if column is not None}
)
"""Names that a user's metric cannot have."""


def value_of(columns: Columns, formula: Formula) -> float | None:
    """The measure's value; `None` where it is not finite, or a row has none (`None` or NaN)."""
    of = columns[formula.of]
    per = [1] * len(of) if formula.per is None else columns[formula.per]
    if any(entry is None for entry in (*of, *per)) or sum(per) == 0:
        return None
    value = float(formula.scaled(math.fsum(of) / math.fsum(per)))
    return value if math.isfinite(value) else None


def measured(columns: Columns, own: Mapping[str, Mode]) -> dict[str, dict[str, Any]]:
    """Every measure whose columns are there, as an evaluation document holds it.

    Args:
        columns: What was measured of each row.
        own: Columns of a user's metrics and which way they are better; each gives a mean.
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
