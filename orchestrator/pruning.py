"""What the storage of a sweep that is over can do without: saved states, adapters of losers.

    plan_pruning   what would be removed and what is kept, with reasons; touches nothing
    prune          records it in the event log, then removes it

Without the states a sweep still shows and reports all it did, and runs on: a trial is kept whole
when anything of it can be wanted again, by the finals, by the registry or by a larger budget.
"""

from __future__ import annotations

import dataclasses
import itertools
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
from orchestrator.resuming import goes_on
from orchestrator.search.schedule import build_scheduler, replay_history
from orchestrator.spec.complaint import require
from orchestrator.spec.sweep import SweepSpec, recorded_sweep
from trainables.errors import StorageError
from trainables.hosts.storage import file_sizes, join_location, remove_folder


@dataclass(frozen=True, kw_only=True)
class TrialFolder:
    """A folder of a trial in the storage, with the reason to remove or keep the folder.

    Attributes:
        trial: Its number.
        what: Folder the folder holds.
        path: Its location, a local path or an `s3://` address.
        bytes: Size of its files; 0 for an adapter that was never exported.
        why: Why it goes, or why it stays.
    """

    trial: int
    what: Folder
    path: str
    bytes: int
    why: str


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """What pruning would do.

    Attributes:
        items: Folders to remove, by trial.
        kept: Folders that stay, by trial.
        keep: How many of the best trials stay whole.
        bundles: Whether adapters are removed, too.
    """

    items: tuple[TrialFolder, ...]
    kept: tuple[TrialFolder, ...]
    keep: int
    bundles: bool

    @property
    def bytes(self) -> int:
        """What would be freed."""
        return sum(item.bytes for item in self.items)

    @property
    def paths(self) -> frozenset[str]:
        """Locations that would be removed."""
        return frozenset(item.path for item in self.items)


def spec_at_end(history: SweepHistory) -> SweepSpec:
    """The sweep under its last settings; these can allow more than the first ones.

    Raises:
        SweepStorageError: There is no sweep.
        SweepSpecError: The record is of another version.
    """
    if history.spec is None:
        raise SweepStorageError(
            "storage: got one without a sweep; allowed: the storage of a sweep that was run. "
            "Check the path."
        )
    latest = history.spec
    for stage in history.stages.values():
        latest = {**latest, **stage.under}
    return recorded_sweep(latest)


def plan_pruning(
    storage: SweepStorage, history: SweepHistory, spec: SweepSpec, *, keep: int, bundles: bool
) -> PruningPlan:
    """Find folders that a finished sweep can do without, and touch no file.

    Kept whole are the best trials of the ranking, the finalists with their repeats, what was
    registered, trials that were cut short, as a larger budget goes on with them, and the parents
    of copies that it would start. A trial whose adapter was never exported keeps its state.

    Args:
        storage: The sweep's.
        history: Folder its log adds up to.
        spec: The sweep under the settings it ended with; see `spec_at_end`.
        keep: How many of the best trials stay whole.
        bundles: Whether adapters are removed, too, and not only states.

    Raises:
        SweepSpecError: `keep` is negative.
        SweepStorageError: The sweep is not over, or the storage cannot be read.
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
            sizes[bundle_folder(number)] += 0  # so that nobody exports it any more
        for name, size in sorted(sizes.items()):
            what: Folder = "state" if name == state_folder(number) else "bundle"
            reason = needed.get(number) or ("" if bundles else _unasked(what, is_exported))
            folder = TrialFolder(
                trial=number,
                what=what,
                path=join_location(storage.location, name),
                bytes=size,
                why=reason or _say_loser(record),
            )
            (kept if reason else items).append(folder)
    return PruningPlan(items=tuple(items), kept=tuple(kept), keep=keep, bundles=bundles)


def prune(
    plan: PruningPlan, storage: SweepStorage, spec: SweepSpec, *, lease: Lease | None = None
) -> None:
    """Record the plan in the log, then remove its folders.

    Interrupted in between, the same plan made anew finds what is left.

    Args:
        plan: Of `plan_pruning`.
        storage: The same.
        spec: The same.
        lease: How a log in a bucket is kept to one writer; the usual way when not given.

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
                f"{storage.location}: has changed since it was looked at, now {len(now.paths)} "
                f"folders instead of {len(plan.paths)} can go; allowed: a plan of the sweep as it "
                "is. Look again."
            )
        trials: defaultdict[Folder, set[int]] = defaultdict(set)
        for item in now.items:
            trials[item.what].add(item.trial)
        for what, numbers in trials.items():
            log.append(FoldersPruned(what=what, trials=sorted(numbers)))
        for item in now.items:
            _remove(item.path, storage)


