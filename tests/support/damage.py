"""Damage to a file, as disks, broken copies and people do it."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path


def truncate(file: Path) -> None:
    """Cut the second half off."""
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    """Leave no byte, as a power loss can."""
    os.truncate(file, 0)


def garble(file: Path) -> None:
    """Change a byte in the middle; size and time stay."""
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x55
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def remove(file: Path) -> None:
    """Remove the file alone."""
    file.unlink()


DAMAGES: Mapping[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "empty": empty,
    "garbled": garble,
    "missing": remove,
}
