"""Messages about rows that cannot be used: a sentence for a single row, else a list."""

from __future__ import annotations

from collections.abc import Sequence

from trainables.errors import DataError
from trainables.files.readers import BadRow, RawRow

SHOWN = 10
"""Most rows shown in a list; further rows are counted."""


def refuse_bad(bad: Sequence[BadRow], total: int, field: str) -> None:
    """Refuse a source with bad rows; do nothing if there are none.

    Args:
        bad: The rows that cannot be used.
        total: Number of all rows of the source.
        field: Dotted field of the source.

    Raises:
        DataError: There are bad rows; the message lists up to ten with their places.
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
            f"Correct them, or set data.on_bad_row: skip to go on without them.\n{lines}"
        )


def list_bad(bad: Sequence[BadRow]) -> list[str]:
    """A line for each of the first ten rows, and a line with the count of the others."""
    lines = [f"{one.place} {one.problem}" for one in bad[:SHOWN]]
    return lines if len(bad) <= SHOWN else [*lines, f"and {len(bad) - SHOWN} more"]


def bad_row(row: RawRow, field: str, error: DataError) -> BadRow:
    """Bad row from an error about a row: place, problem, allowed values and remedy."""
    text = str(error).removeprefix(f"{field}: ").removeprefix(row.place).lstrip(" :")
    problem, _, rest = text.partition("; allowed: ")
    allowed, _, remedy = rest.partition(". ")
    return BadRow(place=row.place, problem=problem, allowed=allowed, remedy=remedy)
