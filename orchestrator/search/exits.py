"""Reasons to end a trial that depend on its own reports only: divergence and overfitting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from orchestrator.outcome import Outcome, TrialOutcome
from orchestrator.spec.sections import ExitSpec
from orchestrator.wording import format_metric

StepMetrics = Mapping[str, float]
"""`step` and the metrics of that step."""


def find_exit(exits: ExitSpec, reports: Sequence[StepMetrics]) -> TrialOutcome | None:
    """Reason to end a trial at its last report; `None` to continue.

    Args:
        exits: Conditions that end a trial.
        reports: Reports of the trial, in order of steps.
    """
    return _find_divergence(exits.divergence, reports) or _find_overfitting(
        exits.overfitting, reports
    )


def _find_divergence(factor: float, reports: Sequence[StepMetrics]) -> TrialOutcome | None:
    last, first = reports[-1], reports[0].get("eval_loss", 0.0)
    loss, step = last.get("eval_loss", 0.0), last["step"]
    if not math.isfinite(loss):
        return TrialOutcome(Outcome.DIVERGED, f"eval_loss is {loss} at step {step}")
    if not factor or first <= 0 or loss <= factor * first:
        return None
    shown = f"eval_loss {format_metric(loss)} at step {step}"
    return TrialOutcome(
        Outcome.DIVERGED,
        f"{shown} is more than {factor:g} times the first, {format_metric(first)}",
    )


def _find_overfitting(patience: int, reports: Sequence[StepMetrics]) -> TrialOutcome | None:
    """Early stopping with patience (Prechelt 1998, "Early Stopping - But When?")."""
    if not patience or not all("eval_loss" in one and "train_loss" in one for one in reports):
        return None
    # The last of several equal minima: later evaluations must be above the lowest value.
    at, lowest = min(enumerate(reports), key=lambda pair: (pair[1]["eval_loss"], -pair[0]))
    after = len(reports) - 1 - at
    if after < patience or reports[-1]["train_loss"] >= lowest["train_loss"]:
        return None
    shown = f"{format_metric(lowest['eval_loss'])} at step {lowest['step']}"
    return TrialOutcome(
        Outcome.STOPPED,
        f"overfits: eval_loss above its lowest ({shown}) for {after} "
        f"evaluation{'s' if after > 1 else ''} while train_loss fell",
    )
