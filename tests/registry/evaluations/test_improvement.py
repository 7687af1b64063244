"""The gate's interval holds its level for few rows, heavy tails, ties and many challenges."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from registry.errors import NotComparableError
from registry.evaluations.evaluation import Evaluation
from registry.evaluations.gate import PromotionRule, confidence_of
from registry.evaluations.improvement import (
    Ends,
    difference_interval,
    improvement_interval,
    least_rows,
    sign_flip_ends,
    student_ends,
)
from tests.support.bundles import new_document

NewDocument = Callable[..., dict[str, Any]]
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
LEVEL = 0.025
SETS, DRAWS = 1000, 1 << 11

SYMMETRIC: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "two-degrees": lambda rng, shape: rng.standard_t(2, size=shape),
    "cauchy": lambda rng, shape: rng.standard_cauchy(size=shape),
    "right-or-wrong": lambda rng, shape: rng.choice([-1.0, 0, 0, 1], size=shape),
    "coin": lambda rng, shape: rng.choice([-1.0, 1.0], size=shape),
    "rare-disagreement": lambda rng, shape: rng.choice([-1.0, *18 * [0], 1], size=shape),
    "rare-loss": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.05),
}  # fmt: skip

# Differences with mean 0 that are rarely much worse: of skewness -1.4 and -2.
SKEWED: dict[str, Draw] = {
    "gamma": lambda rng, shape: 2 - rng.gamma(2, size=shape),
    "exponential": lambda rng, shape: 1 - rng.exponential(size=shape),
}


def gate_ends(of: np.ndarray, level: float = LEVEL, draws: int = DRAWS) -> Ends:
    per = np.ones(len(of))
    flips, student = sign_flip_ends(of, per, level, draws=draws), student_ends(of, per, level)
    return Ends(low=np.minimum(flips.low, student.low), high=np.maximum(flips.high, student.high))


def share_promoted(of: np.ndarray, level: float = LEVEL, draws: int = DRAWS) -> float:
    return float(np.mean(gate_ends(of, level, draws).low > 1e-9))


@pytest.mark.parametrize("draw", SYMMETRIC.values(), ids=SYMMETRIC.keys())
def test_equal_adapters_are_promoted_no_more_often_than_the_level_says(draw: Draw) -> None:
    """In 1,000 sets each: 2.5 %, and 1.5 % (three standard errors) for this test's own chance."""
    rng = np.random.default_rng(1)
    for rows in (5, 8, 12, 20, 40, 200):
        assert share_promoted(draw(rng, (rows, SETS))) <= 0.04, rows


@pytest.mark.parametrize(
    ("kind", "rows", "most"),
    [
        ("gamma", 8, 0.07), ("gamma", 20, 0.05), ("gamma", 200, 0.04),
        ("exponential", 8, 0.085), ("exponential", 20, 0.06), ("exponential", 200, 0.045),
    ],
)  # fmt: skip
def test_skewed_differences_exceed_the_level_by_little(kind: str, rows: int, most: float) -> None:
    """No test of a mean holds its level for every skewed distribution and few rows."""
    of = SKEWED[kind](np.random.default_rng(2), (rows, SETS))
    assert share_promoted(of) <= most
    flips_alone = sign_flip_ends(of, np.ones(rows), LEVEL, draws=DRAWS).low > 1e-9
    assert share_promoted(of) <= np.mean(flips_alone)


@pytest.mark.parametrize("rows", [8, 40])
def test_ten_equal_challengers_together_keep_the_level(rows: int) -> None:
    """At 2.5 % each, one of ten would be promoted with a chance of 10 % to 22 %."""
    rng, sets = np.random.default_rng(3), 300
    champion = rng.laplace(size=(rows, sets))
    promoted = np.zeros(sets, dtype=bool)
    alone = np.zeros(sets, dtype=bool)
    for number in range(1, 11):
        of = champion - rng.laplace(size=(rows, sets))
        level = (1 - confidence_of(number, PromotionRule())) / 2
        promoted |= gate_ends(of, level, 1 << 13).low > 0
        alone |= gate_ends(of, LEVEL, 1 << 11).low > 0
    assert promoted.mean() <= 0.045
    assert alone.mean() >= 0.08


