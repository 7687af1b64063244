"""What happens in a sweep becomes events: on disk first, then in memory, then on the screen."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune

from orchestrator.errors import SweepStorageError, full_disk, tells_full_disk
from orchestrator.journal.events import EventLog
from orchestrator.journal.history import WITH_ADAPTER, SweepHistory
from orchestrator.journal.layout import bundle_folder
from orchestrator.journal.requests import STOPPED_BY_USER, Wishes
from orchestrator.outcome import Outcome, TrialOutcome, infer_outcome
from trainables.orders import WORST_METRICS, ZERO_METRICS

logger = logging.getLogger(__name__)

_KINSHIP = ("parent", "repeat_of")
"""What a trial's config says of the trial it comes from."""

REPORTED = (*WORST_METRICS, *ZERO_METRICS)
"""Metrics every report of a trial holds."""


class SweepRecord:
    """The log of a sweep and what it adds up to, kept in step.

    Thread-safe: trials, hosts' tasks and registration write from threads of their own.

    Args:
        log: The open log.
        history: What the log held when it was opened.
        on_change: Called with the history after every event.

    Attributes:
        problem: Why nothing more can be kept: Ray Tune shows only a traceback of it.
    """

    def __init__(
        self, log: EventLog, history: SweepHistory, on_change: Callable[[SweepHistory], None]
    ) -> None:
        self.log, self.history = log, history
        self._on_change = on_change
        self._guard = threading.RLock()
        self.problem: SweepStorageError | None = None

    def add(self, kind: str, **fields: Any) -> None:
        """Record one event.

        Raises:
            SweepStorageError: The disk is full or gone.
        """
        with self._guard:
            try:
                event = self.log.append(kind, **fields)
            except SweepStorageError as error:
                self.problem = error
                raise
            self.history.apply(event)
            self._on_change(self.history)

    def end_trial(
        self, trial: int, end: TrialOutcome, bundle: str | None = None, by: str = ""
    ) -> None:
        """Record a trial's end, once; one that never started has none.

        Args:
            trial: Its number.
            end: How it ended and why.
            bundle: Folder of its adapter within the sweep's.
            by: `user` or `budget` for one that was cancelled.
        """
        with self._guard:
            record = self.history.trials.get(trial)
            if record is not None and record.outcome is None:
                self.add(
                    "trial_ended",
                    trial=trial,
                    outcome=end.outcome.value,
                    reason=end.reason,
                    step=record.step,
                    bundle=bundle,
                    **({"by": by} if by else {}),
                )


class TrialRecorder(tune.Callback):  # type: ignore[misc]
    """Turns what Ray Tune sees of trials into events.

    Args:
        record: Where they go.
        horizon: Steps of a trial that is never stopped.
        end_of: Why the scheduler stopped a trial, if it did.
        wishes: Which trials the user asked to stop.
    """

    def __init__(
        self,
        record: SweepRecord,
        horizon: int,
        end_of: Callable[[int], TrialOutcome | None],
        wishes: Wishes,
    ) -> None:
        self._record, self._horizon = record, horizon
        self._end_of, self._wishes = end_of, wishes

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its callbacks; a copy records nothing.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has a process; Ray Tune says so again when it starts one anew."""
        number = trial.config["trial"]
        known = self._record.history.trials.get(number)
        if known is None:
            self._record.add(
                "trial_started",
                trial=number,
                knobs=trial.config["knobs"],
                spec=trial.config["spec"],
                **{name: trial.config[name] for name in _KINSHIP if name in trial.config},
            )
        else:
            self._record.add("trial_resumed", trial=number, step=known.step)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        """A report: the values that searcher and scheduler see."""
        self._require_space(trial.config["trial"], result)
        if not result.get("step"):
            return  # ended before it measured anything
        number, step = trial.config["trial"], result["step"]
        metrics = {name: result[name] for name in REPORTED if name in result}
        if self._is_recorded(number, step, metrics):
            return  # a trial that goes on says again what was measured before
        self._record.add(
            "report",
            trial=number,
            step=step,
            metrics=metrics,
            is_fault=result.get("outcome") in (Outcome.DIVERGED, Outcome.INFEASIBLE, "failed"),
        )

    def on_trial_complete(
        self, iteration: int, trials: list[Any], trial: Any, **info: Any
    ) -> None:
        """A trial ended by itself, by the scheduler or by the user."""
        number = trial.config["trial"]
        record = self._record.history.trials.get(number)
        if record is None:
            return  # it never ran
        end = self._describe_end(number, trial.last_result)
        if trial.last_result.get("trace"):
            logger.error("trial %d: %s\n%s", number, end.reason, trial.last_result["trace"])
        has_bundle = end.outcome in WITH_ADAPTER and record.reports
        self._record.end_trial(
            number,
            end,
            bundle_folder(number) if has_bundle else None,
            by="user" if end == STOPPED_BY_USER else "",
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's own process failed for good."""
        reason = f"its process failed: {_last_line(trial)}"
        logger.error("trial %d: %s\n%s", trial.config["trial"], reason, trial.get_error())
        self._record.end_trial(trial.config["trial"], TrialOutcome(Outcome.FAILED, reason))

    def _require_space(self, trial: int, result: Mapping[str, Any]) -> None:
        """End the sweep, not the trial, where a state found no space: it goes on from its last.

        Raises:
            SweepStorageError: The disk of a host is full.
        """
        if result.get("outcome") == Outcome.FAILED and tells_full_disk(result["reason"]):
            self._record.problem = full_disk(f"trial {trial}: {result['reason']}")
            raise self._record.problem

    def _is_recorded(self, trial: int, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether the same was measured at this step before, however fast."""
        record = self._record.history.trials[trial]
        return any(
            report.step == step
            # By text, as NaN does not equal itself.
            and all(str(report.metrics.get(m)) == str(metrics.get(m)) for m in WORST_METRICS)
            for report in record.reports
        )

    def _describe_end(self, number: int, result: Mapping[str, Any]) -> TrialOutcome:
        outcome = infer_outcome(result, self._horizon)
        verdict = self._end_of(number)
        if outcome is Outcome.COMPLETED and verdict and verdict.outcome is Outcome.DIVERGED:
            return verdict  # it ran away with its last steps
        if outcome in (Outcome.STOPPED, Outcome.CANCELLED):
            verdict = self._wishes.end_of(number) or verdict
            if verdict is not None:
                return verdict
        if "step" not in result:  # Ray Tune's own keys are there from the start
            return TrialOutcome(outcome, "ended before its first report")
        if outcome is Outcome.STOPPED and "outcome" not in result:
            return TrialOutcome(outcome, f"others were better at step {result['step']}")
        return TrialOutcome(outcome, result.get("reason") or f"trained {result['step']} steps")


def _last_line(trial: Any) -> str:
    lines = [line for line in str(trial.get_error() or "no message").splitlines() if line.strip()]
    return lines[-1].strip()
