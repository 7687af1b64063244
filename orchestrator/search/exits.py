"""Reasons to end a trial from its own reports only: divergence, overfitting, a user's rule."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

from orchestrator.journal.recording import recorded_metrics
from orchestrator.outcome import Outcome, TrialOutcome
from orchestrator.spec.sections import ExitSpec
from orchestrator.wording import format_metric
from trainables.claims import show
from trainables.errors import SpecError
from trainables.functions import function_error, load_function, source_digest

_STOP = "exits.stop"

StepMetrics = Mapping[str, float]
"""`step` and the metrics of that step."""


def find_exit(exits: ExitSpec, reports: Sequence[StepMetrics]) -> TrialOutcome | None:
    """Reason to end a trial at its last report; `None` to continue.

    Args:
        exits: Conditions that end a trial.
        reports: Reports of the trial, in order of steps.
    """
    return (
        _find_divergence(exits.divergence, reports)
        or _find_overfitting(exits.overfitting, reports)
        or _ask_function(exits.stop, reports)
    )


def _ask_function(name: str | None, reports: Sequence[StepMetrics]) -> TrialOutcome | None:
    """The answer of the user's function.

    Raises:
        SpecError: The function failed, or gave something other than text or `None`.
    """
    if name is None:
        return None
    function = _load_once(name, source_digest(name, _STOP))
    allowed = "a function that gives the reason as text, or None"
    try:
        # What the log keeps: a resume asks with the same values.
        given = [{"step": one["step"], **recorded_metrics(one)} for one in reports]
        reason = function(given)
    except Exception as error:
        raise function_error(name, _STOP, error, allowed) from error
    if reason is None or reason == "":
        return None
    if not isinstance(reason, str):
        raise SpecError(
            f"{_STOP}: {name} gave {show(reason)}; allowed: {allowed}. Correct the function."
        )
    return TrialOutcome(Outcome.STOPPED, reason)


@functools.cache
def _load_once(name: str, _digest: str) -> Callable[..., object]:
    return load_function(name, _STOP)


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
