"""How a trial ended and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """The closed set of ends a trial can have.

    Only `stopped` is a comparison with other trials. `infeasible` and `diverged` say that the
    configuration itself cannot work, `failed` and `cancelled` say nothing about it.
    """

    COMPLETED = "completed"
    """Trained to the horizon."""
    STOPPED = "stopped"
    """Ended at a rung because others were better there."""
    INFEASIBLE = "infeasible"
    """Does not fit the accelerator's memory, even at half the micro-batch."""
    DIVERGED = "diverged"
    """The loss became non-finite."""
    FAILED = "failed"
    """An error that is not the configuration's, after all retries."""
    CANCELLED = "cancelled"
    """Ended by the user or by the budget."""


@dataclass(frozen=True)
class TrialOutcome:
    """An end with the sentence that explains it to a reader of the report."""

    outcome: Outcome
    reason: str
