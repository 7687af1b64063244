"""The private folder of an embedded Ray: no other user reads its logs or reaches its sockets.

Ray makes its own folders writable for everyone, so that users can share a cluster. An embedded Ray
belongs to one user: its folder lies in one of mode 0700, which is removed at the end.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.errors import ClusterError

logger = logging.getLogger(__name__)

_MAX_SOCKET_BYTES = 107
_PREFIX = "lo-"  # short, as the path of a socket must be
_SOCKET = f"/{_PREFIX}12345678/r/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path below the folder for temporary files that Ray binds a socket to."""
_OWNER_FILE = "driver"
_TRIES, _PAUSE_S = 20, 0.1
_SHORT_FOLDER = Path("/tmp")  # Ray's own default where TMPDIR is not set


def temporary_folder() -> Path:
    """The folder for private folders: `$RAY_TMPDIR`, else `$TMPDIR` if it is short, else `/tmp`.

    Raises:
        ClusterError: The folder cannot hold Ray's sockets.
    """
    named = os.environ.get("RAY_TMPDIR")
    if named is not None:
        return _with_room(named, "RAY_TMPDIR")
    folder = os.environ.get("TMPDIR")
    if folder and not _is_short(folder):
        logger.info("TMPDIR is too long for Ray's sockets: they are kept in %s", _SHORT_FOLDER)
        folder = str(_SHORT_FOLDER)
    return _with_room(folder or str(_SHORT_FOLDER), "TMPDIR")


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder that only this user can enter; removed at the end of the block.

    Folders of this user's drivers that were killed are removed, too.

    Raises:
        ClusterError: The folder for temporary files cannot hold Ray's sockets.
    """
    parent = temporary_folder()
    for old in parent.glob(f"{_PREFIX}*"):
        if _is_left_over(old):
            _remove(old)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))  # of mode 0700
    try:
        owner = f"{_place()} {os.getpid()} {_started(os.getpid())}"
        (folder / _OWNER_FILE).write_text(owner)
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder whose processes are ending and may still write, the owner's name last.

    What cannot be removed is left to the next run, which knows by the name that it may.
    """
    owner = folder / _OWNER_FILE
    with suppress(OSError):  # another driver removes the folder, too
        name = owner.read_text()
        for _ in range(_TRIES):
            for path in folder.iterdir():
                if path != owner:
                    shutil.rmtree(path, ignore_errors=True)
            owner.unlink()
            try:
                folder.rmdir()
            except OSError:
                owner.write_text(name)
                time.sleep(_PAUSE_S)
            else:
                return


def _is_left_over(folder: Path) -> bool:
    """Whether a folder of this user belongs to a driver that is dead.

    Of a driver in another container, or on another machine, nothing is known.
    """
    with suppress(OSError, ValueError):
        if folder.lstat().st_uid == os.getuid():
            place, pid, started = (folder / _OWNER_FILE).read_text().split()
            return place == _place() and _started(int(pid)) != started
    return False


def _place() -> str:
    """What process ids are valid in: a namespace of a machine since its boot."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    return platform.node()


def _started(pid: int) -> str:
    """Start of a process in clock ticks since boot, from `/proc`; empty if there is none."""
    with suppress(OSError):
        # The name of the program, in parentheses, may hold spaces (proc(5), field 22).
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _with_room(folder: str, name: str) -> Path:
    """Make a folder if missing; raise `ClusterError` if it cannot hold Ray's sockets."""
    if not _is_short(folder):
        limit = _MAX_SOCKET_BYTES - len(_SOCKET)
        raise ClusterError(
            f"{name}: got {folder}, which is too long for Ray's sockets; allowed: a path of at "
            f"most {limit} bytes. Set RAY_TMPDIR=/tmp."
        )
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ClusterError(
            f"{name}: got {folder}, where Ray cannot keep its sockets ({error.strerror}); "
            "allowed: a writable folder with space left. Correct it, or set RAY_TMPDIR to another."
        ) from error
    return Path(folder)


def _is_short(folder: str) -> bool:
    return len(os.fsencode(folder.rstrip("/"))) + len(_SOCKET) <= _MAX_SOCKET_BYTES
