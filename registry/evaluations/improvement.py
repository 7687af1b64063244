"""Intervals of differences between two evaluations, valid for a few rows as well.

The promotion gate decides by these intervals; comparisons and reports show them.

Two intervals are computed, and the wider end of both is taken on either side:

- The sign-flip test, inverted. If the differences of rows are symmetric around the true
  improvement, its level is exact for any number of rows, any tails and any ties. Its ends are
  order statistics of the means of subsets of rows (Hartigan 1969, "Using subsample values as
  typical values", JASA 64).
- Student's t, corrected for skewness by a cubic (Hall 1992, "On the removal of skewness by
  transformation", JRSS B 54). It holds its level where one adapter is rarely much worse, and so
  the differences are not symmetric.

The percentile bootstrap is too narrow for both: with 8 rows, it puts an equal candidate above the
champion three times as often as it should. `benchmarks/gate_level.py` compares the methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from registry.evaluations.evaluation import Evaluation
from registry.evaluations.significance import Interval, require_comparable
from trainables.contract import Numbers

SIGN_FLIPS = "sign-flip test"
STUDENT = "skewness-corrected t"

_ALL_SUBSETS = 14
"""Up to this many rows all subsets are taken, beyond it a random sample of them."""

_BLOCKS = 256
"""More rows than this are put into as many blocks by chance, and the blocks are flipped."""

_DRAWS, _MOST_DRAWS = 1 << 16, 1 << 20
_DRAWS_BELOW = 32
"""Subsets that should lie beyond an end; fewer make the end depend on the seed."""

_CELLS = 1 << 22
_GRID_BITS = 40
"""Differences are rounded to this many bits below the largest number: ties become equal."""


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Ends of intervals, one for each data set.

    Attributes:
        low: Lower ends, of shape (sets,); minus infinity if the rows are too few for the level.
        high: Upper ends, of shape (sets,).
    """

    low: Numbers
    high: Numbers


def improvement_interval(
    candidate: Evaluation, champion: Evaluation, measure: str, *, confidence: float = 0.95
) -> Interval:
    """The candidate's improvement over the champion; above zero is better.

    Otherwise as `difference_interval`. Its `method` names the computation of the lower end.
    """
    require_comparable(candidate, champion, measure)
    sign = 1.0 if champion.measures[measure].formula.mode == "max" else -1.0
    return _oriented_interval(candidate, champion, measure, confidence, sign)


def difference_interval(
    new: Evaluation, old: Evaluation, measure: str, *, confidence: float = 0.95
) -> Interval:
    """The difference new - old of a measure, in the measure's unit.

    An end is infinite if the rows are too few for the confidence; see `least_rows`. For a
    perplexity, the old value is taken as known, so that perplexity and loss agree on what is
    better. The same evaluations give the same interval; estimate and ends are NaN if a row has no
    number.

    Raises:
        NotComparableError: The evaluations were not made on the same rows in the same way.
        IntegrityError: An evaluation was read without its examples.
    """
    require_comparable(new, old, measure)
    return _oriented_interval(new, old, measure, confidence, 1.0)


def _oriented_interval(
    new: Evaluation, old: Evaluation, measure: str, confidence: float, sign: float
) -> Interval:
    """The interval of `sign` times the difference."""
    formula = old.measures[measure].formula
    columns = new.columns(measure), old.columns(measure)
    if not all(np.isfinite(column).all() for pair in columns for column in pair):
        return Interval(estimate=math.nan, low=math.nan, high=math.nan, confidence=confidence)
    of, per = _differences(*columns)
    if not len(per):  # no row has an answer token
        return Interval(estimate=math.nan, low=math.nan, high=math.nan, confidence=confidence)
    of, level = sign * of[:, None], (1 - confidence) / 2
    flips, student = sign_flip_ends(of, per, level), student_ends(of, per, level)
    base = float(columns[1][0].sum() / columns[1][1].sum())

    def change(ratio: float) -> float:
        """Change of the measure, oriented by `sign`, if its ratio changes from `base`."""
        if formula.scale != "exp":
            return sign * float(formula.scaled(sign * ratio))
        with np.errstate(over="ignore"):
            return sign * float(np.exp(base) * np.expm1(sign * ratio))

    return Interval(
        estimate=change(float(of.sum() / per.sum())),
        low=change(min(float(student.low[0]), float(flips.low[0]))),
        high=change(max(float(student.high[0]), float(flips.high[0]))),
        confidence=confidence,
        method=STUDENT if student.low[0] < flips.low[0] else SIGN_FLIPS,
    )


def least_rows(confidence: float) -> int:
    """Number of rows from which on an interval can have a finite lower end."""
    return math.ceil(math.log2(2 / (1 - confidence)) - 1e-9)


