"""Carries the event log to MLflow, from a thread of its own.

The log is the queue: a cursor beside it says how far MLflow has been told. MLflow being away
never holds a sweep up; what is left is delivered when it is back, by this run or the next. An
event can be delivered twice, when the driver is lost in between, and then changes nothing: runs
are found by tag and points by their time.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from orchestrator.events import Event, decode_events, read_events
from orchestrator.history import SweepHistory, TrialRecord
from orchestrator.layout import CURSOR_FILE
from orchestrator.members import group_key
from orchestrator.space import describe
from orchestrator.spec import SweepSpec
from orchestrator.standings import rank_finalists
from registry import Tracker, TrackingError
from trainables.spec import TrialSpec

logger = logging.getLogger(__name__)

_PAUSE_S = 0.5
_MAX_PAUSE_S = 30.0


class Delivery:
    """Delivers one sweep's events; a context manager that delivers what it can before it leaves.

    Args:
        spec: The sweep.
        log: Path of its event log.
        connect: Makes the tracker; called again after a failure.
        report_folder: Files of this folder become artifacts of the sweep's run when it ends.
    """

    def __init__(
        self, spec: SweepSpec, log: Path, connect: Callable[[], Tracker], report_folder: Path
    ) -> None:
        self._spec, self._log, self._connect = spec, log, connect
        self._report_folder = report_folder
        self._cursor_file = log.with_name(CURSOR_FILE)
        self._tracker: Tracker | None = None
        self._history = SweepHistory()
        self._tail = LogTail(log)
        self._waiting: deque[Event] = deque()  # read, not yet told
        self._told = 0  # events that were told, now or by an earlier driver
        self._seen = 0  # events folded into the history
        self._wake, self._closing = threading.Event(), threading.Event()
        self._delivered = 0  # events that MLflow has been told of
        self._begun, self._failed = 0, 0  # attempts: how many, and the last one that failed
        self._is_running = False
        self._progress = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="mlflow-delivery", daemon=True)
        self.problem = ""

    def __enter__(self) -> Self:
        self._is_running = True
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout=5.0 if error is not None else 60.0)

    def nudge(self) -> None:
        """There is something new in the log."""
        self._wake.set()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything logged so far is delivered; whether that is so in time.

        Waits no longer than one attempt of its own takes to fail.
        """
        wanted = sum(1 for _ in read_events(self._log))
        with self._progress:
            begun = self._begun
            self.nudge()
            self._progress.wait_for(
                lambda: self._delivered >= wanted or self._failed > begun or not self._is_running,
                timeout_s,
            )
            return self._delivered >= wanted

    def sweep_run(self) -> str | None:
        """MLflow's id of the sweep's run, once it was delivered."""
        tracker, sweep_id = self._tracker, self._history.sweep_id
        return None if tracker is None or sweep_id is None else tracker.find_sweep(sweep_id)

    def trial_run(self, trial: int) -> str | None:
        """MLflow's id of a trial's run, once it was delivered."""
        tracker, sweep_id = self._tracker, self._history.sweep_id
        return None if tracker is None or sweep_id is None else tracker.find_trial(sweep_id, trial)

    # ------------------------------------------------------------------------------ own thread

    def _run(self) -> None:
        try:
            pause_s, is_last = _PAUSE_S, False
            while not is_last:
                self._wake.wait(pause_s)
                self._wake.clear()
                is_last = self._closing.is_set()
                pause_s = _PAUSE_S if self._attempt() else min(2 * pause_s, _MAX_PAUSE_S)
        finally:
            with self._progress:
                self._is_running = False
                self._progress.notify_all()

    def _attempt(self) -> bool:
        """Deliver what there is; whether that went well."""
        with self._progress:
            self._begun += 1
        try:
            self._deliver_pending()
        # Whatever it was: a thread that ended here would deliver nothing more and tell nobody.
        except Exception as error:  # noqa: BLE001
            self._note(error)
            return False
        self.problem = ""
        return True

    def _note(self, error: Exception) -> None:
        is_foreseen = isinstance(
            error, TrackingError | OSError
        )  # OSError: artifacts, written by us
        problem = str(error) if is_foreseen else f"{type(error).__name__}: {error}"
        if not self.problem:
            logger.warning(
                "MLflow was not told: %s, trying again later",
                problem,
                exc_info=None if is_foreseen else error,
            )
        self._tracker = None
        with self._progress:
            self.problem, self._failed = problem, self._begun
            self._progress.notify_all()

    def _deliver_pending(self) -> None:
        self._waiting.extend(self._tail.read_on())
        if self._tracker is None:
            self._tracker = self._connect()
        delivered = self._read_cursor()
        while self._waiting:
            number, event = self._told + 1, self._waiting[0]
            if number > self._seen:
                self._history.apply(event)
                self._seen = number
            if number > delivered:
                self._deliver(self._tracker, event)
                self._write_cursor(number)
            self._waiting.popleft()
            self._told = number
        with self._progress:
            self._delivered = self._told
            self._progress.notify_all()

    def _deliver(self, tracker: Tracker, event: Event) -> None:
        deliver = _DELIVERIES.get(event.kind)
        if deliver is not None:
            deliver(self, tracker, event)

    def _read_cursor(self) -> int:
        if not self._cursor_file.is_file():
            return 0
        delivered: int = json.loads(self._cursor_file.read_text())["events"]
        return delivered

    def _write_cursor(self, events: int) -> None:
        writing = self._cursor_file.with_suffix(".writing")
        writing.write_text(json.dumps({"events": events}))
        writing.replace(self._cursor_file)

    # ---------------------------------------------------------------------- one kind of event

    def _start_sweep(self, tracker: Tracker, event: Event) -> None:
        run_id = tracker.start_sweep(
            self._sweep_id, self._spec.name, self._sweep_params(), self._sweep_tags()
        )
        tracker.log_text(run_id, yaml.safe_dump(dict(self._history.spec or {})), "sweep.yaml")

    def _start_trial(self, tracker: Tracker, event: Event) -> None:
        self._trial_run_id(tracker, event.fields["trial"], is_running=True)

    def _report(self, tracker: Tracker, event: Event) -> None:
        if event.fields.get("is_fault"):
            return  # its finite stand-ins are for the searcher, not for a chart
        run_id = self._trial_run_id(tracker, event.fields["trial"])
        tracker.log_metrics(run_id, event.fields["metrics"], event.fields["step"], event.at)

    def _end_trial(self, tracker: Tracker, event: Event) -> None:
        run_id = self._trial_run_id(tracker, event.fields["trial"])
        tracker.end_trial(run_id, event.fields["outcome"], event.fields["reason"], event.at)

    def _final(self, tracker: Tracker, event: Event) -> None:
        record = self._history.trials[event.fields["trial"]]
        run_id = self._trial_run_id(tracker, record.number)
        tracker.log_metrics(run_id, event.fields["metrics"], record.step, event.at)

    def _end_sweep(self, tracker: Tracker, event: Event) -> None:
        run_id = self._sweep_run_id(tracker)
        for file in sorted(self._report_folder.glob("*")):
            tracker.log_artifact(run_id, file)
        standings = rank_finalists(self._spec, self._history)
        metrics = self._totals(standings[0].adapter) if standings else {}
        tracker.end_sweep(run_id, event.fields["status"], metrics, event.at)

    def _totals(self, best: TrialRecord) -> dict[str, float]:
        """What the best adapter measures, and the bare base which that adapter sits on."""
        key = group_key(TrialSpec.from_dict(best.spec))
        base = self._history.base_metrics.get(key, {})
        return {
            **best.reports[-1].metrics,
            **(best.final_metrics or {}),
            **{f"base_{name}": v for split in base.values() for name, v in split.items()},
        }

    @property
    def _sweep_id(self) -> str:
        return str(self._history.sweep_id)

    def _sweep_run_id(self, tracker: Tracker) -> str:
        found = tracker.find_sweep(self._sweep_id)
        return found or tracker.start_sweep(
            self._sweep_id, self._spec.name, self._sweep_params(), self._sweep_tags()
        )

    def _sweep_params(self) -> dict[str, Any]:
        """Of the sweep as it was started: a resumed one may read its data from elsewhere."""
        spec: Mapping[str, Any] = self._history.spec or {}
        return {
            "base": spec["base"]["model"],
            "data": spec["data"]["train"],
            "search": spec["search"]["algorithm"],
            "schedule": spec["schedule"]["algorithm"],
            "objective": spec["objective"]["metric"],
            "steps": spec["optim"]["steps"],
            "seed": spec["seed"],
        }

    def _sweep_tags(self) -> dict[str, str]:
        return {"lorchestra.digest": str(self._history.digest)}

    def _trial_run_id(self, tracker: Tracker, trial: int, *, is_running: bool = False) -> str:
        found = None if is_running else tracker.find_trial(self._sweep_id, trial)
        if found is not None:
            return found
        record: TrialRecord = self._history.trials[trial]
        return tracker.start_trial(
            self._sweep_id,
            trial,
            f"trial-{trial:04d}",
            describe(TrialSpec.from_dict(record.spec)),
            record.started_at,
            _kinship(record),
        )


