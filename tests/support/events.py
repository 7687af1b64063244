"""Events of a sweep for tests, read by the codec as a log's lines are."""

from typing import Any

from orchestrator.journal.codec import parse_event
from orchestrator.journal.events import LogEntry


def event(kind: str, **fields: Any) -> Any:
    """The event of a kind that the log has, from plain values."""
    return parse_event(kind, fields, "a test")


def entry(kind: str, at: float = 0.0, **fields: Any) -> LogEntry:
    """The same as a line of the log."""
    return LogEntry(at=at, event=event(kind, **fields))