def sign_flip_ends(
    of: Numbers, per: Numbers, level: float, *, draws: int | None = None, seed: int = 0
) -> Ends:
    """Ends of the sums' ratio by sign flips; beyond each, the truth lies with chance `level`.

    A ratio θ is refused if few subsets of the rows have a ratio as small as θ: in exactly these
    subsets, flipping the signs of `of − θ · per` does not make the sum smaller.

    Args:
        of: Numerators, of shape (rows, sets).
        per: Denominators, of shape (rows,), the same for all sets.
        level: Chance, below 0.5.
        draws: Subsets to sample where there are too many; by default by the level.
        seed: Of blocks and sample.
    """
    rng = np.random.default_rng(seed)
    columns = _blocks(np.column_stack([per, of]), rng)
    rows = len(columns)
    wanted = draws or min(max(_DRAWS, math.ceil(_DRAWS_BELOW / level)), _MOST_DRAWS)
    is_sample = rows > _ALL_SUBSETS
    if is_sample:
        sums = np.concatenate([block @ columns for block in _sampled(rows, wanted - 1, rng)])
        # The empty subset stands for the rows as they are; counting it keeps the level exact.
        sums = np.concatenate([np.zeros((1, sums.shape[1])), sums])
    else:
        subsets = (np.arange(1 << rows)[:, None] >> np.arange(rows)) & 1
        sums = subsets.astype(np.float64) @ columns
    beyond = math.floor(level * len(sums) + 1e-9)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = sums[:, 1:] / sums[:, :1]
    is_empty = sums[:, :1] == 0
    low = np.partition(np.where(is_empty, -math.inf, ratios), beyond, axis=0)[beyond]
    high = np.partition(np.where(is_empty, math.inf, ratios), -1 - beyond, axis=0)[-1 - beyond]
    return Ends(low=low, high=high)


def student_ends(of: Numbers, per: Numbers, level: float) -> Ends:
    """Ends of the sums' ratio by Student's t, corrected for skewness; see `sign_flip_ends`."""
    rows = len(of)
    if rows < 2:
        nothing = np.full(of.shape[1], math.inf)
        return Ends(low=-nothing, high=nothing)
    ratio = of.sum(axis=0) / per.sum()
    rest = of - ratio * per[:, None]
    spread = np.sqrt((rest**2).mean(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        skewness = np.nan_to_num((rest**3).mean(axis=0) / spread**3)
    deviation = spread * math.sqrt(rows / (rows - 1)) / per.mean()
    quantile = float(stdtrit(rows - 1, 1 - level)) / math.sqrt(rows)
    return Ends(
        low=ratio - deviation * _without_skewness(quantile, skewness, rows),
        high=ratio - deviation * _without_skewness(-quantile, skewness, rows),
    )


def _without_skewness(quantile: float, skewness: Numbers, rows: int) -> Numbers:
    """Inverse of Hall's cubic x + γ x²/3 + γ² x³/27 + γ/(6 rows), for skewness γ."""
    gamma = np.where(np.abs(skewness) < 1e-6, 1e-6, skewness)
    root: Numbers = np.cbrt(1 + gamma * (quantile - gamma / (6 * rows)))
    return 3 / gamma * (root - 1)


def _differences(
    new: tuple[Numbers, Numbers], old: tuple[Numbers, Numbers]
) -> tuple[Numbers, Numbers]:
    """Columns whose ratio of sums is the difference of two ratios of sums, each (rows,)."""
    if np.array_equal(new[1], old[1]):
        of, per = new[0] - old[0], new[1]
    else:  # linearized: each row's share in either ratio
        ratios = [of.sum() / per.sum() for of, per in (new, old)]
        shares = [
            ratio + (of - ratio * per) / per.mean()
            for ratio, (of, per) in zip(ratios, (new, old), strict=True)
        ]
        of, per = shares[0] - shares[1], np.ones(len(shares[0]))
    largest = max(float(np.abs(new[0]).max()), float(np.abs(old[0]).max()), 1e-300)
    step = 2.0 ** (math.ceil(math.log2(largest)) - _GRID_BITS)
    is_used = (of != 0) | (per != 0)
    return (np.round(of / step) * step)[is_used], per[is_used]


def _blocks(columns: Numbers, rng: np.random.Generator) -> Numbers:
    """The rows, or sums over blocks of rows: of shape (at most 256, k)."""
    rows = len(columns)
    if rows <= _BLOCKS:
        return columns
    block = rng.permutation(rows) % _BLOCKS
    return np.stack([np.bincount(block, column, _BLOCKS) for column in columns.T], axis=1)


def _sampled(rows: int, draws: int, rng: np.random.Generator) -> Iterator[Numbers]:
    """Random subsets as zeros and ones, in pieces of shape (draws, rows)."""
    at_once = _CELLS // rows
    for start in range(0, draws, at_once):
        some = min(at_once, draws - start)
        packed = rng.integers(256, size=(some, -(-rows // 8)), dtype=np.uint8)
        yield np.unpackbits(packed, axis=1, count=rows).astype(np.float64)
