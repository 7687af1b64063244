"""Whether a sweep may continue the sweep that its storage folder holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from orchestrator.errors import SweepStorageError
from orchestrator.journal.history import SweepHistory
from orchestrator.spec.sweep import RESUMABLE_CHANGES, SweepSpec
from orchestrator.wording import shorten
from trainables.memory_settings import MEMORY_NAMES, MEMORY_SETTINGS, deciding_settings

_MAX_DIFFERENCES = 3


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
    recorded = _deciding(history.spec or {})
    written = _deciding(_as_recorded(spec.to_dict(), history.spec or {}, spec))
    if history.digest == spec.digest_of(written):
        return
    fixed = written.keys() - set(RESUMABLE_CHANGES)
    if all(recorded.get(name) == written[name] for name in fixed):
        # The digest covers the rows: with an equal spec, only the data files can differ.
        raise SweepStorageError(
            f"{location}: holds sweep {history.sweep_id}, and its data files "
            f"hold other rows{_or_other_source(spec)} than it was started with; allowed: "
            "the files of the start, because earlier and later trials could not be "
            "compared. Restore the files, or choose another --storage, or another name."
        )
    allowed = ", ".join((*RESUMABLE_CHANGES, *MEMORY_NAMES))
    differences = _differences(recorded, {name: written[name] for name in fixed})
    raise SweepStorageError(
        f"{location}: holds sweep {history.sweep_id} of another spec "
        f"({differences}); allowed: the spec it was started with, in which only {allowed} may "
        "change. Choose another --storage, or another name."
    )


def _deciding(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a spec without the settings that decide memory alone."""
    changed = {one: deciding_settings(one, values.get(one, {})) for one in MEMORY_SETTINGS}
    return {**values, **changed}


def _as_recorded(
    written: Mapping[str, Any], recorded: Mapping[str, Any], section: Any
) -> dict[str, Any]:
    """A sweep's values as an older version of lorchestra would have written them.

    Fields that the record lacks are left out if they have their defaults, so that an upgrade does
    not end a sweep.

    Args:
        written: The values.
        recorded: The values of the same section in the record.
        section: The section as a dataclass.
    """
    kept = {}
    for one in dataclasses.fields(section):
        value, inner = written[one.name], getattr(section, one.name)
        if one.name not in recorded:
            if one.default_factory is not dataclasses.MISSING:
                is_default = inner == one.default_factory()
            else:
                is_default = inner == one.default
            if is_default:
                continue
        elif dataclasses.is_dataclass(inner) and isinstance(recorded[one.name], Mapping):
            value = _as_recorded(value, recorded[one.name], inner)
        kept[one.name] = value
    return kept


def _or_other_source(spec: SweepSpec) -> str:
    named = {"eval.metric": spec.eval.metric, "exits.stop": spec.exits.stop}
    fields = " and ".join(field for field, name in named.items() if name is not None)
    return f", or {fields} another source," if fields else ""


def _flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a spec by dotted name."""
    return {
        f"{name}.{key}" if key else name: inner
        for name, value in values.items()
        for key, inner in (_flatten(value).items() if isinstance(value, dict) else [("", value)])
    }


def _short(value: Any) -> str:
    return shorten(str(value), 40)


def _differences(recorded: Mapping[str, Any], written: Mapping[str, Any]) -> str:
    """`lora.rank was 8, is 16`: the first fields whose values differ."""
    before, now = _flatten(recorded), _flatten(written)
    names = [name for name in now if before.get(name) != now[name]]
    told = [
        f"{name} was {_short(before.get(name, 'absent'))}, is {_short(now[name])}"
        for name in names[:_MAX_DIFFERENCES]
    ]
    more = len(names) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")
