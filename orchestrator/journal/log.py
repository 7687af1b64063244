"""The append-only log of a sweep, `events.jsonl` in its storage folder.

The log is the only record of a sweep: each event is a JSON line, on disk when `EventLog.append`
returns. A killed driver loses at most the line in writing; readers skip this incomplete line, and
the next writer cuts it off.
"""

from __future__ import annotations

import copy
import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestrator.errors import DISK_IS_FULL, SweepInUseError, SweepStorageError, full_disk
from orchestrator.journal.codec import (
    MalformedEventError,
    decode_entry,
    encode_entry,
    require_usable,
)
from orchestrator.journal.events import Event, LogEntry
from orchestrator.journal.first_spec import FirstSpec
from orchestrator.journal.replica import LogReplica
from trainables.errors import StorageError
from trainables.whole import sync


class EventLog:
    """The only writer of a sweep's log, from opening to closing.

    Thread-safe. A lock file beside the log keeps other drivers out; the operating system releases
    the lock when the driver ends in any way.
    """

    def __init__(self, path: Path, replica: LogReplica | None = None) -> None:
        """Take the lock and cut off an incomplete last line.

        Args:
            path: The file.
            replica: The log in a bucket, if any; the file then becomes a copy of the replica.

        Raises:
            SweepInUseError: Another driver writes this log.
            SweepStorageError: The log cannot be written.
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
                length = _whole_length(path) if path.exists() else 0
                self._file = path.open("ab", buffering=0)
                self._file.truncate(length)
                self._first = _find_first_spec(path)
                os.fsync(self._file.fileno())
                sync(path.parent)
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
                "Choose another folder or correct its permissions."
            ) from error

    def append(self, event: Event) -> LogEntry:
        """Write an event durably to the bucket, if any, and to disk.

        Returns:
            The event as readers of the log decode it.

        Raises:
            ValueError: A value outside of `metrics` is not strict JSON.
            SweepStorageError: The disk or the bucket is full or gone, or another driver has taken
                over the log.
        """
        with self._guard:
            line = encode_entry(LogEntry(at=time.time(), event=event), self._first)
            first = copy.copy(self._first)  # what is not written must not be referred to
            entry = decode_entry(line, str(self.path), first)  # no line that readers would refuse
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
            self._first = first
        return entry

    def close(self) -> None:
        """Release the lock; the log stays."""
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
            self._file.truncate(start)  # no incomplete line in the middle of the log
            raise


class LogTail:
    """Reads each event of a growing log once.

    Args:
        log: Path of the event log.

    Attributes:
        is_behind: Whether the log may have more events than the last call took.
        is_anew: Whether what was read before does not count any more, because the last call began
            at the start of another file, or of a file that was cut short, or found none.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._first = FirstSpec()
        self._inode, self._read = 0, 0  # the file, and bytes up to the end of the last event read
        self.is_behind = False
        self.is_anew = False

    def read_on(self, max_bytes: int | None = None) -> list[LogEntry]:
        """Events since the last call, in order, without a line that is still being written.

        Args:
            max_bytes: About the most bytes to take, though at least one event; `is_behind` then
                tells whether the log may have more. `None` takes all.

        Raises:
            SweepStorageError: A line before the last line is no event, or the log cannot be read.
        """
        try:
            with self._log.open("rb") as file:
                found = os.fstat(file.fileno())
                self.is_anew = found.st_ino != self._inode or found.st_size < self._read
                if self.is_anew:
                    self._inode, self._read, self._first = found.st_ino, 0, FirstSpec()
                file.seek(self._read)
                content = file.read() if max_bytes is None else file.read(max_bytes)
                self.is_behind = len(content) == max_bytes
                if b"\n" not in content:
                    content += file.readline()
        except FileNotFoundError:
            self.is_anew, self.is_behind = self._inode != 0, False
            self._inode, self._read = 0, 0
            return []
        except OSError as error:
            raise _unreadable(self._log, error) from error
        source = f"{self._log}, from byte {self._read}" if self._read else str(self._log)
        events = list(decode_events(content, source, self._first))
        lines = content.split(b"\n")[: len(events)]
        self._read += sum(len(line) + 1 for line in lines)
        return events


def read_events(path: Path) -> Iterator[LogEntry]:
    """Events in the order of the log; none for a missing log.

    Safe beside a writer: an incomplete last line is skipped.

    Raises:
        SweepStorageError: A line before the last one is not an event, or the log cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unreadable(path, error) from error
    yield from decode_events(content, str(path))


def decode_events(
    content: bytes, source: str, first: FirstSpec | None = None
) -> Iterator[LogEntry]:
    """Events in the order of the log; an incomplete last line is skipped.

    Args:
        content: Content of the log.
        source: Name of the log, for errors.
        first: First spec of the log, if the content is not from the log's start; learns it.

    Raises:
        SweepStorageError: A line before the last one is not an event, or any line is an event
            of another shape.
    """
    lines, first = content.split(b"\n"), first or FirstSpec()
    # The last part is empty after a complete line and incomplete otherwise.
    for number, line in enumerate(lines[:-1], 1):
        try:
            entry = decode_entry(line, f"{source}, line {number}", first)
            require_usable(entry, f"{source}, line {number}")
            yield entry
        except MalformedEventError as error:
            if number == len(lines) - 1:
                return
            raise SweepStorageError(
                f"{source}, line {number}: not an event ({error}); allowed: lines that lorchestra "
                "wrote. Restore the file from a copy, or start the sweep in another folder."
            ) from error


def _unreadable(path: Path, error: OSError) -> SweepStorageError:
    return SweepStorageError(
        f"{path}: cannot be read ({error.strerror}); allowed: a folder that a sweep may write to. "
        "Choose another folder, or correct its permissions."
    )


def _whole_length(path: Path) -> int:
    """Number of bytes up to the end of the last complete event."""
    content = path.read_bytes()
    length = content.rfind(b"\n") + 1
    if length:
        start = content.rfind(b"\n", 0, length - 1) + 1
        try:
            decode_entry(content[start:length], str(path), _find_first_spec(path))
        except MalformedEventError:  # power loss can leave zeros in place of the last line
            return start
    return length


def _find_first_spec(path: Path) -> FirstSpec:
    """The spec of the first trial in a log."""
    first = FirstSpec()
    with path.open("rb") as file:
        for line in file:
            if b'"trial_started"' in line:
                # A damaged line is the reader's to refuse.
                with suppress(MalformedEventError, SweepStorageError):
                    decode_entry(line, str(path), first)
                break
    return first


def require_unlocked(log: Path) -> None:
    """Refuse a log that another driver writes; nothing is created or locked.

    Args:
        log: Path of the log.

    Raises:
        SweepInUseError: Another driver holds the lock.
    """
    path = log.with_suffix(".lock")
    if path.exists():
        os.close(_lock(path, os.open(path, os.O_RDONLY), fcntl.LOCK_SH))


def _take_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _lock(path, descriptor, fcntl.LOCK_EX)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return descriptor


def _lock(path: Path, descriptor: int, kind: int) -> int:
    """The descriptor of a lock file, locked.

    Raises:
        SweepInUseError: Another driver holds the lock.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 512).decode(errors="replace") or "an unnamed driver"
        os.close(descriptor)
        raise SweepInUseError(
            f"{path.parent}: in use by {holder}; allowed: one driver per storage folder. "
            "Wait for its end, end it, or choose another folder."
        ) from error
    return descriptor
