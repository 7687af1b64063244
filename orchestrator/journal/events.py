"""The append-only log of a sweep: `events.jsonl` in its storage folder, the truth about it.

Whatever happened is one JSON line; whatever is not in the log did not happen. A line counts once
`EventLog.append` has returned: it is on disk then. Killed at any moment, a sweep loses at most the
line it was writing, which readers skip and the next writer cuts off.

Numbers in `metrics` may be non-finite and are written as the strings "nan", "inf" and "-inf", so
that every line is strict JSON.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestrator.errors import DISK_IS_FULL, SweepInUseError, SweepStorageError, full_disk
from orchestrator.journal.replica import LogReplica
from trainables.errors import StorageError

EVENTS: Mapping[str, frozenset[str]] = {
    kind: frozenset(fields.split())
    for kind, fields in {
        "sweep_started": "sweep_id spec digest",
        "sweep_resumed": "",
        "pinned": "pins",
        "data_inspected": "lines facts",
        "base_evaluated": "base split metrics",
        "trial_started": "trial knobs spec",
        "trial_resumed": "trial step",
        "report": "trial step metrics",
        "trial_ended": "trial outcome reason step bundle",
        "final_evaluated": "trial metrics",
        "form_scored": "trial form metrics error way",
        "registered": "trial ref digest",
        "promoted": "ref promoted reason",
        "phase": "name seconds",
        "session_lost": "",
        "usage": "cpu_s gpu_s",
        "start_points": "points",
        "stage_ended": "stage reason under",
        "sweep_ended": "status reason",
        "pruned": "what trials",
    }.items()
}
"""Kinds of events with the fields each one must have; further fields are kept and ignored."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of the log.

    Attributes:
        kind: A key of `EVENTS`, or one of a later version, which readers ignore.
        at: Seconds since the epoch.
        fields: What the kind says, non-finite metrics as floats.
    """

    kind: str
    at: float
    fields: Mapping[str, Any]


class EventLog:
    """The one writer of a sweep's log, from opening to closing.

    Thread-safe. A lock file beside the log keeps other drivers out; the operating system frees it
    however the driver ends.
    """

    def __init__(self, path: Path, replica: LogReplica | None = None) -> None:
        """Take the lock and cut off a torn last line.

        Args:
            path: The file.
            replica: The log in a bucket, which is then the truth: the file becomes a copy of it.

        Raises:
            SweepInUseError: Another driver writes this log.
            SweepStorageError: It cannot be written.
        """
        self.path = path
        self._replica = replica
        self._guard = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(path.with_suffix(".lock"))
            try:
                if replica is not None:
                    replica.open(path)
                self._file = path.open("ab", buffering=0)
                self._file.truncate(_whole_length(path))
                os.fsync(self._file.fileno())
                _sync_folder(path.parent)
            except BaseException:
                os.close(self._lock)
                if replica is not None:
                    replica.close()
                raise
        except StorageError as error:
            raise SweepStorageError(str(error)) from error
        except OSError as error:
            raise SweepStorageError(
                f"{path}: cannot be written ({error}); allowed: a writable storage folder. "
                "Choose another folder or mend its permissions."
            ) from error

    def append(self, event: str, **fields: Any) -> Event:
        """Put one event on disk, and before that into the bucket; it is there when this returns.

        Raises:
            TypeError: The kind is unknown or lacks a field.
            ValueError: A value outside of `metrics` is no strict JSON.
            SweepStorageError: The disk is full or gone, or the bucket is, or another driver has
                taken the log over.
        """
        if event not in EVENTS:
            raise TypeError(f"unknown event {event!r}; allowed: {', '.join(EVENTS)}")
        missing = EVENTS[event] - fields.keys()
        if missing:
            raise TypeError(f"event {event!r} lacks {', '.join(sorted(missing))}")
        with self._guard:
            at = time.time()
            line = _encode({"event": event, "at": at, **fields})
            try:
                if self._replica is not None:
                    self._replica.append(line)
                self._write(line)
            except StorageError as error:
                raise SweepStorageError(str(error)) from error
            except OSError as error:
                if error.errno in DISK_IS_FULL:
                    raise full_disk(str(self.path)) from error
                raise SweepStorageError(
                    f"{self.path}: cannot append ({error}); allowed: space on a writable disk. "
                    "Free some space and resume the sweep."
                ) from error
        return _decode(line)

    def close(self) -> None:
        """Free the lock; the log stays."""
        with self._guard:
            if not self._file.closed:
                self._file.close()
                if self._replica is not None:
                    self._replica.close()
                os.close(self._lock)

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles the callbacks that hold a log; a copy has no file and cannot write.
        return {"path": self.path}

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        start = self._file.seek(0, os.SEEK_END)
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, f"{written} of {len(line)} bytes fitted")
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(start)  # no torn line in the middle of the log
            raise


def read_events(path: Path) -> Iterator[Event]:
    """Events in the order they happened; none for a missing log.

    Safe beside a writer: a last line that is torn or still being written is skipped.

    Raises:
        SweepStorageError: A line before the last one is no event.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    yield from decode_events(content, str(path))


