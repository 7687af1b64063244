"""Progress of a trial at a location: the newest sound state and every report up to it.

    <state_dir>/step-00000040/state.*        files of `save_state`
    <state_dir>/step-00000040/reports.json   the metrics of step 20, of step 40
    <state_dir>/step-00000040/seal.json      digests of these files, and the trial's settings
    <state_dir>/between-00000047/...         the same, saved after a notice that the host ends,
                                             with between.json: the losses since step 40

The reports lie beside the weights of the same step, so a resumed trial can repeat, word for word,
the reports that were lost in a crash. Until the horizon, the state before the newest one is kept,
too: a state that differs from its seal counts as damaged, and the trial continues from the one
before it, or from step 0. A sound state of a trial with other settings is refused.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainables.contract import file_record, identity_digest
from trainables.errors import DamagedFolderError, SpecError, StateError, StorageError
from trainables.hosts.storage import (
    fetch_folder,
    join_location,
    list_folders,
    remove_folder,
    writing_folder,
)
from trainables.memory_settings import MEMORY_SETTINGS
from trainables.spec import TrialSpec

logger = logging.getLogger(__name__)

REPORTS_FILE = "reports.json"
SEAL_FILE = "seal.json"
"""File of a state that is written last."""

INHERITED = "inherited"
"""Mark of a report inherited from another trial's state."""

BETWEEN_FILE = "between.json"
"""File of a state that was saved between two reports."""

LOST_STEP, BACK_TO_STEP = "lost_state_of_step", "continued_from_step"
"""Marks of the reports after a damaged state: its step, and the step that the trial went back to.
"""

_COPY_RETRIES = 8
_READ_RETRIES = 8

_PLACES = {
    "base": ("model", "revision"),
    "data": ("train", "validation", "test", "revision"),
    "eval": ("metric",),
}
"""Settings that name a place; what lies there is compared by digest, as a place may move."""

_LEFT_OUT = {
    section: (*_PLACES.get(section, ()), *MEMORY_SETTINGS.get(section, ()))
    for section in (*_PLACES, *MEMORY_SETTINGS)
}

Metrics = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The newest sound state of a trial.

    Attributes:
        folder: Local folder of the state; `None` for a start from step 0.
        reports: Reports up to the state, oldest first.
        damaged: Steps of newer states that are damaged, newest first.
        between: For a state after the last report, its `step`, and the `tokens`, `losses` and
            `busy_s` since the report.
    """

    folder: Path | None = None
    reports: Sequence[dict[str, Any]] = ()
    damaged: tuple[int, ...] = ()
    between: Mapping[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Step of the state; 0 without a state."""
        if self.between:
            return int(self.between["step"])
        return int(self.reports[-1]["step"]) if self.reports else 0

    @property
    def marks(self) -> dict[str, float]:
        """Marks for the reports of a trial that continues after a damaged state."""
        if not self.damaged:
            return {}
        return {LOST_STEP: float(self.damaged[0]), BACK_TO_STEP: float(self.step)}


def save_progress(
    state_dir: str,
    step: int,
    reports: Sequence[Metrics],
    save: Callable[[Path], None],
    spec: TrialSpec,
    guard: Callable[[], None] = lambda: None,
) -> None:
    """Save a state with its reports, whole or not at all.

    Removes all other states but the one before it; at the horizon, this one, too.

    Args:
        state_dir: The trial's folder, a local path or an `s3://` address; created when missing.
        step: Step of the state.
        reports: Metrics of each report so far, oldest first.
        save: Writes the state into the given local folder.
        spec: The trial.
        guard: Called just before the state gets its name; an error saves nothing.

    Raises:
        StorageError: A remote location cannot be written.
        OSError: A local location cannot be written.
    """
    name = f"step-{step:08d}"
    kept = join_location(state_dir, name)
    with writing_folder(kept, guard) as writing:  # a seat that repeats steps replaces its state
        _write_state(writing, reports, save, spec)
    for between in _names(state_dir, _BETWEEN):
        remove_folder(join_location(state_dir, between))
    others = [other for other in _state_names(state_dir) if other != name]
    before = max((other for other in others if other < name), default=None)
    for other in others:
        if other != before or step >= spec.optim.steps:
            remove_folder(join_location(state_dir, other))


