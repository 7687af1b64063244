"""A sweep that is looked at from outside, while it runs or after: for notebooks and scripts."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.errors import SweepStorageError
from orchestrator.journal.first_spec import FirstSpec
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.log import decode_events
from orchestrator.journal.paths import EVENTS_FILE
from orchestrator.journal.sweep_storage import SweepStorage, read_history
from orchestrator.report.report import SweepReport, build_report
from orchestrator.spec.sweep import SweepSpec, recorded_sweep
from orchestrator.wording import refusal


class OpenedSweep:
    """A sweep in its storage, read and never changed; `open_sweep` makes one.

    The report is made when it is first asked for, and again after `refresh` found new events.

    Attributes:
        storage: Address of the storage: a folder, or `s3://bucket/prefix`.
        spec: The sweep as it was last started, for reading: sources of rows are names.
    """

    def __init__(self, storage: SweepStorage) -> None:
        self.storage = storage.location
        self._folder = storage.folder
        self._log = None if storage.is_remote else _LocalLog(storage.folder / EVENTS_FILE)
        self._history = read_history(storage.location) if self._log is None else SweepHistory()
        self._report: SweepReport | None = None
        if self._log is not None:
            self._history = self._log.read_on()
        self.spec: SweepSpec = self._read_spec()

    def refresh(self) -> OpenedSweep:
        """Read what the log holds since the last call; gives the sweep itself.

        Only new lines of a local log are read, so that a cell may call it every second.

        Raises:
            SweepStorageError: The log is damaged or gone.
        """
        known = None if self._log is None else self._log.position
        self._history = self._log.read_on() if self._log else read_history(self.storage)
        if self._log is None or self._log.position != known:
            self.spec, self._report = self._read_spec(), None
        return self

    @property
    def status(self) -> str:
        """`running`, or the outcome of the sweep; a driver that was killed leaves `running`."""
        return str(self._history.status or "")

    @property
    def is_over(self) -> bool:
        """Whether the sweep has ended, with any outcome."""
        return self.status != "running"

    @property
    def report(self) -> SweepReport:
        """The report as far as the sweep has come."""
        if self._report is None:
            history = self._history
            self._report = build_report(self.spec, history, self._folder, self.storage)
        return self._report

    def __repr__(self) -> str:
        history = self._history
        ended, begun = len(history.ended()), len(history.trials)
        return f"<sweep {self.spec.name}: {self.status}, {ended} of {begun} trials ended>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    def _read_spec(self) -> SweepSpec:
        written = self._history.spec
        if written is None:
            allowed = "a sweep's storage, such as runs/NAME"
            flaw = "which holds no sweep"
            raise SweepStorageError(
                refusal("storage", self.storage, allowed, "Run a sweep first.", flaw=flaw)
            )
        return recorded_sweep(written)


class _LocalLog:
    """A growing log: each call of `read_on` folds the events written since the last call.

    Attributes:
        position: Inode and bytes up to which the log is read.
    """

    def __init__(self, path: Path) -> None:
        self.position = (0, 0)
        self._path = path
        self._history = SweepHistory()
        self._first = FirstSpec()

    def read_on(self) -> SweepHistory:
        """The history up to the last complete event.

        Raises:
            SweepStorageError: The log is missing or damaged, or cannot be read.
        """
        inode, start = self.position
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != inode or found.st_size < start:  # another file, or cut off
                    start, self._history, self._first = 0, SweepHistory(), FirstSpec()
                file.seek(start)
                content = file.read()
        except FileNotFoundError:
            read_history(self._path.parent)  # raises if trials lie there without a log
            content, found = b"", None
        except OSError as error:
            raise SweepStorageError(
                f"{self._path}: cannot be read ({error.strerror}); allowed: a sweep's folder that "
                "you may read. Correct its permissions."
            ) from error
        if found is not None:
            self.position = (found.st_ino, start + self._fold(content, start))
        return self._history

    def _fold(self, content: bytes, start: int) -> int:
        """Fold the complete events of a content; gives how many of its bytes they have."""
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines(keepends=True)
        entries = list(decode_events(whole, f"{self._path} from byte {start}", self._first))
        for entry in entries:
            self._history.apply(entry)
        # After a loss of power the last line may be no event: the next driver cuts it off.
        return sum(map(len, lines[: len(entries)]))


def open_sweep(storage: str | Path) -> OpenedSweep:
    """Open a sweep for reading, while it runs in another process or after.

    >>> sweep = open_sweep("runs/wordnet-classes")
    >>> sweep.refresh().status
    'completed'
    >>> int(sweep.report.leaderboard["trial"][0]) == sweep.report.best.found_by
    True

    Args:
        storage: The sweep's folder, or `s3://bucket/prefix`.

    Raises:
        SweepStorageError: The storage holds no sweep, is damaged or cannot be read.
    """
    return OpenedSweep(SweepStorage(storage))
