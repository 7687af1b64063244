"""Intervals of measures by the bootstrap over rows, and which evaluations can be compared.

Rows are drawn with replacement; the interval is cut from the draws' percentiles (Efron &
Tibshirani 1993, "An introduction to the bootstrap", chapter 13). For fewer than 40 rows it is
somewhat narrow. Differences of two evaluations have intervals of their own, in `improvement.py`:
the rows are paired, so that the difficulty of a row cancels out.
"""

from __future__ import annotations

import math
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
    # One row of sums over all rows, then a row for each draw.
    sums = np.concatenate(
        [columns.sum(axis=0, keepdims=True), _resampled_sums(columns, draws, seed)]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        values = formula.scaled(sums[:, 0] / sums[:, 1])
    estimate, drawn = float(values[0]), values[1:]
    if not math.isfinite(estimate):
        return Interval(estimate=math.nan, low=math.nan, high=math.nan, confidence=confidence)
    # A draw of rows without any answer token has no number.
    drawn = drawn[np.isfinite(drawn)]
    tail = (1 - confidence) / 2
    # Each end is one of the draws, not a mean of two, so that a monotone scale maps ends to ends.
    low, high = np.quantile(drawn, [tail, 1 - tail], method="inverted_cdf")
    return Interval(estimate=estimate, low=float(low), high=float(high), confidence=confidence)


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
        return "the two evaluations define it in two ways"
    rows = [f"{one.data.digest} ({one.data.rows} rows)" for one in both]
    if rows[0] != rows[1]:
        return f"the candidate has data {rows[0]}, the champion has {rows[1]}"
    settings = [_settings_of(one, new) for one in both]
    for key, value in settings[0].items():
        if value != settings[1][key]:
            return f"the candidate has {key} {value}, the champion has {settings[1][key]}"
    # Two tokenizers or length limits may cut an answer at different places.
    lengths = [one.examples.get("answer_bytes") for one in both]
    needs_lengths = new.of in _OF_GIVEN_ANSWERS and new.per != "answer_tokens"
    is_cut_apart = needs_lengths and lengths[0] != lengths[1]
    return "their answers were cut at different places" if is_cut_apart else ""


def _settings_of(evaluation: Evaluation, formula: Formula) -> dict[str, object]:
    """Settings that a measure depends on, besides the rows."""
    settings = evaluation.data.tokens_record if formula.per == "answer_tokens" else {}
    if formula.of not in _OF_GIVEN_ANSWERS:
        settings["generation"] = evaluation.generation
    return settings


def _resampled_sums(columns: Numbers, draws: int, seed: int) -> Numbers:
    """Sums of columns (rows, k) over rows drawn with replacement: (draws, k)."""
    rng = np.random.default_rng(seed)
    rows = len(columns)
    at_once = max(1, _CELLS // rows)
    sums = []
    for start in range(0, draws, at_once):
        some = min(at_once, draws - start)
        cells = rng.integers(rows, size=(some, rows)) + rows * np.arange(some)[:, None]
        counts = np.bincount(cells.ravel(), minlength=some * rows)
        counts_of_draws = counts.reshape(some, rows).astype(np.float64)
        # Column by column, so that equal columns have equal sums to the last bit.
        sums.append(np.stack([counts_of_draws @ column for column in columns.T.copy()], axis=1))
    return np.concatenate(sums)
