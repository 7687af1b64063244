"""Recording of events: first on disk, then in memory, then on the screen."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune

from orchestrator.errors import (
    ClusterError,
    SweepError,
    SweepStorageError,
    storage_fault,
)
from orchestrator.journal.events import (
    Event,
    StateLost,
    TrialEnded,
    TrialReported,
    TrialResumed,
    TrialStarted,
)
from orchestrator.journal.history import SweepHistory, describe_lost_state
from orchestrator.journal.log import EventLog
from orchestrator.journal.paths import bundle_folder
from orchestrator.journal.requests import STOPPED_BY_USER, UserRequests
from orchestrator.outcome import (
    Outcome,
    TrialOutcome,
    can_leave_adapter,
    first_end,
    settle_end,
)
from orchestrator.wording import last_line
from trainables.hosts.orders import WORST_METRICS, ZERO_METRICS, is_stand_in
from trainables.hosts.progress import BACK_TO_STEP, LOST_STEP
from trainables.spec import METRIC_COST

logger = logging.getLogger(__name__)

REPORTED = (*WORST_METRICS, *ZERO_METRICS)
"""Metrics that every report of a trial has."""


def recorded_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a result that the log keeps, without what Ray Tune adds."""
    own = [name for name in result if name.startswith("eval_") and name not in REPORTED]
    return {name: result[name] for name in (*REPORTED, *own, METRIC_COST) if name in result}


class SweepRecord:
    """The log of a sweep with the history folded from the log.

    Thread-safe: trials, tasks of hosts and registration write from different threads.

    Args:
        log: The open log.
        history: History of the log at its opening.
        on_change: Called with the history after every event.

    Attributes:
        problem: Error that prevents further events, for the driver: Ray Tune shows only a
            traceback.
    """

    def __init__(
        self, log: EventLog, history: SweepHistory, on_change: Callable[[SweepHistory], None]
    ) -> None:
        self.log, self.history = log, history
        self._on_change = on_change
        self._guard = threading.RLock()
        self.problem: SweepError | None = None

    def add(self, event: Event) -> None:
        """Record one event.

        Raises:
            SweepStorageError: The disk is full or gone.
        """
        with self._guard:
            try:
                entry = self.log.append(event)
            except SweepStorageError as error:
                self.problem = error
                raise
            self.history.apply(entry)
            self._on_change(self.history)

    def end_trial(
        self, trial: int, end: TrialOutcome, bundle: str | None = None, by: str = ""
    ) -> None:
        """Record a trial's end once; a trial without a start gets no end.

        Args:
            trial: Number of the trial.
            end: Outcome and reason.
            bundle: Folder of the adapter in the sweep's storage; `None` without an adapter.
            by: `user` or `budget` for a cancelled trial.
        """
        with self._guard:
            record = self.history.trials.get(trial)
            if record is not None and record.outcome is None:
                self.add(
                    TrialEnded(
                        trial=trial,
                        outcome=end.outcome,
                        reason=end.reason,
                        step=record.step,
                        bundle=bundle,
                        by=by,
                    )
                )


