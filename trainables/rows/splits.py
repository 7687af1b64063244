"""Rows before they are tokens: read, checked, and parted so that no split holds another's rows.

All of it is a pure function of the spec, so that a driver can call it before GPU time, and a
worker that starts again sees the same rows in the same order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trainables.data_spec import DataSpec
from trainables.errors import DataError
from trainables.files.bad_rows import bad_row, refuse_bad
from trainables.files.formats import ChatExample, Example, parse_row
from trainables.files.layouts import RowLayout, find_layout
from trainables.files.readers import BadRow, RawRow
from trainables.files.sources import SourceRows, read_source
from trainables.rows.duplicates import (
    Clusters,
    Content,
    Overlap,
    content_of,
    count_overlaps,
    find_clusters,
    largest_share,
    shared,
    unite,
)

PromptStyle = Literal["plain", "chat"]
SPLITS = ("train", "validation", "test")

_MOST_NEAR = 0.5
"""Part of the rows in one cluster from which near duplicates part nothing any more."""


@dataclass(frozen=True, kw_only=True)
class RawSplit:
    """Checked rows of one split before they are tokens.

    Attributes:
        field: Dotted field of the source the rows came from.
        rows: In the order of their source.
        digest: `sha256:...` over the rows in their order; independent of the tokenizer.
    """

    field: str
    rows: tuple[RawRow, ...]
    digest: str


@dataclass(frozen=True, kw_only=True)
class RawSplits:
    """Train, validation and test rows before they are tokens, and what was found out about them.

    Attributes:
        layout: How their columns are read.
        skipped: Rows that cannot be used, by the split whose source holds them.
        unread: Files of a source's folder that belong to other splits, by that split.
        overlaps: Rows that two of the splits have in common.
        dropped: Rows that were taken out of a split because another holds them, too.
    """

    train: RawSplit
    validation: RawSplit
    test: RawSplit | None
    layout: RowLayout
    prompt_style: PromptStyle
    skipped: Mapping[str, tuple[BadRow, ...]]
    unread: Mapping[str, tuple[str, ...]]
    overlaps: tuple[Overlap, ...]
    dropped: Mapping[str, int]

    @property
    def by_name(self) -> dict[str, RawSplit]:
        """The splits that there are."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}


def read_raw_splits(spec: DataSpec) -> RawSplits:
    """Rows read, checked and split; needs no tokenizer.

    Rows that say the same stay in one split, and so do long ones that nearly do and those of one
    `group_by` value. Which ones are split off follows a hash of `split_seed` and what they say, so
    few rows change their split when others are added, removed or reordered. Splits have the sizes
    that the fractions say, as closely as whole groups can.

    Raises:
        DataError: A source or row cannot be used, a split has no rows, or splits overlap and
            `on_overlap` is `fail`.
    """
    sources = {name: read_source(spec, name) for name in SPLITS if getattr(spec, name) is not None}
    layout = find_layout(sources["train"].rows, spec, "data.train")
    checked, style = _check_sources(sources, layout, spec)
    rows = [row for one in checked.values() for row in one.rows]
    contents = [content for one in checked.values() for content in one.contents]
    clusters = find_clusters(contents)
    homes: dict[str, Sequence[int]] = {}
    for name, one in checked.items():
        start = sum(map(len, homes.values()))
        homes[name] = range(start, start + len(one.rows))
    homes |= _split_off(rows, contents, clusters, homes["train"], spec)
    found = count_overlaps(homes, clusters)
    kept = _settle_overlaps(homes, clusters, found, spec)
    dropped = {name: len(homes[name]) - len(kept[name]) for name in homes}
    splits = {
        name: raw_split(
            tuple(rows[n] for n in positions), f"data.{name if name in sources else 'train'}"
        )
        for name, positions in kept.items()
    }
    return RawSplits(
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        layout=layout,
        prompt_style=style,
        skipped={name: one.bad for name, one in checked.items() if one.bad},
        unread={name: one.unread for name, one in sources.items() if one.unread},
        overlaps=found,
        dropped={name: count for name, count in dropped.items() if count},
    )


def raw_split(rows: tuple[RawRow, ...], field: str) -> RawSplit:
    """Rows of one source with their digest."""
    digest = hashlib.sha256(canonical_json([dict(row.values) for row in rows])).hexdigest()
    return RawSplit(field=field, rows=rows, digest=f"sha256:{digest}")


def style_of(example: Example) -> PromptStyle:
    """How an example asks: by text or by messages."""
    return "chat" if isinstance(example, ChatExample) else "plain"


def canonical_json(value: object) -> bytes:
    """The same bytes for equal values, whatever the order of their keys."""
    # default=str: Parquet cells can be dates or decimals.
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()


# --------------------------------------------------------------------------------- the rows of it


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """The rows of a source that can be used, what is trained of each, and those that cannot."""

    rows: tuple[RawRow, ...]
    contents: tuple[Content, ...]
    bad: tuple[BadRow, ...]


def _check_sources(
    sources: Mapping[str, SourceRows], layout: RowLayout, spec: DataSpec
) -> tuple[dict[str, _Checked], PromptStyle]:
    """Every row parsed; the style that they share is that of the first good one."""
    style: PromptStyle = "plain"
    checked: dict[str, _Checked] = {}
    for name, source in sources.items():
        field = f"data.{name}"
        one, style = _check_rows(source, layout, field, style if checked else None)
        if spec.on_bad_row == "fail" or not one.rows:
            refuse_bad(one.bad, len(one.rows) + len(one.bad), field)
        checked[name] = one
    return checked, style


