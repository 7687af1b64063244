"""How long the rows of a split are in tokens, and what a limit takes away from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainables.data import EncodedRow


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

    def cut_at(self, limit: int, kept: Sequence[EncodedRow]) -> Lengths:
        """The same rows under a shorter limit, which leaves these."""
        ends_lost = sum(row.is_cut for row in kept) + self.rows - len(kept)
        return replace(self, limit=limit, kept=len(kept), ends_lost=ends_lost)

    def describe(self, limit: str) -> str:
        """One sentence on what the limit of that name takes away."""
        return (
            f"of {self.rows} rows, {self.cut} are longer than {limit}={self.limit} and cut; "
            f"{self.dropped} of them are dropped, as no answer is left; {self.ends_lost} lose the "
            f"end of an answer; {limit}: {self.longest} takes all rows whole"
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