def save_between(
    state_dir: str,
    between: Mapping[str, Any],
    reports: Sequence[Metrics],
    save: Callable[[Path], None],
    spec: TrialSpec,
    guard: Callable[[], None] = lambda: None,
) -> None:
    """Save a state after the last report, whole or not at all; the next report removes it.

    Args:
        state_dir: As in `save_progress`.
        between: As in `Progress`.
        reports: Metrics of each report so far, oldest first.
        save: Writes the state into the given local folder.
        spec: The trial.
        guard: Called just before the state gets its name; an error saves nothing.

    Raises:
        StorageError: A remote location cannot be written.
        OSError: A local location cannot be written.
    """
    older = _names(state_dir, _BETWEEN)
    name = f"between-{between['step']:08d}"
    with writing_folder(join_location(state_dir, name), guard) as writing:
        (writing / BETWEEN_FILE).write_text(json.dumps(dict(between)))
        _write_state(writing, reports, save, spec)
    for other in older:
        if other != name:
            remove_folder(join_location(state_dir, other))


def _write_state(
    folder: Path, reports: Sequence[Metrics], save: Callable[[Path], None], spec: TrialSpec
) -> None:
    """Write a state, its reports and its seal."""
    save(folder)
    (folder / REPORTS_FILE).write_text(json.dumps([dict(report) for report in reports]))
    files = {file.name: file_record(file) for file in sorted(folder.iterdir())}
    seal: dict[str, Any] = {"files": files, "spec": spec.to_dict()}
    seal["digest"] = identity_digest(seal)
    (folder / SEAL_FILE).write_text(json.dumps(seal, sort_keys=True))


@contextmanager
def find_progress(
    state_dir: str, spec: TrialSpec | None, *, is_reported: bool = True
) -> Iterator[Progress]:
    """The newest sound state of a trial; without one, the trial starts from step 0.

    A remote folder is copied; the copy is removed when the block ends. The trial's host may
    replace states meanwhile.

    Args:
        state_dir: The trial's folder, a local path or an `s3://` address.
        spec: The trial; `None` to read the state of another trial.
        is_reported: Whether the state must be that of a report; else one saved after the last
            report is taken, too.

    Raises:
        StateError: The state belongs to a trial with other settings.
        StorageError: A remote location cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="lorchestra-") as temporary:
        for number in range(_READ_RETRIES):
            names = _state_names(state_dir)
            found, problems = _find_sound(state_dir, names, Path(temporary) / str(number))
            # A state that its host replaces during the reading is not damaged.
            if not problems or (number > 0 and names == _state_names(state_dir)):
                break
        for problem in problems:
            logger.warning("%s", problem)
        if not is_reported:
            found = _after_report(state_dir, found, Path(temporary) / "between")
        if spec is not None and found.folder is not None:
            _require_same_trial(found.folder, spec, state_dir)
        yield found


def _state_names(state_dir: str) -> list[str]:
    """Names of the states at a location, newest first."""
    return _names(state_dir, _REPORTED)


_REPORTED, _BETWEEN = r"step-\d{8,}", r"between-\d{8,}"


def _names(state_dir: str, form: str) -> list[str]:
    names = [name for name in list_folders(state_dir) if re.fullmatch(form, name)]
    return sorted(names, key=_step_of, reverse=True)


def _step_of(name: str) -> int:
    return int(name.rpartition("-")[2])


def _after_report(state_dir: str, found: Progress, into: Path) -> Progress:
    """The newest state after the last report, or what was found without it.

    A damaged one costs the steps since the report, as if there were none.
    """
    for name in _names(state_dir, _BETWEEN):
        if _step_of(name) <= found.step:
            break
        try:
            folder, reports = _read_state(join_location(state_dir, name), into / name)
            between = json.loads((folder / BETWEEN_FILE).read_text())
        except (StateError, OSError, ValueError) as error:
            logger.warning("%s", error)
        else:
            return replace(found, folder=folder, reports=reports, between=between)
    return found


def _find_sound(
    state_dir: str, names: Sequence[str], into: Path
) -> tuple[Progress, tuple[StateError, ...]]:
    """The first sound state of `names`, and the problems of those before it."""
    problems: list[StateError] = []
    damaged: list[int] = []
    for name in names:
        try:
            folder, reports = _read_state(join_location(state_dir, name), into / name)
        except StateError as error:
            problems.append(error)
            damaged.append(_step_of(name))
        else:
            found = Progress(folder=folder, reports=reports, damaged=tuple(damaged))
            return found, tuple(problems)
    return Progress(damaged=tuple(damaged)), tuple(problems)


def _read_state(location: str, into: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Local folder and reports of a state that equals its seal.

    Raises:
        StateError: A file is missing, or differs from the seal.
    """
    try:
        folder = fetch_folder(location, into)
        if folder is None:
            raise FileNotFoundError("it was removed")
        files = _read_seal(folder)["files"]
        for name, record in files.items():
            if name not in {file.name for file in folder.iterdir()}:
                raise FileNotFoundError(f"{name} is missing")
            if file_record(folder / name) != record:
                raise ValueError(f"{name} differs from its digest")
        reports: list[dict[str, Any]] = json.loads((folder / REPORTS_FILE).read_text())
        if BETWEEN_FILE not in files:
            int(reports[-1]["step"])
    except (DamagedFolderError, OSError, ValueError, TypeError, LookupError) as error:
        raise _damaged(location, error) from error
    return folder, reports