class TrialRecorder(tune.Callback):  # type: ignore[misc]
    """Turns Ray Tune's callbacks on trials into events.

    Args:
        record: Record for the events.
        horizon: Steps of a trial that is never stopped.
        end_of: Returns the outcome of a trial that the scheduler stopped; `None` for others.
        requests: Requests of the user to stop trials.
        check_hosts: Raises `ClusterError` if the hosts of the sweep cannot go on.
    """

    def __init__(
        self,
        record: SweepRecord,
        horizon: int,
        end_of: Callable[[int], TrialOutcome | None],
        requests: UserRequests,
        check_hosts: Callable[[], None] = lambda: None,
    ) -> None:
        self._check_hosts = check_hosts
        self._record, self._horizon = record, horizon
        self._end_of, self._requests = end_of, requests

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its callbacks; a copy records nothing.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the start of a trial, or of a new process for a known trial."""
        number = trial.config["trial"]
        known = self._record.history.trials.get(number)
        if known is None:
            self._record.add(
                TrialStarted(
                    trial=number,
                    knobs=trial.config["knobs"],
                    spec=trial.config["spec"],
                    parent=trial.config.get("parent"),
                    repeat_of=trial.config.get("repeat_of"),
                )
            )
        else:
            self._record.add(TrialResumed(trial=number, step=known.step))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        """Record a report, with the values for the searcher and the scheduler."""
        self._require_storage(trial.config["trial"], result)
        self._note_lost_state(trial.config["trial"], result)
        if not result.get("step"):
            return  # ended before the first report
        number, step = trial.config["trial"], result["step"]
        metrics = recorded_metrics(result)
        if self._is_recorded(number, step, metrics):
            return  # a continued trial repeats its earlier reports
        self._record.add(
            TrialReported(trial=number, step=step, metrics=metrics, is_fault=is_stand_in(result))
        )

    def on_trial_complete(
        self, iteration: int, trials: list[Any], trial: Any, **info: Any
    ) -> None:
        """Record the end of a trial, by itself, by the scheduler or by the user."""
        number = trial.config["trial"]
        record = self._record.history.trials.get(number)
        if record is None:
            return  # the trial never ran
        decided = first_end(self._requests.end_of(number), self._end_of(number))
        end = settle_end(trial.last_result, self._horizon, decided)
        if trial.last_result.get("trace"):
            logger.error("trial %d: %s\n%s", number, end.reason, trial.last_result["trace"])
        has_bundle = can_leave_adapter(end.outcome) and record.reports
        self._record.end_trial(
            number,
            end,
            bundle_folder(number) if has_bundle else None,
            by="user" if end == STOPPED_BY_USER else "",
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the error of a trial's process; a process that was killed ends the run instead.

        Raises:
            ClusterError: The hosts cannot go on, or the process died as often as it was started.
        """
        number, said = trial.config["trial"], trial.get_error()
        try:
            self._check_hosts()
            if said is None:  # Ray Tune keeps the text of an error that was raised
                raise ClusterError(
                    f"trial {number}: each process that Ray started for it died (killed from "
                    "outside, or because memory was short). Nothing recorded is lost: run the "
                    "same command again."
                )
        except ClusterError as error:
            self._record.problem = error
            raise
        said = str(said)
        end = settle_end(trial.last_result, self._horizon, error=last_line(said))
        logger.error("trial %d: %s\n%s", number, end.reason, said)
        self._record.end_trial(number, end)

    def _require_storage(self, trial: int, result: Mapping[str, Any]) -> None:
        """End the run if a trial failed by the storage: the next run continues the trial.

        Raises:
            SweepStorageError: A host's disk is full, or its storage is gone.
        """
        if result.get("outcome") == Outcome.FAILED:
            fault = storage_fault(f"trial {trial}", result["reason"])
            if fault is not None:
                self._record.problem = fault
                raise fault

    def _note_lost_state(self, trial: int, result: Mapping[str, Any]) -> None:
        """Record once that a trial went back to an older state; every later report says so."""
        if LOST_STEP not in result:
            return
        lost, back_to = int(result[LOST_STEP]), int(result[BACK_TO_STEP])
        event = StateLost(trial=trial, step=lost, back_to=back_to)
        if event not in [known for _, known in self._record.history.states_lost]:
            logger.warning("%s", describe_lost_state(event))
            self._record.add(event)

    def _is_recorded(self, trial: int, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether the log has a report of this step with the same measurements."""
        record = self._record.history.trials[trial]
        return any(
            report.step == step
            # Compare as text: NaN does not equal NaN.
            and all(str(report.metrics.get(m)) == str(metrics.get(m)) for m in WORST_METRICS)
            for report in record.reports
        )
