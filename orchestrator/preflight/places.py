"""Whether a folder can hold a sweep: writable, with file locks, and free of another driver."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from orchestrator.errors import SweepStorageError
from orchestrator.journal.log import require_unlocked
from orchestrator.journal.paths import EVENTS_FILE
from orchestrator.preflight.machine import existing_parent


def require_usable(folder: Path) -> None:
    """Refuse a folder that a driver could not write and lock; nothing is left behind.

    Args:
        folder: The sweep's folder, which need not exist.

    Raises:
        SweepInUseError: Another driver runs the sweep there.
        SweepStorageError: It cannot be written or locked.
    """
    require_unlocked(folder / EVENTS_FILE)
    parent = existing_parent(folder)
    try:
        # The system removes the file, even if this process is killed.
        with tempfile.TemporaryFile(dir=parent) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise SweepStorageError(
            f"{folder}: cannot be written and locked ({error.strerror} in {parent}); allowed: a "
            "writable folder on a file system with locks. Choose another folder, or correct its "
            "permissions."
        ) from error