@pytest.mark.parametrize(
    ("rows", "size", "least"), [(8, 2.0, 0.9), (20, 1.0, 0.9), (80, 0.5, 0.95)]
)
def test_a_clear_improvement_is_found(rows: int, size: float, least: float) -> None:
    of = np.random.default_rng(4).normal(size, 1.0, (rows, SETS))
    assert share_promoted(of, LEVEL / 2) >= least


def test_the_interval_holds_the_true_improvement() -> None:
    of = np.random.default_rng(5).standard_t(3, size=(20, SETS)) + 0.3
    ends = gate_ends(of)
    assert 0.93 <= np.mean((ends.low <= 0.3) & (ends.high >= 0.3)) <= 0.98


def test_ends_of_few_rows_are_those_of_all_flips() -> None:
    of = np.random.default_rng(6).normal(0.4, 1.0, (8, 1))
    signs = 1 - 2.0 * ((np.arange(256)[:, None] >> np.arange(8)) & 1)
    low = float(sign_flip_ends(of, np.ones(8), LEVEL).low[0])
    for theta, is_refused in ((low - 1e-9, True), (low + 1e-9, False)):
        rest = of[:, 0] - theta
        chance = np.mean(signs @ rest >= rest.sum() - 1e-12)
        assert (chance <= LEVEL) == is_refused


@pytest.mark.parametrize("rows", [5, 14, 15, 300])
def test_ends_mirror_and_move_with_the_rows(rows: int) -> None:
    of, per = np.random.default_rng(7).normal(size=(rows, 1)), np.ones(rows)
    for ends_of in (sign_flip_ends, student_ends):
        ends, mirrored, moved = (ends_of(one, per, 0.1) for one in (of, -of, of + 1))
        assert mirrored.low == pytest.approx(-ends.high)
        assert moved.low == pytest.approx(ends.low + 1)


@pytest.fixture
def evaluation() -> Callable[..., Evaluation]:
    def build(losses: Any, **more: Any) -> Evaluation:
        return Evaluation.from_document(new_document(losses=losses, **more))

    return build


@pytest.mark.parametrize("measure", ["loss", "perplexity", "bits_per_byte", "token_accuracy"])
@pytest.mark.parametrize("rows", [5, 30])
def test_the_same_twice_is_never_better(
    evaluation: Callable[..., Evaluation], measure: str, rows: int
) -> None:
    one = evaluation(np.random.default_rng(8).gamma(2.0, 1.0, rows))
    found = improvement_interval(one, one, measure)
    assert found.estimate == 0.0
    assert found.low <= 0.0 <= found.high


def test_a_constant_difference_is_a_point(evaluation: Callable[..., Evaluation]) -> None:
    hardness = np.random.default_rng(9).gamma(2.0, 1.0, 30)
    found = improvement_interval(evaluation(hardness - 0.1), evaluation(hardness), "mean_loss")
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1))


def test_ties_are_ties_whatever_their_last_bits(evaluation: Callable[..., Evaluation]) -> None:
    """0.3 - 0.2 is not 0.1 in floats; five gains and one loss of a tenth are not significant."""
    old, new = [0.3] * 5 + [0.1], [0.2] * 5 + [0.2]
    found = improvement_interval(evaluation(new), evaluation(old), "mean_loss", confidence=0.9)
    assert found.low <= 0


@pytest.mark.parametrize(("gains", "is_better"), [(5, False), (6, False), (7, True)])
def test_rare_disagreements_count_and_equal_rows_do_not(
    evaluation: Callable[..., Evaluation], gains: int, *, is_better: bool
) -> None:
    old = np.ones(200)
    new = np.where(np.arange(200) < gains, 0.0, old)
    found = improvement_interval(evaluation(new), evaluation(old), "loss", confidence=0.975)
    assert (found.low > 0) == is_better


