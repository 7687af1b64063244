"""How long the rows of a split are in tokens, and what a limit takes away from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of the rows of a split, before they were cut.

    Attributes:
        all: Of each row, in their order.
        limit: Where rows were cut.
        kept: Rows that have an answer token left.
        ends_lost: Rows that were cut within or before an answer, the dropped ones among them.
    """

    all: tuple[int, ...]
    limit: int
    kept: int
    ends_lost: int

    @property
    def rows(self) -> int:
        """Count of all rows."""
        return len(self.all)

    @property
    def longest(self) -> int:
        """The limit that takes all rows whole."""
        return max(self.all)

    @property
    def cut(self) -> int:
        """Rows that were longer than the limit."""
        return self.over(self.limit)

    @property
    def dropped(self) -> int:
        """Rows of which no answer was left."""
        return self.rows - self.kept

    def over(self, limit: int) -> int:
        """Rows of more tokens than this."""
        return sum(length > limit for length in self.all)

    def cut_at(self, limit: int, kept: int, cut_within: int) -> Lengths:
        """The same rows under a shorter limit.

        Args:
            limit: Where they are cut.
            kept: Rows that have an answer token left.
            cut_within: Of these, the ones that lost the end of an answer.
        """
        return replace(self, limit=limit, kept=kept, ends_lost=cut_within + self.rows - kept)

    def describe(self, limit: str) -> str:
        """One sentence on what the limit of that name takes away."""
        return (
            f"{self.cut} of {self.rows} rows are longer than {limit}={self.limit} and cut: "
            f"{self.ends_lost} lose the end of an answer, and {self.dropped} are dropped, as no "
            f"answer is left; {limit}: {self.longest} takes all rows whole"
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
