"""How far a trial got, at a location: its newest state and every report up to it.

    <state_dir>/step-00000040/state.*        what `save_state` wrote
    <state_dir>/step-00000040/reports.json   the metrics of step 20, of step 40

The reports lie beside the weights they were measured on, so a trial that goes on after a crash can
say again, word for word, what nobody heard.
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
"""Mark of a report that another trial made, before this one went on from its state."""

_COPY_RETRIES = 8

Metrics = Mapping[str, float]


def save_progress(
    state_dir: str, step: int, reports: Sequence[Metrics], save: Callable[[Path], None]
) -> None:
    """Keep a state and its reports, whole or not at all, in place of an older one.

    Args:
        state_dir: The trial's folder, a local path or an `s3://` address; made when missing.
        step: Step of the state.
        reports: Metrics of each report so far, oldest first.
        save: Writes the state into the local folder it is given.

    Raises:
        StorageError: A remote location cannot be written.
        OSError: A local one cannot.
    """

    def write(folder: Path) -> None:
        save(folder)
        (folder / REPORTS_FILE).write_text(json.dumps([dict(report) for report in reports]))

    keep = _keep_remote if is_remote(state_dir) else _keep_local
    keep(state_dir, f"step-{step:08d}", write)


@contextmanager
def find_progress(state_dir: str) -> Iterator[Path | None]:
    """The newest whole state, or `None` for a trial that has saved none.

    The folder of a remote one is a copy that is gone when the block ends.

    Raises:
        StorageError: A remote location cannot be read.
    """
    if not is_remote(state_dir):
        yield max(Path(state_dir).glob("step-*"), default=None)
        return
    with tempfile.TemporaryDirectory(prefix="lorchestra-") as temporary:
        yield _fetch_newest(state_dir, Path(temporary))


def load_reports(kept: Path) -> list[dict[str, Any]]:
    """The reports saved with a state, oldest first."""
    reports: list[dict[str, Any]] = json.loads((kept / REPORTS_FILE).read_text())
    return reports


def _fetch_newest(state_dir: str, into: Path, tried: str | None = None) -> Path | None:
    """A copy of the newest whole state; of the next one when it was replaced meanwhile."""
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


def _keep_local(state_dir: str, name: str, write: Callable[[Path], None]) -> None:
    folder = Path(state_dir)
    kept = folder / name
    with new_folder(kept) as writing:  # a seat that trained these steps again replaces its state
        write(writing)
    for other in folder.iterdir():
        if other != kept:
            remove_folder(str(other))


def _keep_remote(state_dir: str, name: str, write: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(prefix="lorchestra-") as temporary:
        write(Path(temporary))
        put_folder(Path(temporary), join_location(state_dir, name))
    for other in list_folders(state_dir):
        if other != name:
            remove_folder(join_location(state_dir, other))


def copy_progress(source: str, target: str, below: int) -> int | None:
    """Let a trial start from where another one is; asked again, it says from where that was.

    The other trial may be in training: its host replaces states while this one reads them.

    Args:
        source: Where the states of the other trial are.
        target: Where those of this one will be; what is there already stays as it is.
        below: A state of this step or later is not copied, as nothing would be left to train.

    Returns:
        The step this trial goes on from; `None` for one that starts from nothing.

    Raises:
        StorageError: A remote location cannot be read or written.
        OSError: A local one cannot.
    """
    with find_progress(target) as own:
        if own is not None:
            steps = [int(report["step"]) for report in load_reports(own) if INHERITED in report]
            return max(steps, default=None)
    for _ in range(_COPY_RETRIES):
        # What is read may be removed meanwhile: there is a newer one by then.
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
        inherited[-1]["host_s"] = 0.0  # the time of the other trial is not this one's
        save_progress(target, step, inherited, lambda into: _copy_whole(kept, into))
        return step


def _copy_whole(kept: Path, into: Path) -> None:
    """Copy a folder that another process may replace or remove, or raise that it did."""
    inode = kept.stat().st_ino
    shutil.copytree(kept, into, dirs_exist_ok=True)
    if kept.stat().st_ino != inode:
        raise FileNotFoundError(f"{kept}: it was replaced while it was copied")