def test_one_wild_row_decides_nothing(evaluation: Callable[..., Evaluation]) -> None:
    old = np.random.default_rng(10).gamma(2.0, 1.0, 40)
    new = old + np.random.default_rng(11).normal(0.0, 0.1, 40)
    new[0] -= 1e6
    assert improvement_interval(evaluation(new), evaluation(old), "loss").low <= 0


def test_loss_and_perplexity_agree(evaluation: Callable[..., Evaluation]) -> None:
    rng = np.random.default_rng(12)
    old = rng.gamma(2.0, 1.0, 60)
    one = evaluation(old - 0.2 + rng.normal(0.0, 0.5, 60)), evaluation(old)
    loss, perplexity = (improvement_interval(*one, name) for name in ("loss", "perplexity"))
    before = one[1].measures["loss"].value
    assert perplexity.low == pytest.approx(math.exp(before) - math.exp(before - loss.low))
    values = [each.measures["perplexity"].value for each in one]
    assert perplexity.estimate == pytest.approx(values[1] - values[0])


def test_many_even_rows_give_what_the_bootstrap_gives(
    evaluation: Callable[..., Evaluation],
) -> None:
    rng = np.random.default_rng(13)
    tokens, old = rng.integers(1, 20, 2000), rng.gamma(2.0, 1.0, 2000)
    both = (
        evaluation(old + rng.normal(-0.1, 0.5, 2000), tokens=tokens),
        evaluation(old, tokens=tokens),
    )
    found = difference_interval(*both, "loss")
    new, old_columns = (np.stack(one.columns("loss")) for one in both)
    draws = rng.integers(2000, size=(1000, 2000))
    drawn = [
        new[0, rows].sum() / new[1, rows].sum() - old_columns[0, rows].sum() / new[1, rows].sum()
        for rows in draws
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low, rel=0.1), pytest.approx(high, rel=0.1))


def test_improvement_is_the_difference_towards_the_better(
    evaluation: Callable[..., Evaluation],
) -> None:
    rng = np.random.default_rng(15)
    new, old = (evaluation(rng.gamma(2.0, 1.0, 50)) for _ in range(2))
    for measure, sign in (("loss", -1), ("perplexity", -1), ("token_accuracy", 1)):
        found = difference_interval(new, old, measure)
        better = improvement_interval(new, old, measure)
        ends = sorted((sign * better.low, sign * better.high))
        assert ends == pytest.approx([found.low, found.high])
        assert found.estimate == pytest.approx(sign * better.estimate)


def test_rows_without_a_number_have_no_difference(evaluation: Callable[..., Evaluation]) -> None:
    found = difference_interval(evaluation([1.0, math.nan]), evaluation([1.0, 2.0]), "loss")
    assert math.isnan(found.estimate)
    assert math.isnan(found.low)


def test_thousands_of_rows_take_well_under_a_second(evaluation: Callable[..., Evaluation]) -> None:
    rng = np.random.default_rng(14)
    both = evaluation(rng.gamma(2.0, 1.0, 5000)), evaluation(rng.gamma(2.0, 1.0, 5000))
    began = time.process_time()
    found = improvement_interval(*both, "loss")
    assert time.process_time() - began < 1.0
    assert found == improvement_interval(*both, "loss")


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.975, 0.9995])
def test_the_rows_that_a_level_needs_are_those_said(confidence: float) -> None:
    rows = least_rows(confidence)
    for count, is_enough in ((rows, True), (rows - 1, False)):
        low = sign_flip_ends(np.ones((count, 1)), np.ones(count), (1 - confidence) / 2).low[0]
        assert bool(np.isfinite(low)) == is_enough


def test_other_rows_are_not_compared(evaluation: Callable[..., Evaluation]) -> None:
    with pytest.raises(NotComparableError, match="data sha256:other"):
        improvement_interval(
            evaluation([1.0], data={"digest": "sha256:other"}), evaluation([1.0]), "loss"
        )
