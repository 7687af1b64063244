"""Scores of serving forms, as the events of a sweep have them."""

import math

from orchestrator.finals.form_scores import Estimate, list_form_scores

TRAINED = {"loss": 0.5, "loss.low": 0.4, "loss.high": 0.6, "accuracy": 0.8}
MERGED = {
    "loss": 0.6,
    "accuracy": 0.7,
    "loss.difference": 0.11,
    "loss.difference.low": 0.05,
    "loss.difference.high": 0.15,
}


def test_scores_come_by_trial_measure_and_form_with_the_trained_one_first():
    scores = list_form_scores({4: {"trained": TRAINED}, 2: {"merged": MERGED, "trained": TRAINED}})
    assert [(one.trial, one.measure, one.form) for one in scores] == [
        (2, "loss", "trained"),
        (2, "loss", "merged"),
        (2, "accuracy", "trained"),
        (2, "accuracy", "merged"),
        (4, "loss", "trained"),
        (4, "accuracy", "trained"),
    ]


def test_a_measured_difference_goes_before_a_computed_one():
    scores = {
        (one.measure, one.form): one
        for one in list_form_scores({0: {"trained": TRAINED, "merged": MERGED}})
    }
    assert scores["loss", "trained"].score == Estimate(0.5, 0.4, 0.6)
    assert scores["loss", "trained"].difference is None
    assert scores["loss", "merged"].difference == Estimate(0.11, 0.05, 0.15)
    computed = scores["accuracy", "merged"].difference
    assert computed is not None
    assert math.isclose(computed.value, -0.1)
    assert (computed.low, computed.high) == (None, None)


def test_what_is_not_finite_or_not_there_is_no_score():
    forms = {0: {"merged": {"loss": math.nan, "accuracy": 0.5}, "unknown": {"loss": 1.0}}}
    scores = list_form_scores(forms)
    assert [(one.measure, one.form) for one in scores] == [
        ("loss", "unknown"),
        ("accuracy", "merged"),
    ]
    assert [one.difference for one in scores] == [None, None]


def test_nothing_measured_is_nothing_listed():
    assert list_form_scores({}) == []
    assert list_form_scores({3: {}}) == []
