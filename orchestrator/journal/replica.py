"""The event log of a sweep in a bucket: segments, as objects cannot be appended to.

    <location>/events/00000000.jsonl   the first 256 events
    <location>/events/00000001.jsonl   the next events; rewritten with every event until full

An object is replaced whole or not at all, so a segment has no incomplete line. A segment with a
successor does not change any more.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.journal.lease import Lease
from trainables.errors import StorageError
from trainables.hosts.objects import check_bucket, list_objects, read_object, write_object
from trainables.whole import replace_file

SEGMENT_EVENTS = 256
_FOLDER = "events"


class LogReplica:
    """The segments of a log in a bucket, for the only writer.

    Args:
        location: Address of the sweep, `s3://bucket/prefix`.
        lease: Lease of the sweep; `open` takes it and `close` releases it.
    """

    def __init__(self, location: str, lease: Lease) -> None:
        self._location, self._lease = location, lease
        self._number = 0
        self._lines: list[bytes] = []

    def open(self, path: Path) -> None:
        """Take the lease and copy the log from the bucket to the local file.

        Raises:
            SweepInUseError: Another driver writes this log.
            StorageError: The bucket cannot be used, or a segment is missing.
            OSError: The local log cannot be written.
        """
        check_bucket(self._location)
        self._lease.take()
        segments = _read_segments(self._location)
        if segments:
            self._number = len(segments) - 1
            self._lines = segments[-1].splitlines(keepends=True)
        replace_file(path, b"".join(segments))

    def append(self, line: bytes) -> None:
        """Write a line durably to the bucket.

        Raises:
            SweepStorageError: Another driver has taken over.
            StorageError: The bucket cannot be used.
        """
        self._lease.check()
        is_full = len(self._lines) >= SEGMENT_EVENTS
        number, lines = (
            (self._number + 1, [line]) if is_full else (self._number, [*self._lines, line])
        )
        write_object(_segment(self._location, number), b"".join(lines))
        self._number, self._lines = number, lines

    def close(self) -> None:
        """Release the lease."""
        self._lease.close()


def read_remote_log(location: str) -> bytes:
    """The log of a sweep in a bucket; safe beside its writer.

    Raises:
        StorageError: The bucket cannot be read, or a segment is missing.
    """
    check_bucket(location)
    return b"".join(_read_segments(location))


def _read_segments(location: str) -> list[bytes]:
    names = list_objects(f"{location}/{_FOLDER}")
    segments = []
    for number in range(len(names)):
        content = read_object(_segment(location, number))
        if content is None:
            raise StorageError(
                f"{_segment(location, number)}: is missing among {len(names)} objects; allowed: "
                "the segments that lorchestra wrote. Restore the object from a copy, or start the "
                "sweep at another location."
            )
        segments.append(content)
    return segments


def _segment(location: str, number: int) -> str:
    return f"{location}/{_FOLDER}/{number:08d}.jsonl"
