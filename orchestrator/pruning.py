"""Removes files that an ended sweep no longer needs: saved states, adapters of losers.

    plan_pruning   folders to remove and folders to keep, with reasons; touches no file
    prune          records the plan in the event log, then removes the folders

After pruning, the sweep can still be reported and continued: a trial keeps all its folders if the
finals, the registry or a larger budget may use the trial again.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.errors import SweepStorageError
from orchestrator.finals.standings import finalists
from orchestrator.journal.events import Folder, FoldersPruned
from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.journal.lease import Lease
from orchestrator.journal.paths import TRIALS_FOLDER, bundle_folder, state_folder, trial_folder
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.outcome import Outcome
from orchestrator.resuming import continues_on_resume
from orchestrator.search.schedule import build_scheduler, replay_history
from orchestrator.spec.complaint import require
from orchestrator.spec.sweep import SweepSpec, recorded_sweep
from trainables.errors import StorageError
from trainables.hosts.storage import file_sizes, join_location, remove_folder


@dataclass(frozen=True, kw_only=True)
class TrialFolder:
    """A folder of a trial in the storage, with the reason to remove or keep the folder.

    Attributes:
        trial: Number of the trial.
        what: Content of the folder: a state or a bundle.
        path: Location, a local path or an `s3://` address.
        bytes: Size of the files; 0 for an adapter that was never exported.
        why: Reason to remove or keep the folder.
    """

    trial: int
    what: Folder
    path: str
    bytes: int
    why: str


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """Folders to remove and folders to keep.

    Attributes:
        items: Folders to remove, by trial.
        kept: Folders that stay, by trial.
        keep: How many of the best trials keep all their folders.
        bundles: Whether adapters are also removed.
    """

    items: tuple[TrialFolder, ...]
    kept: tuple[TrialFolder, ...]
    keep: int
    bundles: bool

    @property
    def bytes(self) -> int:
        """Size of the folders to remove."""
        return sum(item.bytes for item in self.items)

    @property
    def paths(self) -> frozenset[str]:
        """Locations of the folders to remove."""
        return frozenset(item.path for item in self.items)


def spec_at_end(history: SweepHistory) -> SweepSpec:
    """The spec that the sweep ended with; a resumed sweep may have a larger budget.

    Raises:
        SweepStorageError: The storage holds no sweep.
        SweepSpecError: The recorded spec is of another version.
    """
    if history.spec is None:
        raise SweepStorageError(
            "storage: got a folder without a sweep; allowed: the storage of a sweep. "
            "Check the path."
        )
    latest = history.spec
    for stage in history.stages.values():
        latest = {**latest, **stage.under}
    return recorded_sweep(latest)


def plan_pruning(
    storage: SweepStorage, history: SweepHistory, spec: SweepSpec, *, keep: int, bundles: bool
) -> PruningPlan:
    """Find the folders that an ended sweep no longer needs; touches no file.

    These trials keep all their folders: the best of the ranking, the finalists with their repeats,
    registered trials, trials that were cut short (a larger budget continues them), and the
    parents of copies that a larger budget starts. A trial whose adapter was never exported keeps
    its state.

    Args:
        storage: The storage of the sweep.
        history: The history of the sweep.
        spec: The spec that the sweep ended with; see `spec_at_end`.
        keep: How many of the best trials keep all their folders.
        bundles: Whether to remove adapters as well as states.

    Raises:
        SweepSpecError: `keep` is negative.
        SweepStorageError: The sweep has not ended, or the storage cannot be read.
    """
    require(keep >= 0, "keep", keep, "0 or more trials", "Finalists are kept in any case.")
    _require_over(storage, history, spec)
    needed = _find_needed(spec, history, keep)
    items: list[TrialFolder] = []
    kept: list[TrialFolder] = []
    found = _find_folders(storage)
    for number, record in sorted(history.trials.items()):
        sizes = found[number]
        is_exported = record.bundle is None or storage.has_bundle(number)
        if bundles and not is_exported and number not in needed:
            sizes[bundle_folder(number)] += 0  # recorded as removed, so that no driver exports it
        for name, size in sorted(sizes.items()):
            what: Folder = "state" if name == state_folder(number) else "bundle"
            is_kept, why = number in needed, needed.get(number, "")
            if not is_kept:
                is_kept, why = _decide_loser(record, what, is_exported, bundles)
            path = join_location(storage.location, name)
            folder = TrialFolder(trial=number, what=what, path=path, bytes=size, why=why)
            (kept if is_kept else items).append(folder)
    return PruningPlan(items=tuple(items), kept=tuple(kept), keep=keep, bundles=bundles)


def prune(
    plan: PruningPlan, storage: SweepStorage, spec: SweepSpec, *, lease: Lease | None = None
) -> None:
    """Record the plan in the log, then remove its folders.

    After an interruption, a new plan finds the folders that are left.

    Args:
        plan: The plan from `plan_pruning`.
        storage: The storage of the plan.
        spec: The spec of the plan.
        lease: The lease that keeps other writers from a log in a bucket; the default lease if not
            given.

    Raises:
        SweepInUseError: A driver is running the sweep.
        SweepStorageError: The sweep has changed since the plan was made, or the storage cannot be
            written.
    """
    with storage.open_log(lease) as log:
        history = SweepHistory.read(log.path)
        now = plan_pruning(storage, history, spec, keep=plan.keep, bundles=plan.bundles)
        if now.paths != plan.paths:
            raise SweepStorageError(
                f"{storage.location}: has changed since the plan was made, now {len(now.paths)} "
                f"folders instead of {len(plan.paths)} can be removed; allowed: a plan of the "
                "present state. Make the plan again."
            )
        trials: defaultdict[Folder, set[int]] = defaultdict(set)
        for item in now.items:
            trials[item.what].add(item.trial)
        for what, numbers in trials.items():
            log.append(FoldersPruned(what=what, trials=sorted(numbers)))
        try:
            for item in now.items:
                remove_folder(item.path)
                if storage.is_remote:  # the local mirror has a copy
                    name = item.path.removeprefix(f"{storage.location}/")
                    remove_folder(str(storage.folder / name))
        except StorageError as error:
            raise SweepStorageError(str(error)) from error


def _require_over(storage: SweepStorage, history: SweepHistory, spec: SweepSpec) -> None:
    """Refuse a sweep that has work left or ended under other settings.

    Raises:
        SweepStorageError: The sweep is refused.
    """
    status = history.status or "not started"
    is_through = history.stages.keys() >= {"search", "repeats"} and not history.unfinished()
    if status not in (Outcome.COMPLETED, Outcome.FAILED) or not is_through:
        raise SweepStorageError(
            f"{storage.location}: the sweep is {status}"
            f"{'' if is_through else ', with work left'}; allowed: a sweep that has ended. Run "
            "the sweep to its end, or delete the whole storage if nobody needs the sweep."
        )
    changed = sorted(
        {
            name
            for stage in history.stages.values()
            for name, value in stage.under.items()
            if _section(spec, name) != value
        }
    )
    if changed:
        raise SweepStorageError(
            f"{storage.location}: the sweep ended under other settings of {', '.join(changed)}; "
            "allowed: the settings of its end. Run the sweep with the new settings first, or "
            "restore the old settings."
        )


def _find_needed(spec: SweepSpec, history: SweepHistory, keep: int) -> dict[int, str]:
    """Reasons to keep all folders of a trial, by number; the first reason counts."""
    needed: dict[int, str] = {}
    for record in history.trials.values():
        if record.ref is not None:
            needed[record.number] = f"registered as {record.ref}"
    for place, trial in enumerate(finalists(spec, history), 1):
        needed.setdefault(trial.number, f"finalist {place}")
        for repeat in history.repeats_of(trial.number):
            needed.setdefault(repeat.number, f"repeats finalist {place}")
    for place, trial in enumerate(history.ranking(spec.objective)[:keep], 1):
        needed.setdefault(trial.number, f"number {place} of the search")
    for number, why in _unfinished_business(spec, history):
        needed.setdefault(number, why)
    return needed


def _unfinished_business(spec: SweepSpec, history: SweepHistory) -> Iterator[tuple[int, str]]:
    """Trials that the sweep would continue or copy with a larger budget, with the reason."""
    is_failed = history.status == Outcome.FAILED
    for trial in history.ended():
        if continues_on_resume(trial, is_failed):
            yield trial.number, "a larger budget continues it"
            if trial.parent is not None:
                yield trial.parent["trial"], f"trial {trial.number} continues from it"
    if spec.schedule.algorithm != "pbt":
        return
    # Copies that population-based training has decided on but not started.
    scheduler = build_scheduler(spec)
    replay_history(scheduler, history, spec.horizon)
    while (heir := scheduler.next_heir()) is not None:
        if history.trials[heir.parent].step < spec.horizon:  # at the horizon, no steps are left
            yield heir.parent, "a larger budget starts a copy of it"


def _find_folders(storage: SweepStorage) -> defaultdict[int, Counter[str]]:
    """Sizes of the trials' folders in bytes, by trial number and then by folder name.

    Raises:
        SweepStorageError: The bucket cannot be read.
    """
    try:
        sizes = file_sizes(join_location(storage.location, TRIALS_FOLDER))
    except StorageError as error:
        raise SweepStorageError(str(error)) from error
    found: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for name, size in sizes.items():
        match = re.match(r"t(\d+)/(state|bundle(?:-[^/]+)?)/", name)
        if match is not None:
            found[int(match[1])][f"{trial_folder(int(match[1]))}/{match[2]}"] += size
    return found


def _decide_loser(
    record: TrialRecord, what: Folder, is_exported: bool, bundles: bool
) -> tuple[bool, str]:
    """Whether to keep a folder of an unneeded trial, and the reason."""
    if not bundles and what == "bundle":
        return True, "adapters are kept"
    if not bundles and not is_exported:
        return True, "its adapter was not exported yet"
    if record.repeat_of is not None:
        return False, f"repeats trial {record.repeat_of}, which is no finalist"
    return False, f"{record.outcome}, and not among the best"


def _section(spec: SweepSpec, name: str) -> object:
    """A section of the spec as JSON in the log; `to_dict` would refuse rows in memory."""
    section = getattr(spec, name)
    return None if section is None else json.loads(json.dumps(dataclasses.asdict(section)))
