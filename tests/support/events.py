"""Events of a sweep for tests, read by the codec as a log's lines are."""

from typing import Any

from orchestrator.journal.codec import parse_event
from orchestrator.journal.events import LogEntry
from trainables.spec import BaseSpec, DataSpec, OptimSpec, TrialSpec

ANY_TRIAL = TrialSpec(
    base=BaseSpec(model="owner/name"),
    optim=OptimSpec(steps=40),
    data=DataSpec(train="owner/rows"),
    seed=7,
).to_dict()
"""Settings of a trial, for tests in which any will do."""


def event(kind: str, **fields: Any) -> Any:
    """The event of a kind that the log has, from plain values."""
    return parse_event(kind, fields, "a test")


def entry(kind: str, at: float = 0.0, **fields: Any) -> LogEntry:
    """The same as a line of the log."""
    return LogEntry(at=at, event=event(kind, **fields))
