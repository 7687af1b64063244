"""Removes checkpoints that a running sweep no longer needs, so that losers do not fill the disk.

A checkpoint holds the adapter's weights and their optimizer moments: an unfinished trial continues
from its checkpoint, and a finalist is evaluated from its checkpoint. Adapters stay. After the
sweep, `lorchestra prune` removes more (`orchestrator.pruning`).
"""

from __future__ import annotations

from orchestrator.errors import SweepStorageError
from orchestrator.journal.events import FoldersPruned
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.recording import SweepRecord
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.resuming import continues_on_resume
from orchestrator.spec.sweep import SweepSpec
from trainables.errors import StorageError
from trainables.hosts.storage import remove_folder

SPARE = 2
"""Trials that keep a checkpoint, for each finalist: `finals.top` may later grow by this factor."""


def unneeded_checkpoints(spec: SweepSpec, history: SweepHistory) -> list[int]:
    """Numbers of ended trials whose checkpoints neither the finals nor a resumed sweep can use.

    Empty under population-based training, because new trials copy checkpoints of ended trials.
    """
    if spec.hosts.checkpoints == "all" or spec.schedule.algorithm == "pbt":
        return []
    registered = 0 if spec.register is None else spec.register.top
    ranking = history.ranking(spec.objective)
    best = {trial.number for trial in ranking[: SPARE * max(spec.finals.top, registered)]}
    return [
        trial.number
        for trial in history.ended()
        if trial.number not in best
        and trial.repeat_of is None
        and trial.ref is None
        and "state" not in trial.pruned
        and not continues_on_resume(trial, is_failed=True)
    ]


def remove_unneeded(spec: SweepSpec, record: SweepRecord, storage: SweepStorage) -> list[int]:
    """Record the unneeded checkpoints, then remove them; returns the numbers of their trials.

    A trial keeps its checkpoint until its adapter is exported.

    Raises:
        SweepStorageError: The storage cannot be read or written.
    """
    history = record.history
    numbers = [
        number
        for number in unneeded_checkpoints(spec, history)
        if history.trials[number].bundle is None or storage.has_bundle(number)
    ]
    if numbers:
        record.add(FoldersPruned(what="state", trials=numbers))
    try:
        for number in numbers:
            remove_folder(storage.state_location(number))
    except StorageError as error:
        raise SweepStorageError(str(error)) from error
    return numbers
