"""Rows before tokenization: read, checked and divided into splits without common rows.

The result is a pure function of the spec: a driver can call it before GPU time, and a restarted
worker sees the same rows in the same order.
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
"""Share of the rows in one cluster above which near duplicates no longer stay together."""


@dataclass(frozen=True, kw_only=True)
class RawSplit:
    """Checked rows of one split before tokenization.

    Attributes:
        field: Dotted field of the rows' source.
        rows: In the order of their source.
        digest: `sha256:...` over the rows in their order; independent of the tokenizer.
    """

    field: str
    rows: tuple[RawRow, ...]
    digest: str


@dataclass(frozen=True, kw_only=True)
class RawSplits:
    """Train, validation and test rows before tokenization, with the findings of the checks.

    Attributes:
        layout: The layout of the columns.
        skipped: Rows that cannot be used, by the split whose source holds them.
        unread: Files that belong to other splits, by the split whose source folder holds them.
        overlaps: Rows that two splits have in common.
        dropped: Number of rows removed from a split because another split holds them, too.
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
        """The existing splits by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}


def read_raw_splits(spec: DataSpec) -> RawSplits:
    """Rows of a spec after reading, checks and splitting; needs no tokenizer.

    Duplicates stay in one split, and so do long near duplicates and rows of one `group_by` value.
    A hash of `split_seed` and the trained text decides the split of a group, so few rows change
    their split when others are added, removed or reordered. Splits have the sizes given by the
    fractions, as closely as whole groups permit.

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
    """A split of the rows of one source, with their digest."""
    digest = hashlib.sha256(canonical_json([dict(row.values) for row in rows])).hexdigest()
    return RawSplit(field=field, rows=rows, digest=f"sha256:{digest}")


def style_of(example: Example) -> PromptStyle:
    """Prompt style of an example: `plain` (text) or `chat` (messages)."""
    return "chat" if isinstance(example, ChatExample) else "plain"


def canonical_json(value: object) -> bytes:
    """JSON bytes of a value, independent of the order of keys."""
    # default=str: Parquet cells can be dates or decimals.
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()


# ---------------------------------------------------------------------------------------- checks


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """Checked rows of a source: usable rows with their trained text, and bad rows."""

    rows: tuple[RawRow, ...]
    contents: tuple[Content, ...]
    bad: tuple[BadRow, ...]


def _check_sources(
    sources: Mapping[str, SourceRows], layout: RowLayout, spec: DataSpec
) -> tuple[dict[str, _Checked], PromptStyle]:
    """Checked rows of every source; the first good row sets the prompt style of all."""
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
    """Source and number of a row's place, as a sort key."""
    source, _, number = row.place.rpartition(" ")
    return source, int(number)


# ------------------------------------------------------------------------------------- splitting


def _split_off(
    rows: Sequence[RawRow],
    contents: Sequence[Content],
    clusters: Clusters,
    train: Sequence[int],
    spec: DataSpec,
) -> dict[str, list[int]]:
    """Positions of `train` and of each split to split off; empty if all splits are given."""
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
        # Take from both ends: a row that leaves one split goes to training, not to the other.
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
                f"data.{name}; allowed: at least one row, or group of equal rows, in "
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
    """Groups of positions that stay together, in the order of splitting off."""
    labels: list[list[object]] = [[clusters.same[n] for n in train]]
    near = [clusters.near[n] for n in train]
    if largest_share(near) <= _MOST_NEAR:
        labels.append(list(near))
    keys: list[object] = [contents[n].key.hex() for n in train]
    if spec.group_by is not None:
        for n in train:
            if rows[n].values.get(spec.group_by) is None:
                raise DataError(
                    f"data.group_by: {rows[n].place} has no value in column {spec.group_by!r}; "
                    f"allowed: a column that every row fills, of {', '.join(rows[n].values)}. "
                    "Name another column or fill it in."
                )
        keys = [rows[n].values[spec.group_by] for n in train]
        labels.append([canonical_json(key) for key in keys])
    ranks = [hashlib.sha256(canonical_json([spec.split_seed, key])).digest() for key in keys]
    groups: dict[int, list[int]] = {}
    first: dict[int, bytes] = {}
    for position, root in enumerate(unite(labels)):
        groups.setdefault(root, []).append(train[position])
        first[root] = min(first.get(root, ranks[position]), ranks[position])
    return [groups[root] for root in sorted(groups, key=lambda root: first[root])]


def _choose(groups: Sequence[list[int]], size: int) -> list[list[int]]:
    """The first groups that fit into `size` rows; the smallest group if none fits."""
    chosen, left = [], size
    for group in groups:
        if len(group) <= left:
            chosen.append(group)
            left -= len(group)
    return chosen or sorted(groups, key=len)[:1]


# ------------------------------------------------------------------------------------ overlaps


def _settle_overlaps(
    homes: Mapping[str, Sequence[int]],
    clusters: Clusters,
    overlaps: Iterable[Overlap],
    spec: DataSpec,
) -> dict[str, Sequence[int]]:
    """Positions of each split after applying `on_overlap`."""
    kept = dict(homes)
    found = list(overlaps)
    if not found or spec.on_overlap == "warn":
        return kept
    if spec.on_overlap == "fail":
        raise DataError(
            f"data.on_overlap: got 'fail', and {found[0].describe().rstrip('.')}; allowed: splits "
            "that share no rows. Remove these rows, or set data.on_overlap to drop or warn."
        )
    for losing, others in (("train", ("validation", "test")), ("validation", ("test",))):
        held = [n for other in others for n in homes.get(other, ())]
        same, near = shared(kept[losing], held, clusters)
        lost = {*same, *near}
        kept[losing] = [n for n in kept[losing] if n not in lost]
        if not kept[losing]:
            raise DataError(
                f"data.on_overlap: got 'drop', but no rows are left in data.{losing}: all rows "
                f"are also in {' or '.join(others)}; allowed: splits that differ. Give other "
                "rows, or leave data.validation and data.test out to split them off."
            )
    return kept
