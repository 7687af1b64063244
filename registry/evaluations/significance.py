"""Intervals of measures by the bootstrap over rows, and which evaluations can be compared.

Rows are drawn with replacement; the interval is cut from the draws' percentiles (Efron &
Tibshirani 1993, "An introduction to the bootstrap", chapter 13). For fewer than 40 rows it is
somewhat narrow. Differences of two evaluations have intervals of their own, in `improvement.py`:
the rows are paired, so that the difficulty of a row cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from registry.errors import NotComparableError
from registry.evaluations.evaluation import Evaluation
from trainables.contract import Formula, Numbers

_DRAWS = 10_000
_CELLS = 1 << 22
"""Counts in memory at once: 32 MiB, however many rows there are."""

_OF_GIVEN_ANSWERS = ("loss_sum", "correct_tokens", "accuracy")
"""Columns computed from given answers; all others come from generated answers."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval.

    Attributes:
        estimate: The number on all rows.
        low: Lower end.
        high: Upper end; estimate and ends are NaN if a row has no number.
        confidence: Share of such intervals that contain the true number.
        method: Computation that the lower end comes from.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    method: str = "percentile bootstrap"


def interval(
    evaluation: Evaluation,
    measure: str,
    confidence: float = 0.95,
    *,
    draws: int = _DRAWS,
    seed: int = 0,
) -> Interval:
    """The interval of a measure over other rows of the same kind.

    Raises:
        IntegrityError: There is no such measure, or the evaluation was read without examples.
    """
    columns = np.stack(evaluation.columns(measure), axis=1)
    formula = evaluation.measures[measure].formula
    sums = _resampled_sums(columns, draws, seed)
    whole = columns.sum(axis=0, keepdims=True)
    return _interval(
        _value(formula, whole[:, 0], whole[:, 1]),
        _value(formula, sums[:, 0], sums[:, 1]),
        confidence,
    )


def require_comparable(candidate: Evaluation, champion: Evaluation, measure: str) -> None:
    """Refuse evaluations whose measure cannot be compared.

    Raises:
        NotComparableError: The evaluations were not made on the same rows in the same way.
    """
    why_not = obstacle(candidate, champion, measure)
    if why_not:
        raise NotComparableError(
            f"measure {measure}: {why_not}; allowed: evaluations on the same rows in the "
            "same way. Evaluate both again."
        )


def obstacle(candidate: Evaluation, champion: Evaluation, measure: str) -> str:
    """Reason why a measure of two evaluations cannot be compared; empty if it can.

    Measures per token need the same tokens; measures per byte or per row need the same answers,
    cut at the same places; measures of generated texts need the same generation settings.
    """
    both = (candidate, champion)
    for side, one in zip(("candidate", "champion"), both, strict=True):
        if measure not in one.measures:
            return f"the {side} has no such measure but {', '.join(sorted(one.measures))}"
    new, old = (one.measures[measure].formula for one in both)
    if new != old:
        return "it is defined in two ways"
    rows = [f"{one.data.digest} ({one.data.rows} rows)" for one in both]
    if rows[0] != rows[1]:
        return f"the candidate has data {rows[0]}, the champion has {rows[1]}"
    ways = [_way_of(one, new) for one in both]
    for key in ways[0]:
        if ways[0][key] != ways[1][key]:
            return f"the candidate has {key} {ways[0][key]}, the champion has {ways[1][key]}"
    return _cut_apart(candidate, champion, new)


def _cut_apart(candidate: Evaluation, champion: Evaluation, formula: Formula) -> str:
    """Reason if two tokenizers or length limits cut the answers at different places."""
    if formula.of not in _OF_GIVEN_ANSWERS or formula.per == "answer_tokens":
        return ""
    new, old = (one.examples.get("answer_bytes") for one in (candidate, champion))
    return "" if new == old else "their answers were cut at different places"


def _way_of(evaluation: Evaluation, formula: Formula) -> dict[str, object]:
    """Settings that a measure depends on, besides the rows."""
    way = evaluation.data.tokens_record if formula.per == "answer_tokens" else {}
    if formula.of not in _OF_GIVEN_ANSWERS:
        way["generation"] = evaluation.generation
    return way


def _value(formula: Formula, of: Numbers, per: Numbers) -> Numbers:
    with np.errstate(divide="ignore", invalid="ignore"):
        return formula.scaled(of / per)


def _interval(whole: Numbers, drawn: Numbers, confidence: float) -> Interval:
    if not np.isfinite(whole).all():
        return Interval(estimate=math.nan, low=math.nan, high=math.nan, confidence=confidence)
    # A draw of rows without any answer token has no number.
    drawn = drawn[np.isfinite(drawn)]
    tail = (1 - confidence) / 2
    # Each end is one of the draws, not a mean of two, so that a monotone scale maps ends to ends.
    low, high = np.quantile(drawn, [tail, 1 - tail], method="inverted_cdf")
    return Interval(
        estimate=float(whole[0]), low=float(low), high=float(high), confidence=confidence
    )


def _resampled_sums(columns: Numbers, draws: int, seed: int) -> Numbers:
    """Sums of columns (rows, k) over rows drawn with replacement: (draws, k)."""
    # Column by column, so that equal columns have equal sums to the last bit.
    parts = [
        np.stack([counts @ column for column in columns.T.copy()], axis=1)
        for counts in _counts(len(columns), draws, seed)
    ]
    return np.concatenate(parts)


def _counts(rows: int, draws: int, seed: int) -> Iterator[Numbers]:
    """Counts of each row in each draw, in blocks of shape (draws, rows)."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _CELLS // rows)
    for start in range(0, draws, at_once):
        some = min(at_once, draws - start)
        cells = rng.integers(rows, size=(some, rows)) + rows * np.arange(some)[:, None]
        counts = np.bincount(cells.ravel(), minlength=some * rows)
        yield counts.reshape(some, rows).astype(np.float64)
