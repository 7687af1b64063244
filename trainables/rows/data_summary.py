"""Summary of the rows before training: layout, splits, cuts and warnings.

The values are plain, frozen and free of torch: a driver prints the summary, a manifest and a
report keep it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trainables.files.bad_rows import list_bad
from trainables.files.layouts import RowLayout
from trainables.files.readers import BadRow
from trainables.rows.duplicates import Overlap
from trainables.rows.lengths import Lengths

if TYPE_CHECKING:
    from trainables.rows.chat_summary import ChatSummary
    from trainables.rows.data import Splits
    from trainables.rows.splits import RawSplits

FEW_ROWS = 50
"""Number of rows below which a difference between trials is hard to tell from chance."""

_NAMES = {"train": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """Counts and lengths of the rows of one split.

    Attributes:
        rows: Number of rows in the split that can be used.
        skipped: Rows of the source that cannot be used and were left out.
        dropped: Rows that were removed because another split holds them, too.
        unread: Files of the source's folder that belong to other splits.
        lengths: Lengths in tokens; `None` before tokenization.
    """

    rows: int
    skipped: tuple[BadRow, ...] = ()
    dropped: int = 0
    unread: tuple[str, ...] = ()
    lengths: Lengths | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "rows": self.rows,
            "skipped": len(self.skipped),
            "overlapping": self.dropped,
            **({} if self.lengths is None else self.lengths.to_dict()),
        }


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """Summary of a sweep's rows for one base.

    Attributes:
        layout: The layout of the columns.
        prompt_style: `plain` or `chat`.
        splits: Summary of each split, by name.
        overlaps: Rows that two splits have in common.
        positions: Context length of the base in tokens; `None` where it is unknown.
        compared_on: Number of validation rows for comparing trials.
        chats: Prompt settings and end tokens of chats; `None` before tokenization.
    """

    layout: RowLayout
    prompt_style: str
    splits: Mapping[str, SplitSummary]
    overlaps: tuple[Overlap, ...] = ()
    positions: int | None = None
    compared_on: int | None = None
    chats: ChatSummary | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the form of a manifest's `data`."""
        return {
            "layout": self.layout.to_dict(),
            "rows": {name: split.to_dict() for name, split in self.splits.items()},
            "overlaps": [asdict(overlap) for overlap in self.overlaps],
            **({} if self.chats is None else self.chats.to_dict()),
        }

    def lines(self) -> list[str]:
        """Sentences for the user, one for each fact to know before training starts."""
        return [
            self.layout.describe(),
            self._sizes(),
            *([] if self.chats is None else self.chats.lines()),
            *self._left_out(),
            *self._shared(),
            *self._cut(),
            *self._too_long(),
            *self._few(),
        ]

    def _sizes(self) -> str:
        sizes = ", ".join(f"{one.rows} {_NAMES[name]}" for name, one in self.splits.items())
        total = self.splits["validation"].rows
        some = self.compared_on is not None and self.compared_on < total
        sample = (
            f"; trials are compared on a sample of {self.compared_on} of the {total} validation "
            "rows, the same for all"
            if some
            else ""
        )
        return f"Rows: {sizes}{sample}."

    def _left_out(self) -> Iterator[str]:
        for name, one in self.splits.items():
            if one.skipped:
                listed = "; ".join(list_bad(one.skipped))
                yield (
                    f"data.{name}: skipped {_counted(len(one.skipped))} that cannot be used "
                    f"(data.on_bad_row: skip): {listed}."
                )
            if one.unread:
                yield f"data.{name}: files of other splits are not read: {', '.join(one.unread)}."

    def _shared(self) -> Iterator[str]:
        for overlap in self.overlaps:
            yield overlap.describe()
        dropped = {name: one.dropped for name, one in self.splits.items() if one.dropped}
        for name, count in dropped.items():
            verb = "is" if count == 1 else "are"
            yield f"{count} of the {_NAMES[name]} rows {verb} removed."
        if self.overlaps and not dropped:
            yield (
                "Evaluations on trained rows measure memory; data.on_overlap: drop removes such "
                "rows from training, and fail ends the run."
            )

    def _cut(self) -> Iterator[str]:
        lengths = {
            name: one.lengths for name, one in self.splits.items() if one.lengths is not None
        }
        longest = max((one.limit for name, one in lengths.items() if name != "train"), default=0)
        for name, one in lengths.items():
            is_own = name == "train" and one.limit < longest
            limit = "data.train_max_tokens" if is_own else "data.max_tokens"
            if one.cut:
                yield f"data.{name}: {one.describe(limit)}."

    def _too_long(self) -> Iterator[str]:
        if self.positions is None:
            return
        for name, one in self.splits.items():
            lengths = one.lengths
            if lengths is None or not lengths.over(self.positions):
                continue
            trained = lengths.limit > self.positions
            end = (
                f"lower data.max_tokens to {self.positions}, or choose a base with more"
                if trained
                else "data.max_tokens cuts them before"
            )
            yield (
                f"data.{name}: {lengths.over(self.positions)} of {lengths.rows} rows are longer "
                f"than the {self.positions} positions of the base; {end}."
            )

    def _few(self) -> Iterator[str]:
        for name in ("validation", "test"):
            one = self.splits.get(name)
            if one is None:
                continue
            left = one.rows if one.lengths is None else one.lengths.kept
            if name == "validation" and self.compared_on is not None:
                left = min(left, self.compared_on)
            if left < FEW_ROWS:
                low, high = wilson_interval(0.5, left)
                yield (
                    f"With {_counted(left, _NAMES[name])}, a measured accuracy of 50% stands for "
                    f"{low:.0%} to {high:.0%} (95% interval): only large differences are "
                    "significant. More rows narrow the interval."
                )


def summarize(
    raw: RawSplits,
    splits: Splits | None = None,
    *,
    positions: int | None = None,
    compared_on: int | None = None,
    chats: ChatSummary | None = None,
) -> DataSummary:
    """Summary of the rows of a spec.

    Args:
        raw: The splits before tokenization.
        splits: The same splits as tokens, if they were tokenized.
        positions: Context length of the base in tokens.
        compared_on: Most validation rows for comparing trials.
        chats: Summary of the chats, if the splits were tokenized.
    """
    encoded = {} if splits is None else splits.by_name
    refused = {name: split.refused for name, split in encoded.items()}
    return DataSummary(
        layout=raw.layout,
        prompt_style=raw.prompt_style,
        splits={
            name: SplitSummary(
                rows=len(split.rows) - len(refused.get(name, ())),
                skipped=(*raw.skipped.get(name, ()), *refused.get(name, ())),
                dropped=raw.dropped.get(name, 0),
                unread=raw.unread.get(name, ()),
                lengths=encoded[name].lengths if name in encoded else None,
            )
            for name, split in raw.by_name.items()
        },
        overlaps=raw.overlaps,
        positions=positions,
        compared_on=compared_on,
        chats=chats,
    )


def _counted(count: int, kind: str = "") -> str:
    return f"{count} {kind}{' ' if kind else ''}{'row' if count == 1 else 'rows'}"


def wilson_interval(share: float, rows: int) -> tuple[float, float]:
    """95 % confidence interval of a share observed on `rows` rows (Wilson 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    spread = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + (z / rows) ** 2 / 4)
    return max(0.0, middle - spread), min(1.0, middle + spread)