class LogTail:
    """Reads on in a log that grows: each event once, however long the log is by now.

    Args:
        log: Path of the event log.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read = 0  # bytes up to the end of the last event that was read

    def read_on(self) -> list[Event]:
        """Events since the last call, in order; a line that is still being written waits.

        Raises:
            SweepStorageError: A line before the last one is no event.
        """
        try:
            with self._log.open("rb") as file:
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return []
        events = list(decode_events(content, f"{self._log}, from byte {self._read}"))
        lines = content.split(b"\n")[: len(events)]
        self._read += sum(len(line) + 1 for line in lines)
        return events


def _kinship(record: TrialRecord) -> dict[str, str]:
    """Tags that say which trial this one repeats or goes on from."""
    tags = {}
    if record.repeat_of is not None:
        tags["lorchestra.repeat_of"] = str(record.repeat_of)
    if record.parent is not None:
        tags["lorchestra.parent"] = f"{record.parent['trial']}@{record.parent['step']}"
    return tags


_DELIVERIES: Mapping[str, Callable[[Delivery, Tracker, Event], None]] = {
    "sweep_started": Delivery._start_sweep,
    "sweep_resumed": Delivery._start_sweep,
    "trial_started": Delivery._start_trial,
    "trial_resumed": Delivery._start_trial,
    "report": Delivery._report,
    "trial_ended": Delivery._end_trial,
    "final_evaluated": Delivery._final,
    "sweep_ended": Delivery._end_sweep,
}
