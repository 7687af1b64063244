"""Removes checkpoints that a running sweep no longer needs, so that losers do not fill the disk.

A checkpoint (the adapter's weights with their optimizer moments) is what an unfinished trial goes
on from and what a finalist is evaluated from. Adapters stay; `orchestrator.pruning` removes more,
once a sweep is over and the user asks for it.
"""

from __future__ import annotations

from orchestrator.errors import SweepStorageError
from orchestrator.journal.events import FoldersPruned
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.recording import SweepRecord
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.resuming import goes_on
from orchestrator.spec.sweep import SweepSpec
from trainables.errors import StorageError
from trainables.hosts.storage import remove_folder

SPARE = 2
"""Trials whose checkpoints are kept, per finalist: `finals.top` may be raised that far later."""


def unneeded_checkpoints(spec: SweepSpec, history: SweepHistory) -> list[int]:
    """Numbers of ended trials whose checkpoints neither the finals nor a resumed sweep can use.

    Population-based training copies checkpoints of ended trials, so that none is unneeded there.
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
        and not goes_on(trial, is_failed=True)
    ]


def remove_unneeded(spec: SweepSpec, record: SweepRecord, storage: SweepStorage) -> list[int]:
    """Record the unneeded checkpoints, then remove them; returns the trials' numbers.

    A trial whose adapter is still to be exported keeps its checkpoint until then.

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
