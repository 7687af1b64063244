"""Encoding of events as lines of JSON, and their decoding.

Every line has the number of the log's format. The number is raised only if an older version would
misread a newer log; the older version then refuses the log with a message. A newer version may add
kinds of events, or fields, without a new number: an older version ignores them with a warning.

Numbers in `metrics` may be non-finite. They are written as the strings "nan", "inf" and "-inf", so
that every line is strict JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import SweepStorageError
from orchestrator.journal.events import (
    EVENT_TYPES,
    Event,
    LogEntry,
    TrialStarted,
    UnknownEvent,
)
from orchestrator.journal.first_spec import FirstSpec
from orchestrator.wording import shorten
from trainables.claims import NumberError, parse_numbers
from trainables.errors import SpecError
from trainables.spec import TrialSpec

logger = logging.getLogger(__name__)

LOG_FORMAT = 3
"""Format of the lines that this version writes. Lines without one are of format 1."""

_LATEST = 253_402_300_799.0
"""Last second of the year 9999, in seconds since the epoch."""

_RENAMED_KINDS = {"form_scored": "form_evaluated"}
"""Kinds of format 1 with their present names."""

_RENAMED_FIELDS = {"form_evaluated": {"way": "fingerprint"}}
"""Fields of format 1 with their present names, by the present name of the kind."""


class MalformedEventError(ValueError):
    """A line is not an event, as when a driver was killed while it wrote."""


def encode_entry(entry: LogEntry, first: FirstSpec | None = None) -> bytes:
    """The line of an entry, with a line break; fields with default values are left out.

    Args:
        entry: The entry.
        first: First spec of the log, to shorten the spec of a later trial.

    Raises:
        ValueError: A value outside of `metrics` is not strict JSON.
    """
    values: dict[str, Any] = {"event": entry.kind, "format": LOG_FORMAT, "at": entry.at}
    for field in dataclasses.fields(entry.event):
        value = getattr(entry.event, field.name)
        if value != field.default:
            values[field.name] = value
    if first is not None and isinstance(entry.event, TrialStarted):
        values = first.shorten(values)
    if "metrics" in values:
        values["metrics"] = {
            name: value if math.isfinite(value) else str(float(value))
            for name, value in values["metrics"].items()
        }
    text = json.dumps(values, allow_nan=False, default=_plain, separators=(",", ":"))
    return text.encode() + b"\n"


def decode_entry(line: bytes, source: str, first: FirstSpec | None = None) -> LogEntry:
    """The event of a line in any known format.

    Args:
        line: A line of the log.
        source: File and number of the line, for errors.
        first: First spec of the log so far; learns it from the line.

    Raises:
        MalformedEventError: The line is incomplete or damaged.
        SweepStorageError: The line is complete, but this version cannot read it.
    """
    try:
        values = dict(parse_numbers(line))
    except NumberError as error:
        raise _unreadable(source, f"holds {error}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise MalformedEventError(f"no JSON object with event and at: {error}") from error
    try:
        kind, at = str(values.pop("event")), float(values.pop("at"))
        written_in = int(values.pop("format", 1))
        if not 0 <= at <= _LATEST:
            raise ValueError(f"at is {at}, which is no time")
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        problem = shorten(str(error))
        raise MalformedEventError(f"no JSON object with event and at: {problem}") from error
    if written_in > LOG_FORMAT:
        raise SweepStorageError(
            f"{source}: got format {written_in} of the event log; allowed: 1 to {LOG_FORMAT}. "
            "A newer version of lorchestra wrote this log: read it with that version."
        )
    if kind == "trial_started":
        return LogEntry(at=at, event=_parse_start(values, source, first or FirstSpec()))
    return LogEntry(at=at, event=parse_event(kind, values, source))


def _parse_start(values: Mapping[str, Any], source: str, first: FirstSpec) -> TrialStarted:
    """The start of a trial, from a whole spec or from what differs from the first one."""
    try:
        whole = first.restore(values)
    except ValueError as error:
        raise _unreadable(source, f"event 'trial_started': {shorten(str(error))}") from error
    event = parse_event("trial_started", whole, source)
    assert isinstance(event, TrialStarted)
    first.learn(event.spec)
    return event


def parse_event(kind: str, values: Mapping[str, Any], source: str) -> Event | UnknownEvent:
    """The event from plain values.

    Args:
        kind: Name of the event's kind in the log.
        values: Fields of the event; unknown fields are ignored.
        source: File and number of the line, for errors.

    Raises:
        SweepStorageError: A field is missing or has another type.
    """
    kind = _RENAMED_KINDS.get(kind, kind)
    if kind not in EVENT_TYPES:
        _warn_once(f"events {kind!r}")
        return UnknownEvent(kind=kind)
    renamed = _RENAMED_FIELDS.get(kind, {})
    fields = {renamed.get(name, name): value for name, value in values.items()}
    if kind == "stage_ended" and fields.get("stage") == "finals":
        fields["stage"] = "repeats"  # the name of the stage in format 1
    known = {field.name for field in dataclasses.fields(EVENT_TYPES[kind])}
    for name in fields.keys() - known:
        _warn_once(f"the field {name!r} of events {kind!r}")
    try:
        return _adapter(kind).validate_python({n: v for n, v in fields.items() if n in known})
    except ValidationError as error:
        raise _explain(kind, error, source) from error


def require_usable(entry: LogEntry, source: str) -> None:
    """Refuse a trial whose spec no version can train.

    Args:
        entry: The entry.
        source: File and number of the line, for errors.

    Raises:
        SweepStorageError: The spec of a trial cannot be read.
    """
    if isinstance(entry.event, TrialStarted):
        try:
            TrialSpec.from_dict(entry.event.spec)
        except SpecError as error:
            problem = f"event {entry.kind!r} has spec: {shorten(str(error), 400)}"
            raise _unreadable(source, problem) from error


def _explain(kind: str, error: ValidationError, source: str) -> SweepStorageError:
    lacking = sorted(str(e["loc"][0]) for e in error.errors() if e["type"] == "missing")
    first = error.errors()[0]
    problem = f"lacks {', '.join(lacking)}"
    if not lacking:
        where, got = ".".join(map(str, first["loc"])), shorten(repr(first["input"]))
        problem = f"has {shorten(where)}: got {got}, {shorten(first['msg'])}"
    return _unreadable(source, f"event {kind!r} {problem}")


def _unreadable(source: str, problem: str) -> SweepStorageError:
    return SweepStorageError(
        f"{source}: {problem}; allowed: logs of formats 1 to {LOG_FORMAT}. Read it with the "
        "version that wrote it, restore the file from a copy, or start the sweep in another "
        "folder."
    )


@functools.cache
def _adapter(kind: str) -> TypeAdapter[Event]:
    return TypeAdapter(EVENT_TYPES[kind])


@functools.cache
def _warn_once(what: str) -> None:
    logger.warning(
        "the event log has %s, which this version of lorchestra does not know and ignores; a "
        "newer version wrote them",
        what,
    )


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a NumPy scalar
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise ValueError(f"{value!r} is no plain value; allowed: what JSON has")
