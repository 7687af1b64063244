"""Claims on a trial's folder: of two hosts that hold the same trial, only the newer one writes.

    <state_dir>-claims/000001000007/    a mark: the seat with this number may write

A host that is stopped or cut off does not know that its trial was given to another one, and goes
on writing when it wakes. Numbers grow with each seating and with each driver of a sweep; they are
fencing tokens (Kleppmann, "How to do distributed locking", 2016). A claim is looked for just
before a write gets its name, so a host can be late by that moment only.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from trainables.errors import SupersededError
from trainables.hosts.storage import join_location, list_folders, put_folder, remove_folder

PER_DRIVER = 1_000_000
"""Number of seatings that one driver of a sweep can count."""

_CLAIM = "{:012d}"


def claim(state_dir: str, number: int) -> None:
    """Claim a trial's folder; a number of 0 claims nothing.

    Raises:
        SupersededError: A seat with a higher number has claimed it.
        StorageError: A remote location cannot be written.
        OSError: A local location cannot be written.
    """
    if number == 0:
        return
    require_claim(state_dir, number)
    with tempfile.TemporaryDirectory(prefix="lorchestra-") as temporary:
        (Path(temporary) / "claim").write_text(str(number))
        put_folder(Path(temporary), join_location(_claims(state_dir), _CLAIM.format(number)))
    for other in _numbers(state_dir):
        if other < number:
            remove_folder(join_location(_claims(state_dir), _CLAIM.format(other)))


def require_claim(state_dir: str, number: int) -> None:
    """Raise `SupersededError` if a seat with a higher number has claimed the trial's folder."""
    newest = max(_numbers(state_dir), default=0)
    if number and newest > number:
        raise SupersededError(
            f"{state_dir}: seat {number} holds a trial that seat {newest} has taken over; what it "
            "trained does not count. Nothing is to be done: the other seat trains the trial."
        )


def _numbers(state_dir: str) -> list[int]:
    names = list_folders(_claims(state_dir))
    return [int(name) for name in names if re.fullmatch(r"\d{12}", name)]


def _claims(state_dir: str) -> str:
    return f"{state_dir.rstrip('/')}-claims"
