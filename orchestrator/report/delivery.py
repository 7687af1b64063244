"""Delivers the event log to MLflow, from a thread of its own.

The log is the queue: a cursor file beside the log holds the number of delivered events. A sweep
never waits for an MLflow server that does not answer: this session or the next session delivers
the rest when the server is back.

Events are delivered in batches, so that a busy sweep needs few calls. An event may be delivered
twice, after a lost answer or a crash of the driver, and then changes nothing: runs are found by
tag, and points by their time.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from traceback import format_exc
from types import TracebackType
from typing import Self

from orchestrator.errors import SweepStorageError
from orchestrator.interrupts import BackgroundThread
from orchestrator.journal.events import LogEntry, SweepStarted
from orchestrator.journal.log import LogTail, read_events
from orchestrator.journal.paths import CURSOR_FILE
from orchestrator.report.news import News, NewsDesk, SweepClosing, SweepOpening
from orchestrator.spec.sweep import SweepSpec
from registry import Tracker, TrackingError
from registry.tracking.connection import without_secrets
from registry.tracking.tracker import NOTE_TAG
from registry.tracking.views import SweepLinks, SweepView
from trainables.whole import replace_file

logger = logging.getLogger(__name__)

_INTERVAL_S = 2.0
"""Seconds between two batches; events that arrive meanwhile are in one batch."""
_PAUSE_S = 0.5
_MAX_PAUSE_S = 30.0
_BATCH_BYTES = 2**18
"""Bytes of the log in one batch, about a thousand events; limits memory while MLflow is away."""
_LEAVING_S = 60.0
_FLEEING_S = 5.0


class Delivery:
    """Delivers a sweep's events to MLflow; flushes pending events when the context closes.

    The open runs of an unfinished sweep are closed in MLflow with a tag; the session that
    continues the sweep opens the runs again.

    Args:
        spec: The sweep.
        log: Path of the sweep's event log.
        connect: Makes the tracker; called again after a failure.
        report_folder: Folder whose files become artifacts of the sweep's run at its end.

    Attributes:
        problem: The error of the last attempt; empty after a success.
    """

    def __init__(
        self, spec: SweepSpec, log: Path, connect: Callable[[], Tracker], report_folder: Path
    ) -> None:
        self._log, self._connect = log, connect
        self._report_folder = report_folder
        self._cursor_file = log.with_name(CURSOR_FILE)
        self._tracker: Tracker | None = None
        self._tail = LogTail(log)
        self._desk = NewsDesk(spec)
        self._read: deque[LogEntry] = deque()  # events not yet on the desk
        self._news: deque[News | SweepView] = deque()  # news not yet delivered
        self._seen = 0  # number of events that the desk has
        self._cursor: int | None = None  # number of delivered events in the cursor file
        self._wake, self._urgent = threading.Event(), threading.Event()
        self._closing = threading.Event()
        self._delivered = 0  # number of events delivered to MLflow
        self._begun, self._failed = 0, 0  # number of attempts; number of the last failed attempt
        self._is_running = False
        self._is_ours = True
        self._progress = threading.Condition()
        self._thread = BackgroundThread(self._run, "mlflow-delivery")
        self.problem = ""

    def __enter__(self) -> Self:
        self._is_running = True
        self._wake.set()  # an earlier session may have left events
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After a storage error, another driver may own the sweep and its runs in MLflow.
        self._is_ours = not isinstance(error, SweepStorageError)
        self._closing.set()
        self._hurry()
        self._thread.await_end(_LEAVING_S if error is None else _FLEEING_S)

    def nudge(self) -> None:
        """Wake the thread after a change of the log; never waits."""
        self._wake.set()

    def flush(self, timeout_s: float) -> bool:
        """Wait until the events logged so far are delivered; `False` after the timeout.

        Also `False` as soon as an attempt fails that began after this call.
        """
        wanted = sum(1 for _ in read_events(self._log))
        with self._progress:
            begun = self._begun
            self._hurry()
            self._progress.wait_for(
                lambda: self._delivered >= wanted or self._failed > begun or not self._is_running,
                timeout_s,
            )
            return self._delivered >= wanted

    def sweep_run(self) -> str | None:
        """The id of the sweep's MLflow run; `None` before its delivery."""
        tracker, sweep_id = self._tracker, self._desk.history.sweep_id
        return None if tracker is None or sweep_id is None else tracker.find_sweep(sweep_id)

    def trial_run(self, trial: int) -> str | None:
        """The id of a trial's MLflow run; `None` before its delivery."""
        tracker, sweep_id = self._tracker, self._desk.history.sweep_id
        return None if tracker is None or sweep_id is None else tracker.find_trial(sweep_id, trial)

    def links(self, address: str, name: str) -> SweepLinks | None:
        """Links to the sweep's trials in MLflow's pages; `None` before the sweep's delivery.

        Args:
            address: Of MLflow's pages.
            name: Name of the sweep.
        """
        tracker, sweep_id = self._tracker, self._desk.history.sweep_id
        if tracker is None or sweep_id is None:
            return None
        return tracker.links(address, sweep_id, name)

    def _hurry(self) -> None:
        self._urgent.set()
        self._wake.set()

    # ------------------------------------------------------------------------------ own thread

    def _run(self) -> None:
        try:
            failures, is_last, pause_s = 0, False, _PAUSE_S
            while not is_last:
                self._urgent.wait(pause_s)
                self._wake.wait()
                self._urgent.clear()
                self._wake.clear()
                is_last = self._closing.is_set()
                if self._attempt(self._deliver_pending):
                    failures, pause_s = 0, _INTERVAL_S
                    if is_last:
                        self._attempt(self._leave_unfinished)
                else:
                    self._wake.set()  # events are left
                    pause_s = min(_PAUSE_S * 2**failures, _MAX_PAUSE_S)
                    failures += 1
        finally:
            with self._progress:
                self._is_running = False
                self._progress.notify_all()

    def _attempt(self, deliver: Callable[[], None]) -> bool:
        """Make one attempt at delivery; `False` after an error."""
        with self._progress:
            self._begun += 1
        try:
            deliver()
        # Any error: without this thread, no later event would be delivered, and no user be told.
        except Exception as error:  # noqa: BLE001
            # The tracker does not wrap an OSError of artifacts.
            is_foreseen = isinstance(error, TrackingError | OSError)
            problem = str(error) if is_foreseen else f"{type(error).__name__}: {error}"
            problem = without_secrets(problem)
            if not self.problem:
                trace = "" if is_foreseen else f"\n{without_secrets(format_exc())}"
                logger.warning("MLflow was not told: %s, trying again later%s", problem, trace)
            self._tracker = None
            with self._progress:
                self.problem, self._failed = problem, self._begun
                self._progress.notify_all()
            return False
        self.problem = ""
        return True

    def _deliver_pending(self) -> None:
        if self._tracker is None:
            self._tracker = self._connect()
        is_behind = True
        while is_behind:
            is_left = bool(self._news or self._read)  # from a failed attempt
            if not is_left:
                self._read.extend(self._tail.read_on(_BATCH_BYTES))
            is_behind = is_left or self._tail.is_behind
            self._gather()
            # One by one: with a server that fails now and then, every attempt makes progress.
            is_news = bool(self._news)
            while self._news:
                self._tell(self._tracker, self._news[0])
                self._news.popleft()
            if is_news:
                cursor = {"events": self._seen, "sweep": self._desk.history.sweep_id}
                replace_file(self._cursor_file, json.dumps(cursor).encode())
            with self._progress:
                self._delivered = self._seen
                self._progress.notify_all()

    def _gather(self) -> None:
        """Turn the events that were read into news."""
        while self._read:
            entry = self._read.popleft()
            if self._cursor is None:
                self._cursor = _read_cursor(self._cursor_file, entry)
            self._seen += 1
            self._desk.add(entry, is_told=self._seen <= self._cursor)
        for news in self._desk.take():
            self._news.append(news)
            if isinstance(news, SweepOpening):  # told by itself: a few calls make progress
                self._news.append(news.view)

    def _tell(self, tracker: Tracker, news: News | SweepView) -> None:
        if isinstance(news, SweepOpening):
            self._begin(tracker, news)
        elif isinstance(news, SweepClosing):
            opening = news.opening
            run_id = tracker.find_sweep(opening.sweep_id) or self._begin(tracker, opening)
            for file in sorted(self._report_folder.glob("*")):
                tracker.log_artifact(run_id, file)
            tracker.end_sweep(run_id, news.status, news.metrics, news.at_s, news.about)
        elif isinstance(news, SweepView):
            tracker.save_view(news)
        else:
            tracker.record_trial(str(self._desk.history.sweep_id), news)

    def _begin(self, tracker: Tracker, news: SweepOpening) -> str:
        tags = {**news.tags, NOTE_TAG: news.about}
        run_id = tracker.start_sweep(news.sweep_id, news.name, news.params, tags, news.at_s)
        tracker.log_text(run_id, news.text, "sweep.yaml")
        return run_id

    def _leave_unfinished(self) -> None:
        history = self._desk.history
        if self._tracker is not None and history.status == "running" and self._is_ours:
            self._tracker.interrupt(str(history.sweep_id), time.time())


def _read_cursor(file: Path, first: LogEntry) -> int:
    """Number of events that earlier sessions delivered.

    A cursor that cannot be read, or that belongs to another sweep, counts as 0: to deliver an
    event again changes nothing in MLflow.

    Args:
        file: The cursor file.
        first: First event of the log.
    """
    try:
        cursor = json.loads(file.read_text())
        events, sweep = int(cursor["events"]), cursor["sweep"]
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        logger.warning("%s cannot be read (%s): all events are delivered again", file, error)
        return 0
    is_ours = isinstance(first.event, SweepStarted) and first.event.sweep_id == sweep
    return events if is_ours else 0