def decode_events(content: bytes, source: str) -> Iterator[Event]:
    """Events in the order they happened; a torn last line is skipped.

    Args:
        content: What the log holds.
        source: Its name, for errors.

    Raises:
        SweepStorageError: A line before the last one is no event.
    """
    lines = content.split(b"\n")
    # The last part is empty after a complete line and torn otherwise.
    for number, line in enumerate(lines[:-1], 1):
        try:
            event = _decode(line)
        except ValueError as error:
            if number == len(lines) - 1:
                return
            raise SweepStorageError(
                f"{source}, line {number}: not an event ({error}); allowed: lines that lorchestra "
                "wrote. Restore the file from a copy, or start the sweep in another folder."
            ) from error
        lacking = EVENTS.get(event.kind, frozenset()) - event.fields.keys()
        if lacking:
            raise SweepStorageError(
                f"{source}, line {number}: event {event.kind!r} lacks {', '.join(sorted(lacking))}"
                "; allowed: logs of this version. Read it with the version that wrote it, or "
                "start the sweep in another folder."
            )
        yield event


def _encode(values: dict[str, Any]) -> bytes:
    if isinstance(values.get("metrics"), Mapping):
        values["metrics"] = {
            name: str(float(value)) if not math.isfinite(value) else value
            for name, value in values["metrics"].items()
        }
    text = json.dumps(values, allow_nan=False, default=_plain, separators=(",", ":"))
    return text.encode() + b"\n"


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a NumPy scalar
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise ValueError(f"{value!r} is no plain value; allowed: what JSON has")


def _decode(line: bytes) -> Event:
    values = json.loads(line)
    try:
        kind, at = values.pop("event"), float(values.pop("at"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("without event and at") from error
    if isinstance(values.get("metrics"), dict):
        values["metrics"] = {
            name: float(value) if isinstance(value, str) else value
            for name, value in values["metrics"].items()
        }
    return Event(kind=kind, at=at, fields=values)


def _whole_length(path: Path) -> int:
    """Bytes up to the end of the last line that is an event."""
    content = path.read_bytes()
    length = content.rfind(b"\n") + 1
    if length:
        start = content.rfind(b"\n", 0, length - 1) + 1
        try:
            _decode(content[start:length])
        except ValueError:  # power loss can leave zeros where the last line was to be
            return start
    return length


def _take_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 512).decode(errors="replace") or "an unnamed driver"
        os.close(descriptor)
        raise SweepInUseError(
            f"{path.parent}: in use by {holder}; allowed: one driver per storage folder. "
            "Wait for it, end it, or choose another folder."
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return descriptor


def _sync_folder(folder: Path) -> None:
    """Make a new file's name itself survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