def _damaged(location: str, error: Exception) -> StateError:
    said = " ".join(str(error).split()) or type(error).__name__
    return StateError(
        f"{location}: the saved state is damaged ({said}); allowed: a state as it was saved. "
        "The trial continues from the state before it, or from step 0."
    )


def _read_seal(folder: Path) -> dict[str, Any]:
    seal: dict[str, Any] = json.loads((folder / SEAL_FILE).read_text())
    if identity_digest(seal) != seal["digest"]:
        raise ValueError(f"{SEAL_FILE} differs from its digest")
    return seal


def _require_same_trial(folder: Path, spec: TrialSpec, state_dir: str) -> None:
    """Refuse a state that was saved under other settings.

    Raises:
        StateError: A setting differs.
    """
    try:
        saved = _settings(TrialSpec.from_dict(_read_seal(folder)["spec"]))
    except (SpecError, LookupError) as error:
        raise StateError(
            f"{state_dir}: the saved state belongs to a trial that this version does not know "
            f"({error}); allowed: states of this trial. Choose another storage for the sweep."
        ) from error
    wanted = _settings(spec)
    for name, value in wanted.items():
        if saved[name] != value:
            raise StateError(
                f"{state_dir}: the saved state belongs to another trial, with {name} "
                f"{saved[name]!r} in place of {value!r}; allowed: states of this trial. "
                "Choose another storage for the sweep, or remove the folder to train the trial "
                "from step 0."
            )


def _settings(spec: TrialSpec) -> dict[str, Any]:
    """Settings by dotted name that decide the trial."""
    values = json.loads(json.dumps(spec.to_dict(), default=str))  # rows in memory, in tests
    return {
        f"{section}.{name}": value
        for section, settings in {**values, "trial": {"seed": values["seed"]}}.items()
        if isinstance(settings, dict)
        for name, value in settings.items()
        if name not in _LEFT_OUT.get(section, ())
    }


def copy_progress(source: str, target: str, spec: TrialSpec) -> int | None:
    """Start a trial from the newest state of another; a repeated call returns the same step.

    The other trial may be in training: its host replaces states during the copy.

    Args:
        source: Folder of the other trial's states.
        target: Folder of this trial's states; existing states are kept.
        spec: This trial, which the copy is sealed for. A state at its horizon is not copied,
            because no step would remain.

    Returns:
        The step from which this trial continues; `None` for a start from nothing.

    Raises:
        StorageError: A remote location cannot be read or written.
        OSError: A local location cannot be read or written.
    """
    with find_progress(target, spec) as own:
        if own.folder is not None:
            steps = [int(report["step"]) for report in own.reports if INHERITED in report]
            return max(steps, default=None)
    for _ in range(_COPY_RETRIES):
        # The host may remove a state during the copy; a newer state exists by then.
        with suppress(OSError, ValueError, StorageError):
            return _copy_newest(source, target, spec)
        time.sleep(0.1)
    return _copy_newest(source, target, spec)


def _copy_newest(source: str, target: str, spec: TrialSpec) -> int | None:
    with find_progress(source, None) as kept:
        if kept.folder is None or kept.step >= spec.optim.steps:
            return None
        inherited = [{**report, INHERITED: 1.0} for report in kept.reports]
        inherited[-1]["host_s"] = 0.0  # excludes the host time of the other trial
        folder = kept.folder
        save_progress(target, kept.step, inherited, lambda into: _copy_whole(folder, into), spec)
        return kept.step


def _copy_whole(kept: Path, into: Path) -> None:
    """Copy a state; raise if another process replaces or removes the state meanwhile."""
    inode = kept.stat().st_ino
    without_seal = shutil.ignore_patterns(SEAL_FILE)
    shutil.copytree(kept, into, dirs_exist_ok=True, ignore=without_seal)
    if kept.stat().st_ino != inode:
        raise FileNotFoundError(f"{kept}: it was replaced while it was copied")


def lost_state(state_dir: str, step: int) -> StateError:
    """The error for an adapter that cannot be exported, as its state is damaged."""
    return StateError(
        f"{state_dir}: the saved state of step {step} is damaged, so that its adapter cannot be "
        "exported; allowed: the state as it was saved. Restore the folder from a copy and run the "
        "sweep again."
    )
