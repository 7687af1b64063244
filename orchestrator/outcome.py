"""How a trial ends and what follows from that.

A new outcome is a member of `Outcome` and a row of `TRAITS`; search, finals and reports read the
row. (A run's status in MLflow is in `registry.tracking`.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainables.contract import Outcome as Outcome

Lesson = Literal["values", "worst", "nothing"]
"""What a sampler learns: the measured values, a value worse than all others, or nothing."""


@dataclass(frozen=True, kw_only=True)
class OutcomeTraits:
    """What follows from an outcome.

    Attributes:
        color: On pages and plots; from Okabe and Ito's palette, which readers with any colour
            vision can tell apart.
        style: In a terminal, as `rich` names it.
        lesson: What a sampler learns from a trial with this end.
        can_leave_adapter: The trial's last state is an adapter like any other.
        is_decided_outside: The scheduler or the user ends the trial, which never hears why.
        may_be_mended: The cause can be the machine or the set-up: the same configuration may work
            in a later run.
    """

    color: str
    style: str
    lesson: Lesson
    can_leave_adapter: bool = False
    is_decided_outside: bool = False
    may_be_mended: bool = False


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
        color="#cc79a7", style="magenta", lesson="worst", may_be_mended=True
    ),
    Outcome.FAILED: OutcomeTraits(
        color="#000000", style="bold red", lesson="nothing", may_be_mended=True
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
    """An outcome with a sentence for readers of the report."""

    outcome: Outcome
    reason: str


def can_leave_adapter(outcome: Outcome | None) -> bool:
    """Whether a trial with this outcome can leave an adapter; `False` without an outcome."""
    return outcome is not None and TRAITS[outcome].can_leave_adapter


def first_end(*ends: TrialOutcome | None) -> TrialOutcome | None:
    """The end that counts of several: a divergence if any, otherwise the first given end."""
    given = [end for end in ends if end is not None]
    diverged = [end for end in given if end.outcome is Outcome.DIVERGED]
    return next(iter([*diverged, *given]), None)


def settle_end(
    result: Mapping[str, Any] | None,
    horizon: int,
    decided: TrialOutcome | None = None,
    error: str | None = None,
) -> TrialOutcome:
    """How and why a trial ended: the one answer for the search and for the log.

    A trial says its own end in `outcome`, except for an end that was decided outside of it: a last
    result without an outcome is `completed` at the horizon and `stopped` before it.

    Args:
        result: The last result that Ray Tune has; empty or `None` for a trial that gave none.
        horizon: Steps of a trial that is never stopped.
        decided: What the scheduler or the user decided, if either did.
        error: Last line of the error after which Ray Tune gave the trial up; `None` without one.
    """
    if error is not None:
        return TrialOutcome(Outcome.FAILED, f"its process failed: {error}")
    if not result or "step" not in result:  # Ray Tune's own keys are there from the start
        return decided or TrialOutcome(Outcome.CANCELLED, "ended before its first report")
    step = result["step"]
    reached = Outcome.COMPLETED if step >= horizon else Outcome.STOPPED
    outcome = Outcome(result.get("outcome") or reached)
    if decided is not None and (
        TRAITS[outcome].is_decided_outside
        or (outcome is Outcome.COMPLETED and decided.outcome is Outcome.DIVERGED)
    ):
        return decided  # a divergence with the last steps is no completion
    if outcome is Outcome.STOPPED and not result.get("outcome"):
        return TrialOutcome(outcome, f"others were better at step {step}")
    return TrialOutcome(outcome, result.get("reason") or f"trained {step} steps")
