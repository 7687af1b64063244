"""Whether a sweep may continue the sweep that its storage folder holds."""

from __future__ import annotations

from orchestrator.errors import SweepStorageError
from orchestrator.journal.history import SweepHistory
from orchestrator.spec.sweep import RESUMABLE_CHANGES, SweepSpec


def require_same_sweep(spec: SweepSpec, history: SweepHistory, location: str) -> None:
    """Refuse a folder with a sweep of other settings or other rows.

    Args:
        spec: The sweep to run, with commits in place of branches.
        history: History of the sweep in the folder.
        location: The folder, for messages.

    Raises:
        SweepStorageError: Trials of the two sweeps could not be compared.
    """
    if history.sweep_id is None or history.digest == spec.digest:
        return
    recorded, written = history.spec or {}, spec.to_dict()
    fixed = written.keys() - set(RESUMABLE_CHANGES)
    if all(recorded.get(name) == written[name] for name in fixed):
        # The digest covers the rows: with an equal spec, only the data files can differ.
        raise SweepStorageError(
            f"{location}: holds sweep {history.sweep_id}, and its data files "
            f"hold other rows{_or_other_source(spec)} than it was started with; allowed: "
            "the files of the start, because earlier and later trials could not be "
            "compared. Restore the files, or choose another --storage, or another name."
        )
    allowed = ", ".join(RESUMABLE_CHANGES)
    differs = sorted(name for name in fixed if recorded.get(name) != written[name])
    raise SweepStorageError(
        f"{location}: holds sweep {history.sweep_id} of another spec "
        f"(another {', '.join(differs)}); "
        f"allowed: the spec it was started with, in which only {allowed} may change. "
        "Choose another --storage, or another name."
    )


def _or_other_source(spec: SweepSpec) -> str:
    named = {"eval.metric": spec.eval.metric, "exits.stop": spec.exits.stop}
    fields = " and ".join(field for field, name in named.items() if name is not None)
    return f", or {fields} another source," if fields else ""
