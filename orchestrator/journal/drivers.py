"""Whether a driver runs a sweep at this moment, seen from another process; takes no lock."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

from orchestrator.journal.history import SweepHistory
from orchestrator.journal.lease import is_held
from orchestrator.journal.paths import EVENTS_FILE
from orchestrator.journal.sweep_storage import SweepStorage

SILENT_S = 120.0
"""Age of the last event from which on a driver on another machine counts as gone.

A driver records its usage every 30 seconds."""

_LOCKS = Path("/proc/locks")
_HOLDER = re.compile(r"process (\d+) on (\S+)")


def has_driver(storage: SweepStorage, history: SweepHistory) -> bool:
    """Whether a driver writes the sweep now.

    A driver on this machine is known by its lock, one of a bucket by its lease; one on another
    machine, in a shared folder, by the age of its last event.

    Raises:
        SweepStorageError: The bucket cannot be read.
    """
    if storage.is_remote:
        return is_held(storage.location)
    lock = (storage.folder / EVENTS_FILE).with_suffix(".lock")
    try:
        holder = _HOLDER.search(lock.read_text(errors="replace"))
        inode = lock.stat().st_ino
    except FileNotFoundError:
        return False
    if holder is None or holder[2] == socket.gethostname():
        return _is_locked(inode)
    return time.time() - history.meter.last_at < SILENT_S


def _is_locked(inode: int) -> bool:
    """Whether a process of this machine holds the lock file of this number."""
    try:
        lines = _LOCKS.read_text().splitlines()
    except FileNotFoundError:  # no Linux: the lock cannot be seen without taking it
        return False
    held = {parts[5].rpartition(":")[2] for line in lines if len(parts := line.split()) > 5}
    return str(inode) in held
