"""Intervals hold what they should, as often as they say, and only for what can be compared."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from registry.errors import NotComparableError
from registry.evaluations.evaluation import Evaluation
from registry.evaluations.significance import interval, obstacle, require_comparable
from tests.support.bundles import new_document

NewDocument = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluation() -> Callable[..., Evaluation]:
    def build(losses: Any, **more: Any) -> Evaluation:
        return Evaluation.from_document(new_document(losses=losses, **more))

    return build


def test_a_95_percent_interval_holds_the_true_mean_95_times_in_100(
    evaluation: Callable[..., Evaluation],
) -> None:
    rng, sets, rows = np.random.default_rng(1), 400, 60
    held = 0
    for seed in range(sets):
        found = interval(evaluation(rng.gamma(2.0, 1.0, rows)), "mean_loss", draws=400, seed=seed)
        held += found.low <= 2.0 <= found.high
    assert 0.91 <= held / sets <= 0.98


def test_ratios_of_sums_are_drawn_as_ratios(evaluation: Callable[..., Evaluation]) -> None:
    """Rows of one loss per token: whatever is drawn, the loss per token stays."""
    tokens = np.arange(1, 51)
    found = interval(evaluation(tokens * 0.5, tokens=tokens), "loss")
    assert (found.low, found.high) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found.estimate == pytest.approx(0.5)
    per_row = interval(evaluation(tokens * 0.5, tokens=tokens), "mean_loss")
    assert per_row.high - per_row.low > 1.0


def test_perplexity_is_the_exponential_of_the_loss_at_both_ends(
    evaluation: Callable[..., Evaluation],
) -> None:
    one = evaluation(np.random.default_rng(4).gamma(2.0, 1.0, 30))
    loss, perplexity = interval(one, "loss"), interval(one, "perplexity")
    assert (perplexity.low, perplexity.high) == (math.exp(loss.low), math.exp(loss.high))


def test_more_confidence_is_a_wider_interval_and_the_seed_decides(
    evaluation: Callable[..., Evaluation],
) -> None:
    one = evaluation(np.random.default_rng(5).gamma(2.0, 1.0, 40))
    narrow, wide = interval(one, "loss", 0.8), interval(one, "loss", 0.99)
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high
    assert interval(one, "loss") == interval(one, "loss")
    assert interval(one, "loss", seed=1) != interval(one, "loss")


def test_rows_without_a_number_have_no_interval(evaluation: Callable[..., Evaluation]) -> None:
    found = interval(evaluation([1.0, math.nan, 3.0]), "loss")
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_many_rows_do_not_need_memory_for_all_draws_at_once(
    evaluation: Callable[..., Evaluation],
) -> None:
    rows = 100_000
    one = evaluation(np.random.default_rng(6).gamma(2.0, 1.0, rows))
    began = time.monotonic()
    found = interval(one, "mean_loss", draws=100)
    assert time.monotonic() - began < 20
    # Of a mean: 1.96 standard errors to either side.
    expected = 2 * 1.96 * math.sqrt(2.0 / rows)
    assert found.high - found.low == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize(
    ("measure", "change", "why"),
    [
        ("loss", {"data": {"digest": "sha256:other"}}, "data sha256:other"),
        ("bits_per_byte", {"data": {"digest": "sha256:other"}}, "data sha256:other"),
        ("loss", {"data": {"max_tokens": 128}}, "max_tokens 128"),
        ("token_accuracy", {"data": {"tokenizer_digest": "sha256:t2"}}, "tokenizer_digest"),
        ("perplexity", {"data": {"template_digest": "sha256:t2"}}, "template_digest"),
        ("exact_match", {"generation": {"max_new_tokens": 8}}, "generation"),
        ("nothing", {}, "has no such measure"),
    ],
)
def test_what_was_measured_in_another_way_is_refused(
    evaluation: Callable[..., Evaluation], measure: str, change: dict[str, Any], why: str
) -> None:
    champion, candidate = evaluation([1.0, 2.0]), evaluation([0.5, 1.0], **change)
    assert why in obstacle(candidate, champion, measure)
    with pytest.raises(NotComparableError, match=why):
        require_comparable(candidate, champion, measure)


@pytest.mark.parametrize("measure", ["bits_per_byte", "exact_match", "accuracy"])
def test_numbers_that_do_not_count_tokens_compare_between_tokenizers(
    evaluation: Callable[..., Evaluation], measure: str
) -> None:
    other = {"tokenizer_digest": "sha256:t2", "max_tokens": 128}
    assert obstacle(evaluation([1.0, 2.0]), evaluation([1.0, 2.0], data=other), measure) == ""


def test_the_same_rows_in_another_order_are_other_data() -> None:
    """The digest is over the rows in order; a shorter file is other data too."""
    one = Evaluation.from_document(new_document(losses=[1.0, 2.0]))
    two = Evaluation.from_document(new_document(losses=[1.0, 2.0, 3.0]))
    assert "3 rows" in obstacle(two, one, "loss")


def test_answers_cut_at_different_places_are_not_compared(
    evaluation: Callable[..., Evaluation],
) -> None:
    """Another limit on tokens leaves other text of the same rows."""
    long = evaluation([1.0, 2.0], tokens=[4, 4], data={"max_tokens": 512})
    short = evaluation([1.0, 2.0], tokens=[4, 2], data={"max_tokens": 64})
    for measure in ("bits_per_byte", "accuracy"):
        assert "cut at different places" in obstacle(long, short, measure)
    assert "max_tokens" in obstacle(long, short, "loss")
    assert obstacle(long, short, "exact_match") == ""
