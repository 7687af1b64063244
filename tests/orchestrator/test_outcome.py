"""Tests of `orchestrator.outcome`."""

from typing import Any

import pytest

from orchestrator.outcome import TRAITS, Outcome, TrialOutcome, first_end, settle_end


@pytest.mark.parametrize(
    ("result", "error", "outcome"),
    [
        ({"step": 80}, False, Outcome.COMPLETED),
        ({"step": 20}, False, Outcome.STOPPED),
        ({"step": 20, "outcome": ""}, False, Outcome.STOPPED),
        ({"step": 20, "outcome": "diverged"}, False, Outcome.DIVERGED),
        ({"step": 80, "outcome": "infeasible"}, False, Outcome.INFEASIBLE),
        ({"step": 80}, True, Outcome.FAILED),
        (None, True, Outcome.FAILED),
        (None, False, Outcome.CANCELLED),
        ({}, False, Outcome.CANCELLED),
    ],
)
def test_last_result_tells_the_end(
    result: dict[str, Any] | None, error: bool, outcome: Outcome
) -> None:
    failure = "no memory" if error else None
    assert settle_end(result, horizon=80, error=failure).outcome is outcome


STOPPED = TrialOutcome(Outcome.STOPPED, "others were better")
BY_USER = TrialOutcome(Outcome.CANCELLED, "stopped by the user")
RAN_AWAY = TrialOutcome(Outcome.DIVERGED, "ran away")


@pytest.mark.parametrize(
    ("result", "decided", "end"),
    [
        ({"step": 20}, STOPPED, STOPPED),
        ({"step": 20, "outcome": "cancelled", "reason": "the sweep ended"}, BY_USER, BY_USER),
        ({}, BY_USER, BY_USER),
        ({"step": 80}, RAN_AWAY, RAN_AWAY),
        ({"step": 80}, STOPPED, TrialOutcome(Outcome.COMPLETED, "trained 80 steps")),
        (
            {"step": 20, "outcome": "infeasible", "reason": "no memory"},
            RAN_AWAY,
            TrialOutcome(Outcome.INFEASIBLE, "no memory"),
        ),
    ],
    ids=["stopped", "cancelled", "silent", "ran-away-at-last", "through", "broken"],
)
def test_what_was_decided_outside_counts_where_the_trial_cannot_know(
    result: dict[str, Any], decided: TrialOutcome, end: TrialOutcome
) -> None:
    assert settle_end(result, 80, decided) == end


def test_a_divergence_goes_before_what_the_user_asked_for() -> None:
    assert first_end(None, None) is None
    assert first_end(BY_USER, STOPPED) == BY_USER
    assert first_end(BY_USER, RAN_AWAY) == RAN_AWAY


def test_every_outcome_has_its_row() -> None:
    assert set(TRAITS) == set(Outcome)
    assert len({traits.color for traits in TRAITS.values()}) == len(Outcome)
