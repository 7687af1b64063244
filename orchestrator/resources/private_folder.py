"""The private folder of an embedded Ray: no other user reads its logs or reaches its sockets.

Ray makes its own folders writable for everyone, so that users can share a cluster. An embedded Ray
belongs to one user: its folder lies in one of mode 0700, which is removed at the end.

A driver that is killed ends nothing itself. Most of Ray's processes die with it, but its two
agents first try for a minute to tell a dead head of it. So a small process of its own notices the
driver's end by a closed pipe, ends what is left after a few seconds, and removes the folder:

    python -m orchestrator.resources.private_folder FOLDER    process ids on standard input
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
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
_GRACE_S = 5.0
"""Time that processes of a dead driver have to end by themselves."""
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


@contextmanager
def ending_with_us(folder: Path) -> Iterator[Callable[[], None]]:
    """Have processes end within seconds of this one, and the folder removed, however it ends.

    Args:
        folder: A folder of `private_folder`.

    Yields:
        Function that takes in the folder's processes, on Linux; to be called when they run.
    """
    guard = subprocess.Popen(
        [sys.executable, "-m", __name__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for the driver
    )
    assert guard.stdin is not None
    pipe = guard.stdin

    def take_in() -> None:
        known = _processes_of(folder) - {guard.pid}
        with suppress(OSError):  # the guard was killed: the rest goes on without it
            pipe.writelines(f"{pid} {_started(pid)}\n".encode() for pid in known)
            pipe.flush()

    try:
        yield take_in
    finally:
        with suppress(OSError):
            pipe.close()
        with suppress(subprocess.TimeoutExpired):
            guard.wait(_GRACE_S + 2.0)


def _guard(folder: Path) -> None:
    """Wait for the end of the driver, and then of its processes."""
    watched = [(int(pid), started) for pid, started in (line.split() for line in sys.stdin)]
    deadline = time.monotonic() + _GRACE_S
    while any(_started(pid) == started for pid, started in watched):
        if time.monotonic() > deadline:
            for pid, started in watched:
                if _started(pid) == started:
                    with suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
            break
        time.sleep(_PAUSE_S)
    if _is_left_over(folder):
        _remove(folder)


def _processes_of(folder: Path) -> set[int]:
    """Processes below this one that name the folder, and all below those; none without `/proc`."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    named = set()
    for pid in _below({os.getpid()}, parents):
        with suppress(OSError):
            if os.fsencode(folder) in Path(f"/proc/{pid}/cmdline").read_bytes():
                named.add(pid)
    return named | _below(named, parents)


def _below(roots: set[int], parents: Mapping[int, int]) -> set[int]:
    """All descendants of processes."""
    found: set[int] = set()
    fresh = set(roots)
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


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
    """Start of a running process in clock ticks since boot, from `/proc`; empty if none runs."""
    with suppress(OSError):
        # The name of the program, in parentheses, may hold spaces (proc(5), fields 3 and 22).
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state == "Z" else fields[18]
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


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))