def _check_rows(
    source: SourceRows, layout: RowLayout, field: str, style: PromptStyle | None
) -> tuple[_Checked, PromptStyle]:
    rows, contents, bad = [], [], list(source.bad)
    for row in source.rows:
        try:
            example = parse_row(row, layout, field)
        except DataError as error:
            bad.append(bad_row(row, field, error))
            continue
        style = style or style_of(example)
        if style_of(example) == style:
            rows.append(row)
            contents.append(content_of(example))
        else:
            bad.append(
                BadRow(
                    place=row.place,
                    problem=f"is {style_of(example)} but the first row of data.train is {style}",
                    allowed="one of the two in all rows",
                    remedy="Write all prompts as text, or all as messages.",
                )
            )
    ordered = sorted(bad, key=_line_of)
    checked = _Checked(rows=tuple(rows), contents=tuple(contents), bad=tuple(ordered))
    return checked, style or "plain"


def _line_of(row: BadRow) -> tuple[str, int]:
    """A place's source and number, to sort by."""
    source, _, number = row.place.rpartition(" ")
    return source, int(number)


# ------------------------------------------------------------------------------------- parting


def _split_off(
    rows: Sequence[RawRow],
    contents: Sequence[Content],
    clusters: Clusters,
    train: Sequence[int],
    spec: DataSpec,
) -> dict[str, list[int]]:
    """Positions that stay in `train`, and those of each split that is not given."""
    fractions = {
        name: fraction
        for name, fraction in (
            ("validation", spec.validation_fraction),
            ("test", spec.test_fraction),
        )
        if getattr(spec, name) is None and fraction > 0
    }
    if not fractions:
        return {}
    sizes = {name: max(1, int(part * len(train) + 0.5)) for name, part in fractions.items()}
    groups = _groups(rows, contents, clusters, train, spec)
    parts: dict[str, list[int]] = {}
    for name, size in sizes.items():
        # From both ends: a row that leaves one of them goes to training, never to the other.
        order = groups if name == "validation" else groups[::-1]
        chosen = _choose(order, size)
        parts[name] = sorted(n for group in chosen for n in group)
        taken = {id(group) for group in chosen}
        groups = [group for group in groups if id(group) not in taken]
    parts["train"] = sorted(n for group in groups for n in group)
    for name, part in parts.items():
        if not part:
            raise DataError(
                f"data.train: splitting {len(train)} rows by {fractions} left none for "
                f"data.{name}; allowed: at least one row, or group of rows that say the same, in "
                "every split. Change the fractions, add rows or groups, or give data.validation "
                "and data.test."
            )
    return parts


def _groups(
    rows: Sequence[RawRow],
    contents: Sequence[Content],
    clusters: Clusters,
    train: Sequence[int],
    spec: DataSpec,
) -> list[list[int]]:
    """Positions that stay together, in the order in which they are split off."""
    labels: list[list[object]] = [[clusters.same[n] for n in train]]
    near = [clusters.near[n] for n in train]
    if largest_share(near) <= _MOST_NEAR:
        labels.append(list(near))
    keys: list[object] = [contents[n].key.hex() for n in train]
    if spec.group_by is not None:
        keys = [_group(rows[n], spec.group_by) for n in train]
        labels.append([canonical_json(key) for key in keys])
    ranks = [_rank(spec.split_seed, key) for key in keys]
    groups: dict[int, list[int]] = {}
    first: dict[int, bytes] = {}
    for position, root in enumerate(unite(labels)):
        groups.setdefault(root, []).append(train[position])
        first[root] = min(first.get(root, ranks[position]), ranks[position])
    return [groups[root] for root in sorted(groups, key=lambda root: first[root])]


def _choose(groups: Sequence[list[int]], size: int) -> list[list[int]]:
    """The first groups that fit into a size; the smallest one where none does."""
    chosen, left = [], size
    for group in groups:
        if len(group) <= left:
            chosen.append(group)
            left -= len(group)
    return chosen or sorted(groups, key=len)[:1]


def _group(row: RawRow, column: str) -> object:
    if row.values.get(column) is None:
        raise DataError(
            f"data.group_by: {row.place} has no value in column {column!r}; allowed: a column "
            f"that every row fills, of {', '.join(row.values)}. Name another column or fill it in."
        )
    return row.values[column]


def _rank(seed: int, key: object) -> bytes:
    """Where a group stands in the order; depends on nothing but the arguments."""
    return hashlib.sha256(canonical_json([seed, key])).digest()


# ------------------------------------------------------------------------------------ overlaps


def _settle_overlaps(
    homes: Mapping[str, Sequence[int]],
    clusters: Clusters,
    overlaps: Iterable[Overlap],
    spec: DataSpec,
) -> dict[str, Sequence[int]]:
    """The splits after `on_overlap`."""
    kept = dict(homes)
    found = list(overlaps)
    if not found or spec.on_overlap == "warn":
        return kept
    if spec.on_overlap == "fail":
        raise DataError(
            f"data.on_overlap: got 'fail', and {found[0].describe().rstrip('.')}; allowed: splits "
            "that share no rows. Take these rows out, or set data.on_overlap to drop or warn."
        )
    for losing, others in (("train", ("validation", "test")), ("validation", ("test",))):
        held = [n for other in others for n in homes.get(other, ())]
        same, near = shared(kept[losing], held, clusters)
        lost = {*same, *near}
        kept[losing] = [n for n in kept[losing] if n not in lost]
        if not kept[losing]:
            raise DataError(
                f"data.on_overlap: got 'drop', which leaves no rows in data.{losing}: all of them "
                f"are in {' or '.join(others)}, too; allowed: splits that differ. Give other "
                "rows, or leave data.validation and data.test out to split them off."
            )
    return kept
