"""A sweep that is looked at from outside, while it runs or after: for notebooks and scripts."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import SweepStorageError
from orchestrator.journal.sweep_storage import GrowingHistory, SweepStorage
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
        self._growing = GrowingHistory(storage.location)
        self._report: SweepReport | None = None
        self._growing.read_on()
        self.spec: SweepSpec = self._read_spec()

    def refresh(self) -> OpenedSweep:
        """Read what the log holds since the last call; gives the sweep itself.

        Only new lines of a local log are read, so that a cell may call it every second.

        Raises:
            SweepStorageError: The log is damaged or gone.
        """
        if self._growing.read_on():
            self.spec, self._report = self._read_spec(), None
        return self

    @property
    def status(self) -> str:
        """`running`, or the outcome of the sweep; a driver that was killed leaves `running`."""
        return str(self._growing.history.status or "")

    @property
    def is_over(self) -> bool:
        """Whether the sweep has ended, with any outcome."""
        return self.status != "running"

    @property
    def report(self) -> SweepReport:
        """The report as far as the sweep has come."""
        if self._report is None:
            history = self._growing.history
            self._report = build_report(self.spec, history, self._folder, self.storage)
        return self._report

    def __repr__(self) -> str:
        history = self._growing.history
        ended, begun = len(history.ended()), len(history.trials)
        return f"<sweep {self.spec.name}: {self.status}, {ended} of {begun} trials ended>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    def _read_spec(self) -> SweepSpec:
        written = self._growing.history.spec
        if written is None:
            allowed = "a sweep's storage, such as runs/NAME"
            flaw = "which holds no sweep"
            raise SweepStorageError(
                refusal("storage", self.storage, allowed, "Run a sweep first.", flaw=flaw)
            )
        return recorded_sweep(written)


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
