"""Outcomes of trials, and the effect of each outcome on the search, the finals and reports.

A new outcome needs a member of `Outcome` and a row of `TRAITS`. (`registry.tracking.tracker` holds
the status of the run in MLflow for each outcome.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainables.contract import Outcome as Outcome

Lesson = Literal["values", "worst", "nothing"]
"""Result that a sampler gets: the measured values, a value worse than all others, or nothing."""


@dataclass(frozen=True, kw_only=True)
class OutcomeTraits:
    """Effects of an outcome.

    Attributes:
        color: Colour on pages and plots, from the palette of Okabe and Ito: readers with any
            colour vision can tell its colours apart.
        style: Style in a terminal, as a style name of `rich`.
        lesson: Result that a sampler gets from a trial with this outcome.
        can_leave_adapter: Whether the trial's last state is a usable adapter.
        is_decided_outside: Whether the scheduler or the user ends the trial; the trial itself
            does not learn the reason.
        may_be_corrected: Whether the machine or the set-up can be the cause: the same
            configuration may work in a later run.
    """

    color: str
    style: str
    lesson: Lesson
    can_leave_adapter: bool = False
    is_decided_outside: bool = False
    may_be_corrected: bool = False


TRAITS: Mapping[Outcome, OutcomeTraits] = {
    Outcome.COMPLETED: OutcomeTraits(
        color="#0072b2", style="green", lesson="values", can_leave_adapter=True
    ),
    Outcome.STOPPED: OutcomeTraits(
        color="#e69f00",
        style="yellow",
        lesson="values",
        can_leave_adapter=True,
        is_decided_outside=True,
    ),
    Outcome.DIVERGED: OutcomeTraits(color="#d55e00", style="red", lesson="worst"),
    Outcome.INFEASIBLE: OutcomeTraits(
        color="#cc79a7", style="magenta", lesson="worst", may_be_corrected=True
    ),
    Outcome.FAILED: OutcomeTraits(
        color="#000000", style="bold red", lesson="nothing", may_be_corrected=True
    ),
    Outcome.CANCELLED: OutcomeTraits(
        color="#999999",
        style="dim",
        lesson="nothing",
        can_leave_adapter=True,
        is_decided_outside=True,
    ),
}
"""Outcomes in the order in which tables show trials without a rank."""


@dataclass(frozen=True)
class TrialOutcome:
    """An outcome and its reason, as a sentence for the report."""

    outcome: Outcome
    reason: str


def can_leave_adapter(outcome: Outcome | None) -> bool:
    """Whether a trial with this outcome can leave an adapter; `False` without an outcome."""
    return outcome is not None and TRAITS[outcome].can_leave_adapter


def first_end(*ends: TrialOutcome | None) -> TrialOutcome | None:
    """The end that counts among several: a divergence if any, otherwise the first given end."""
    given = [end for end in ends if end is not None]
    diverged = [end for end in given if end.outcome is Outcome.DIVERGED]
    return next(iter([*diverged, *given]), None)


def settle_end(
    result: Mapping[str, Any] | None,
    horizon: int,
    decided: TrialOutcome | None = None,
    error: str | None = None,
) -> TrialOutcome:
    """How and why a trial ended; the search and the log both use this answer.

    A trial reports its own end in `outcome`, but does not report an end decided by the scheduler
    or the user: a last result without `outcome` means `completed` at the horizon, and `stopped`
    before the horizon.

    Args:
        result: The last result in Ray Tune; empty or `None` for a trial without a result.
        horizon: Steps of a trial that is never stopped.
        decided: Decision of the scheduler or the user, if any.
        error: Last line of the error that made Ray Tune give up the trial; `None` without error.
    """
    if error is not None:
        return TrialOutcome(Outcome.FAILED, f"its process failed: {error}")
    if not result or "step" not in result:  # the first result has keys of Ray Tune only
        return decided or TrialOutcome(Outcome.CANCELLED, "ended before its first report")
    step = result["step"]
    reached = Outcome.COMPLETED if step >= horizon else Outcome.STOPPED
    outcome = Outcome(result.get("outcome") or reached)
    if decided is not None and (
        TRAITS[outcome].is_decided_outside
        or (outcome is Outcome.COMPLETED and decided.outcome is Outcome.DIVERGED)
    ):
        return decided  # a trial that diverged in its last steps has not completed
    if outcome is Outcome.STOPPED and not result.get("outcome"):
        return TrialOutcome(outcome, f"others were better at step {step}")
    return TrialOutcome(outcome, result.get("reason") or f"trained {step} steps")
