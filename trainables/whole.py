"""Atomic and durable writes of local files and folders: readers find the whole content or none.

Content is on the disk before its name is, and the name is on the disk when a function returns. So
a power loss leaves the old content or the new, never an empty or half-written file.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_UMASK = os.umask(0o077)
"""The umask of the process at its start: to read it is to set it, for all threads."""
os.umask(_UMASK)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A temporary path to write; when the block ends well, the file replaces `target` in one step.

    Raises:
        OSError: The folder of `target` cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(descriptor)
    writing = Path(temporary)
    try:
        yield writing
        set_usual_modes(writing)  # mkstemp makes files that only the owner may read
        sync(writing)
        writing.replace(target)
        sync(target.parent)
    except BaseException:
        writing.unlink(missing_ok=True)
        raise


def replace_file(target: Path, content: bytes) -> None:
    """Write a file over an older one: readers see the old content or the new.

    Raises:
        OSError: The folder of `target` cannot be written.
    """
    with new_file(target) as writing:
        writing.write_bytes(content)


@contextmanager
def new_folder(
    target: Path, *, replaces: bool = True, guard: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """Empty folder to fill; when the block ends well, the folder is renamed to `target`.

    Args:
        target: Final path of the folder; missing parents are created.
        replaces: Whether an older folder at `target` is removed.
        guard: Called when the content is on the disk, just before it gets its name; an error
            leaves `target` as it was.

    Raises:
        OSError: The parent of `target` cannot be written; or `target` exists and `replaces` is
            false.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        filling = Path(temporary) / target.name
        filling.mkdir()
        yield filling
        set_usual_modes(filling)
        sync_tree(filling)
        guard()
        if replaces:
            remove_tree(target)
        filling.rename(target)
        sync(target.parent)


def remove_tree(folder: Path) -> None:
    """Remove a folder; a process killed during removal leaves nothing at `folder`.

    A missing folder is ignored.
    """
    gone = folder.with_name(f".gone-{uuid.uuid4().hex}")
    try:
        folder.rename(gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone, ignore_errors=True)


def set_usual_modes(path: Path) -> None:
    """Give a file, or a folder with all in it, the modes that the user's umask leaves.

    Libraries that write through temporary files leave modes that only the owner can read.
    """
    for each in (path, *path.rglob("*")):
        if not each.is_symlink():
            each.chmod((0o777 if each.is_dir() else 0o666) & ~_UMASK)


def sync_tree(folder: Path) -> None:
    """Flush a folder with all its files and folders to the disk.

    Raises:
        OSError: A file cannot be read, or the disk is full.
    """
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            sync(path)


def sync(path: Path) -> None:
    """Flush a file's content, or the names in a folder, to the disk.

    Raises:
        OSError: The file or folder cannot be opened, or the disk is full.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
