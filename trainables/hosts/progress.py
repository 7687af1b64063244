"""Progress of a trial at a location: the newest state and every report up to it.

    <state_dir>/step-00000040/state.*        files of `save_state`
    <state_dir>/step-00000040/reports.json   the metrics of step 20, of step 40

The reports lie beside the weights of the same step, so a resumed trial can repeat, word for word,
the reports that were lost in a crash.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainables.errors import StorageError
from trainables.hosts.storage import (
    fetch_folder,
    is_remote,
    join_location,
    list_folders,
    put_folder,
    remove_folder,
)
from trainables.whole import new_folder

REPORTS_FILE = "reports.json"

INHERITED = "inherited"
"""Mark of a report inherited from another trial's state."""

_COPY_RETRIES = 8

Metrics = Mapping[str, float]


def save_progress(
    state_dir: str, step: int, reports: Sequence[Metrics], save: Callable[[Path], None]
) -> None:
    """Save a state with its reports, whole or not at all, in place of an older state.

    Args:
        state_dir: The trial's folder, a local path or an `s3://` address; created when missing.
        step: Step of the state.
        reports: Metrics of each report so far, oldest first.
        save: Writes the state into the given local folder.

    Raises:
        StorageError: A remote location cannot be written.
        OSError: A local location cannot be written.
    """

    def write(folder: Path) -> None:
        save(folder)
        (folder / REPORTS_FILE).write_text(json.dumps([dict(report) for report in reports]))

    name = f"step-{step:08d}"
    kept = join_location(state_dir, name)
    if is_remote(state_dir):
        with tempfile.TemporaryDirectory(prefix="lorchestra-") as temporary:
            write(Path(temporary))
            put_folder(Path(temporary), kept)
        older = [other for other in list_folders(state_dir) if other != name]
    else:
        with new_folder(Path(kept)) as writing:  # a seat that repeats steps replaces its state
            write(writing)
        older = [other.name for other in Path(state_dir).iterdir() if other.name != name]
    for other in older:
        remove_folder(join_location(state_dir, other))


@contextmanager
def find_progress(state_dir: str) -> Iterator[Path | None]:
    """Folder of the newest whole state, or `None` for a trial without a saved state.

    A remote folder is copied; the copy is removed when the block ends.

    Raises:
        StorageError: A remote location cannot be read.
    """
    if not is_remote(state_dir):
        yield max(Path(state_dir).glob("step-*"), default=None)
        return
    with tempfile.TemporaryDirectory(prefix="lorchestra-") as temporary:
        yield _fetch_newest(state_dir, Path(temporary))


def load_reports(kept: Path) -> list[dict[str, Any]]:
    """Reports saved with a state, oldest first."""
    reports: list[dict[str, Any]] = json.loads((kept / REPORTS_FILE).read_text())
    return reports


def _fetch_newest(state_dir: str, into: Path, tried: str | None = None) -> Path | None:
    """Copy of the newest whole state; a state replaced during the copy gives way to the next."""
    newest = max(list_folders(state_dir), default=None)
    if newest is None:
        return None
    try:
        found = fetch_folder(join_location(state_dir, newest), into / newest)
    except StorageError:
        if newest == tried:
            raise
        found = None
    if found is None and newest != tried:
        return _fetch_newest(state_dir, into, newest)
    return found


def copy_progress(source: str, target: str, below: int) -> int | None:
    """Start a trial from the newest state of another; a repeated call returns the same step.

    The other trial may be in training: its host replaces states during the copy.

    Args:
        source: Folder of the other trial's states.
        target: Folder of this trial's states; existing states are kept.
        below: States of this step or later are not copied, because no step would remain.

    Returns:
        The step from which this trial continues; `None` for a start from nothing.

    Raises:
        StorageError: A remote location cannot be read or written.
        OSError: A local location cannot be read or written.
    """
    with find_progress(target) as own:
        if own is not None:
            steps = [int(report["step"]) for report in load_reports(own) if INHERITED in report]
            return max(steps, default=None)
    for _ in range(_COPY_RETRIES):
        # The host may remove a state during the copy; a newer state exists by then.
        with suppress(OSError, ValueError, StorageError):
            return _copy_newest(source, target, below)
        time.sleep(0.1)
    with find_progress(source) as kept:
        if kept is None:
            return None
    return _copy_newest(source, target, below)


def _copy_newest(source: str, target: str, below: int) -> int | None:
    with find_progress(source) as kept:
        if kept is None:
            raise FileNotFoundError(f"{source}: no whole state is there")
        reports = load_reports(kept)
        step = int(reports[-1]["step"])
        if step >= below:
            return None
        inherited = [{**report, INHERITED: 1.0} for report in reports]
        inherited[-1]["host_s"] = 0.0  # excludes the host time of the other trial
        save_progress(target, step, inherited, lambda into: _copy_whole(kept, into))
        return step


def _copy_whole(kept: Path, into: Path) -> None:
    """Copy a folder; raise if another process replaces or removes the folder meanwhile."""
    inode = kept.stat().st_ino
    shutil.copytree(kept, into, dirs_exist_ok=True)
    if kept.stat().st_ino != inode:
        raise FileNotFoundError(f"{kept}: it was replaced while it was copied")
