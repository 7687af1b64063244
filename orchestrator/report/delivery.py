"""Carries the event log to MLflow, from a thread of its own.

The log is the queue: a cursor beside it says how far MLflow has been told. MLflow being away
never holds a sweep up; what is left is delivered when it is back, by this run or the next.

Events are told in batches, so that a busy sweep costs few calls. One can be told twice, when an
answer is lost or the driver is, and then changes nothing: runs are found by tag and points by
their time.
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
from orchestrator.journal.events import LogEntry
from orchestrator.journal.log import decode_events, read_events
from orchestrator.journal.paths import CURSOR_FILE
from orchestrator.report.news import News, NewsDesk, SweepClosing, SweepOpening
from orchestrator.spec.sweep import SweepSpec
from registry import Tracker, TrackingError
from registry.connection import without_secrets
from trainables.whole import replace_file

logger = logging.getLogger(__name__)

_INTERVAL_S = 2.0
"""Between two batches: what comes meanwhile is told at once."""
_PAUSE_S = 0.5
_MAX_PAUSE_S = 30.0
_BATCH_BYTES = 2**18
"""Of the log, about a thousand events: what is in memory while MLflow is away."""
_LEAVING_S = 60.0
_FLEEING_S = 5.0


class Delivery:
    """Delivers a sweep's events to MLflow; flushes pending events when the context closes.

    A sweep that is left unfinished has its open runs closed in MLflow, with a tag that says so;
    the session that goes on with it opens them again.

    Args:
        spec: The sweep.
        log: Path of its event log.
        connect: Makes the tracker; called again after a failure.
        report_folder: Files of this folder become artifacts of the sweep's run when it ends.
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
        self._read: deque[LogEntry] = deque()  # not yet on the desk
        self._news: deque[News] = deque()  # not yet told
        self._seen = 0  # events that the desk has taken in
        self._cursor: int | None = None  # events told, as the file has it
        self._wake, self._urgent = threading.Event(), threading.Event()
        self._closing = threading.Event()
        self._delivered = 0  # events that MLflow has been told of
        self._begun, self._failed = 0, 0  # attempts: how many, and the last one that failed
        self._is_running = False
        self._is_ours = True
        self._progress = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="mlflow-delivery", daemon=True)
        self.problem = ""

    def __enter__(self) -> Self:
        self._is_running = True
        self._wake.set()  # an earlier session may have left something
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A driver that lost its storage may have lost it to another one, which goes on.
        self._is_ours = not isinstance(error, SweepStorageError)
        self._closing.set()
        self._hurry()
        self._thread.join(timeout=_LEAVING_S if error is None else _FLEEING_S)

    def nudge(self) -> None:
        """There is something new in the log; never waits."""
        self._wake.set()

    def flush(self, timeout_s: float) -> bool:
        """Wait until the events logged so far are delivered; `False` after the timeout.

        Waits no longer than one attempt of its own takes to fail.
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
        """MLflow's id of the sweep's run, once it was delivered."""
        tracker, sweep_id = self._tracker, self._desk.history.sweep_id
        return None if tracker is None or sweep_id is None else tracker.find_sweep(sweep_id)

    def trial_run(self, trial: int) -> str | None:
        """MLflow's id of a trial's run, once it was delivered."""
        tracker, sweep_id = self._tracker, self._desk.history.sweep_id
        return None if tracker is None or sweep_id is None else tracker.find_trial(sweep_id, trial)

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
                    self._wake.set()  # something is left
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
        # Whatever it was: a thread that ended here would deliver nothing more and tell nobody.
        except Exception as error:  # noqa: BLE001
            self._note(error)
            return False
        self.problem = ""
        return True

    def _note(self, error: Exception) -> None:
        # OSError: artifacts, which the tracker leaves as they are.
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

    def _deliver_pending(self) -> None:
        if self._tracker is None:
            self._tracker = self._connect()
        is_behind = True
        while is_behind:
            is_left = bool(self._news or self._read)  # by an attempt that failed
            if not is_left:
                self._read.extend(self._tail.read_on())
            is_behind = is_left or self._tail.is_behind
            self._gather()
            # One by one, so that a server which fails now and then is told all in the end.
            is_news = bool(self._news)
            while self._news:
                self._tell(self._tracker, self._news[0])
                self._news.popleft()
            if is_news:
                self._write_cursor(self._seen)
            with self._progress:
                self._delivered = self._seen
                self._progress.notify_all()

    def _gather(self) -> None:
        """Make news of the events that were read."""
        if self._cursor is None:
            self._cursor = self._read_cursor()
        while self._read:
            entry = self._read.popleft()
            self._seen += 1
            self._desk.add(entry, is_told=self._seen <= self._cursor)
        self._news.extend(self._desk.take())

    def _tell(self, tracker: Tracker, news: News) -> None:
        if isinstance(news, SweepOpening):
            self._begin(tracker, news)
        elif isinstance(news, SweepClosing):
            opening = news.opening
            run_id = tracker.find_sweep(opening.sweep_id) or self._begin(tracker, opening)
            for file in sorted(self._report_folder.glob("*")):
                tracker.log_artifact(run_id, file)
            tracker.end_sweep(run_id, news.status, news.metrics, news.at_s)
        else:
            tracker.record_trial(str(self._desk.history.sweep_id), news)

    def _begin(self, tracker: Tracker, news: SweepOpening) -> str:
        run_id = tracker.start_sweep(news.sweep_id, news.name, news.params, news.tags, news.at_s)
        tracker.log_text(run_id, news.text, "sweep.yaml")
        return run_id

    def _leave_unfinished(self) -> None:
        history = self._desk.history
        if self._tracker is not None and history.status == "running" and self._is_ours:
            self._tracker.interrupt(str(history.sweep_id), time.time())

    def _read_cursor(self) -> int:
        if not self._cursor_file.is_file():
            return 0
        delivered: int = json.loads(self._cursor_file.read_text())["events"]
        return delivered

    def _write_cursor(self, events: int) -> None:
        replace_file(self._cursor_file, json.dumps({"events": events}).encode())


class LogTail:
    """Reads on in a log that grows: each event once, however long the log is by now.

    Args:
        log: Path of the event log.

    Attributes:
        is_behind: Whether there was more than the last reading was to bring.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read = 0  # bytes up to the end of the last event that was read
        self.is_behind = False

    def read_on(self, max_bytes: int = _BATCH_BYTES) -> list[LogEntry]:
        """Events since the last call, in order; a line that is still being written waits.

        Of a longer log, the events in about `max_bytes`, at least one; `is_behind` says so.

        Raises:
            SweepStorageError: A line before the last one is no event.
        """
        try:
            with self._log.open("rb") as file:
                file.seek(self._read)
                content = file.read(max_bytes)
                self.is_behind = len(content) == max_bytes
                if b"\n" not in content:
                    content += file.readline()
        except FileNotFoundError:
            return []
        events = list(decode_events(content, f"{self._log}, from byte {self._read}"))
        lines = content.split(b"\n")[: len(events)]
        self._read += sum(len(line) + 1 for line in lines)
        return events
