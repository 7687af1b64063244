"""Local files and folders that readers find whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A path to write to: when the block ends well, the file replaces `target` in one step.

    Raises:
        OSError: The folder of `target` cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(descriptor)
    writing = Path(temporary)
    try:
        yield writing
        writing.chmod(0o644)  # mkstemp makes files that only the owner may read
        writing.replace(target)
    except BaseException:
        writing.unlink(missing_ok=True)
        raise


def replace_file(target: Path, content: bytes) -> None:
    """Write a file in place of an older one: readers see the old content or the new.

    Raises:
        OSError: The folder of `target` cannot be written.
    """
    with new_file(target) as writing:
        writing.write_bytes(content)


@contextmanager
def new_folder(target: Path, *, replaces: bool = True) -> Iterator[Path]:
    """An empty folder to fill: when the block ends well, the folder is renamed to `target`.

    Args:
        target: Where the folder goes; its parents are made.
        replaces: Whether an older folder at `target` is removed.

    Raises:
        OSError: The parent of `target` cannot be written, or `target` exists and stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        filling = Path(temporary) / target.name
        filling.mkdir()
        yield filling
        if replaces:
            remove_tree(target)
        filling.rename(target)


def remove_tree(folder: Path) -> None:
    """Remove a folder; a process killed during removal leaves nothing at `folder`.

    Nothing happens when there is no such folder.
    """
    gone = folder.with_name(f".gone-{uuid.uuid4().hex}")
    try:
        folder.rename(gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone, ignore_errors=True)
