"""What is said of rows that cannot be used: one in a sentence of its own, several in a list."""

from __future__ import annotations

from collections.abc import Sequence

from trainables.errors import DataError
from trainables.files.readers import BadRow, RawRow

SHOWN = 10
"""Most rows of a list that are shown; the others are counted."""


def refuse_bad(bad: Sequence[BadRow], total: int, field: str) -> None:
    """Do nothing where no row is bad.

    Args:
        bad: The rows that cannot be used.
        total: Count of all rows of the source.
        field: Dotted field of the source.

    Raises:
        DataError: There are any; the message lists up to ten of them with their places.
    """
    if len(bad) == 1:
        (one,) = bad
        raise DataError(
            f"{field}: {one.place} {one.problem}; allowed: {one.allowed}. {one.remedy}"
        )
    if bad:
        lines = "\n".join(f"  {line}" for line in list_bad(bad))
        raise DataError(
            f"{field}: {len(bad)} of {total} rows cannot be used; allowed: {bad[0].allowed}. "
            f"Mend them, or set data.on_bad_row: skip to go on without them.\n{lines}"
        )


def list_bad(bad: Sequence[BadRow]) -> list[str]:
    """A line for each of the first ten rows, and one with the count of the others."""
    lines = [f"{one.place} {one.problem}" for one in bad[:SHOWN]]
    return lines if len(bad) <= SHOWN else [*lines, f"and {len(bad) - SHOWN} more"]


def bad_row(row: RawRow, field: str, error: DataError) -> BadRow:
    """What an error that was raised about a row says of it."""
    text = str(error).removeprefix(f"{field}: ").removeprefix(row.place).lstrip(" :")
    problem, _, rest = text.partition("; allowed: ")
    allowed, _, remedy = rest.partition(". ")
    return BadRow(place=row.place, problem=problem, allowed=allowed, remedy=remedy)
