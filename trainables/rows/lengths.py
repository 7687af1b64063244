"""Lengths of a split's rows in tokens, and the effect of a limit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of a split's rows in tokens, before the cut.

    Attributes:
        all: Tokens of each row, in the rows' order.
        limit: Number of tokens that rows were cut to.
        kept: Number of rows with an answer token left.
        ends_lost: Number of rows cut within or before an answer, including the dropped rows.
        answers: Answer tokens of each row before the cut, in the order of `all`.
    """

    all: tuple[int, ...]
    limit: int
    kept: int
    ends_lost: int
    answers: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Number of all rows."""
        return len(self.all)

    @property
    def longest(self) -> int:
        """The smallest limit that leaves all rows whole."""
        return max(self.all)

    @property
    def cut(self) -> int:
        """Number of rows longer than the limit."""
        return self.over(self.limit)

    @property
    def dropped(self) -> int:
        """Number of rows without an answer after the cut."""
        return self.rows - self.kept

    def over(self, limit: int) -> int:
        """Number of rows with more tokens than `limit`."""
        return sum(length > limit for length in self.all)

    def cut_at(self, limit: int, kept: int, cut_within: int) -> Lengths:
        """The same rows under a shorter limit.

        Args:
            limit: The shorter limit.
            kept: Number of rows with an answer token left.
            cut_within: Number of the kept rows that lost the end of an answer.
        """
        return replace(self, limit=limit, kept=kept, ends_lost=cut_within + self.rows - kept)

    def describe(self, limit: str) -> str:
        """One sentence on the rows cut and dropped by the limit named `limit`."""
        return (
            f"{self.cut} of {self.rows} rows are longer than {limit}={self.limit} and cut: "
            f"{self.ends_lost} lose the end of an answer, and {self.dropped} are dropped, as no "
            f"answer is left; {limit}: {self.longest} leaves all rows whole"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the length of each row."""
        return {
            "rows": self.rows,
            "limit": self.limit,
            "cut": self.cut,
            "dropped": self.dropped,
            "ends_lost": self.ends_lost,
            "longest": self.longest,
        }