def _require_over(storage: SweepStorage, history: SweepHistory, spec: SweepSpec) -> None:
    """Refuse a sweep with work left, or ended under other settings.

    Raises:
        SweepStorageError: It is one of these.
    """
    status = history.status or "not started"
    is_through = history.stages.keys() >= {"search", "repeats"} and not history.unfinished()
    if status not in (Outcome.COMPLETED, Outcome.FAILED) or not is_through:
        raise SweepStorageError(
            f"{storage.location}: the sweep is {status}"
            f"{'' if is_through else ', with work left'}; allowed: one that is over. Run it to "
            "its end; of one that nobody wants, remove the storage as a whole."
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
            "allowed: those it ended under. Run it with the new ones first, or give the old ones."
        )


def _find_needed(spec: SweepSpec, history: SweepHistory, keep: int) -> dict[int, str]:
    """Why trials are kept whole, by number; the first reason counts."""
    needed: dict[int, str] = {}
    for number, why in itertools.chain(
        _results(spec, history, keep), _unfinished_business(spec, history)
    ):
        needed.setdefault(number, why)
    return needed


def _results(spec: SweepSpec, history: SweepHistory, keep: int) -> Iterator[tuple[int, str]]:
    """What the sweep found."""
    for record in history.trials.values():
        if record.ref is not None:
            yield record.number, f"registered as {record.ref}"
    for place, trial in enumerate(finalists(spec, history), 1):
        yield trial.number, f"finalist {place}"
        for repeat in history.repeats_of(trial.number):
            yield repeat.number, f"repeats finalist {place}"
    for place, trial in enumerate(history.ranking(spec.objective)[:keep], 1):
        yield trial.number, f"number {place} of the search"


def _unfinished_business(spec: SweepSpec, history: SweepHistory) -> Iterator[tuple[int, str]]:
    """What the sweep would take up with a larger budget."""
    is_failed = history.status == Outcome.FAILED
    for trial in history.ended():
        if goes_on(trial, is_failed):
            yield trial.number, "a larger budget goes on with it"
            if trial.parent is not None:
                yield trial.parent["trial"], f"trial {trial.number} goes on from it"
    for number in _parents_of_due(spec, history):
        yield number, "a larger budget starts a copy of it"


def _parents_of_due(spec: SweepSpec, history: SweepHistory) -> Iterator[int]:
    """Parents of copies that population-based training has decided on and not started."""
    if spec.schedule.algorithm != "pbt":
        return
    scheduler = build_scheduler(spec)
    replay_history(scheduler, history, spec.horizon)
    while (heir := scheduler.next_heir()) is not None:
        if history.trials[heir.parent].step < spec.horizon:  # else nothing is left to go on with
            yield heir.parent


def _find_folders(storage: SweepStorage) -> defaultdict[int, Counter[str]]:
    """Bytes of what trials have in the storage, by number and then by folder.

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


def _remove(path: str, storage: SweepStorage) -> None:
    """Remove a folder, and its copy in the mirror of a remote storage."""
    try:
        remove_folder(path)
        if storage.is_remote:
            name = path.removeprefix(f"{storage.location}/")
            remove_folder(str(storage.folder / name))
    except StorageError as error:
        raise SweepStorageError(str(error)) from error


def _unasked(what: Folder, is_exported: bool) -> str:
    """Why a loser's folder stays where only states are to go."""
    if what == "bundle":
        return "adapters are kept"
    return "" if is_exported else "its adapter was not exported yet"


def _say_loser(record: TrialRecord) -> str:
    if record.repeat_of is not None:
        return f"repeats trial {record.repeat_of}, which is no finalist"
    return f"{record.outcome}, and not among the best"


def _section(spec: SweepSpec, name: str) -> object:
    """A section of the settings as the log has it."""
    section = getattr(spec, name)
    return None if section is None else json.loads(json.dumps(dataclasses.asdict(section)))
