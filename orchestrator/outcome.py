"""How a trial ended and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainables.contract import Outcome as Outcome


@dataclass(frozen=True)
class TrialOutcome:
    """An end with the sentence that explains it to a reader of the report."""

    outcome: Outcome
    reason: str


def infer_outcome(result: Mapping[str, Any] | None, horizon: int, error: bool = False) -> Outcome:
    """How a trial ended, from the last result it gave Ray Tune.

    A trial says its own end in `outcome`, except for a scheduler's stop, which it never hears of:
    a last result without one is `completed` at the horizon and `stopped` before it.

    Args:
        result: The last result; empty or `None` for a trial that gave none.
        horizon: Steps of a trial that is never stopped.
        error: Ray Tune gave the trial up.
    """
    if error:
        return Outcome.FAILED
    if not result or "step" not in result:
        return Outcome.CANCELLED
    if result.get("outcome"):
        return Outcome(result["outcome"])
    return Outcome.COMPLETED if result["step"] >= horizon else Outcome.STOPPED
