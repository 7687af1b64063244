"""Tests of `orchestrator.outcome`."""

from typing import Any

import pytest

from orchestrator.outcome import Outcome, infer_outcome


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
    assert infer_outcome(result, horizon=80, error=error) is outcome
