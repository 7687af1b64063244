"""Exact and near duplicates among rows, by their trained text.

Rows are duplicates when their trained text is equal, apart from white space and case. Long rows
are near duplicates when at least `NEAR` of their shingles agree (Jaccard index), estimated by
MinHash (Broder 1997) with one permutation (Li, Owen & Zhang 2012, arXiv:1208.1259). Shingles that
many rows share, such as those of a long common instruction, do not distinguish rows and do not
count.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainables.files.formats import ChatExample, Example

NEAR = 0.8
"""Least Jaccard index of two near duplicates."""

_WIDTH = 8
"""Bytes of a shingle: a shingle is one 64-bit number."""
_FEWEST = 100
"""Fewest shingles for the near comparison; shorter rows are compared for equality only."""
_MOST_BYTES = 1 << 16
_BINS, _BANDS = 100, 20
_EMPTY = np.uint32(0xFFFFFFFF)
_COUNTERS = 1 << 20
_SAMPLE = 4096
"""Number of rows searched for common shingles."""

_Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Content:
    """Trained text of a row, white space and case normalized.

    Attributes:
        key: Equal for rows with the same trained text.
        text: UTF-8 bytes, at most 65,536 of them.
    """

    key: bytes
    text: bytes


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Cluster numbers of rows, by position.

    Attributes:
        same: Number of the row's cluster of duplicates.
        near: Number of the row's cluster of duplicates and near duplicates.
    """

    same: tuple[int, ...]
    near: tuple[int, ...]


def content_of(example: Example) -> Content:
    """Trained text of an example, white space and case normalized."""
    if isinstance(example, ChatExample):
        turns = [
            [turn["role"], _normal(str(turn.get("content") or "")), turn.get("tool_calls")]
            for turn in example.turns
        ]
        text = json.dumps([turns, getattr(example, "tools", ())], sort_keys=True, default=str)
    else:
        # The border counts: "a b" and "c" teach another answer than "a" and "b c".
        text = f"{_normal(example.prompt)}\0{_normal(example.answer)}"
    content = text.encode()
    return Content(
        key=hashlib.blake2b(content, digest_size=16).digest(), text=content[:_MOST_BYTES]
    )


def find_clusters(contents: Sequence[Content]) -> Clusters:
    """Clusters of duplicates and of near duplicates; a pure function of the rows."""
    first: dict[bytes, int] = {}
    same = [first.setdefault(one.key, len(first)) for one in contents]
    unique: dict[int, Content] = {}
    for number, one in zip(same, contents, strict=True):
        unique.setdefault(number, one)
    near = _Forest(len(first))
    for low, high in _near_pairs([unique[number] for number in range(len(first))]):
        near.join(low, high)
    return Clusters(same=tuple(same), near=tuple(near.root(number) for number in same))


def unite(labels: Sequence[Sequence[object]]) -> list[int]:
    """Cluster number of each row; rows with a common label of any kind are in one cluster."""
    forest = _Forest(len(labels[0]) if labels else 0)
    for kind in labels:
        first: dict[object, int] = {}
        for position, label in enumerate(kind):
            forest.join(position, first.setdefault(label, position))
    return [forest.root(position) for position in range(len(forest.parents))]


class _Forest:
    """Disjoint sets of numbers; the smallest number represents its set."""

    def __init__(self, size: int) -> None:
        self.parents = list(range(size))

    def root(self, number: int) -> int:
        while self.parents[number] != number:
            self.parents[number] = self.parents[self.parents[number]]
            number = self.parents[number]
        return number

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self.parents[high] = low


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def _near_pairs(contents: Sequence[Content]) -> Iterator[tuple[int, int]]:
    """Pairs of near duplicates, by position; enough pairs to connect each cluster."""
    long = [n for n, one in enumerate(contents) if len(one.text) >= _FEWEST + _WIDTH]
    if len(long) < 2:
        return
    is_common = _common_shingles([contents[n].text for n in long])
    signatures, kept = [], []
    for number in long:
        hashes = _shingles(contents[number].text)
        hashes = hashes[~is_common[_counter(hashes)]]
        if len(hashes) >= _FEWEST:
            signatures.append(_signature(hashes))
            kept.append(number)
    if len(kept) < 2:
        return
    matrix = _fill_empty(np.stack(signatures))
    for one, other in _candidates(matrix):
        if (matrix[one] == matrix[other]).mean() >= NEAR:
            yield kept[one], kept[other]


def _shingles(text: bytes) -> _Hashes:
    """Hash of each window of `_WIDTH` consecutive bytes, `(len(text) - _WIDTH + 1,)`."""
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(text, np.uint8), _WIDTH)
    hashes = np.ascontiguousarray(windows).view(np.uint64).ravel()
    # The finalizer of splitmix64 (Steele et al. 2014) separates the hashes of similar windows.
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _Hashes = hashes ^ (hashes >> np.uint64(31))
    return mixed


def _counter(hashes: _Hashes) -> npt.NDArray[np.intp]:
    return (hashes & np.uint64(_COUNTERS - 1)).astype(np.intp)


def _common_shingles(texts: Sequence[bytes]) -> npt.NDArray[np.bool_]:
    """Mask of the counters whose shingles occur in too many rows, `(_COUNTERS,)`."""
    sample = texts[:: -(-len(texts) // _SAMPLE)]
    counts = np.zeros(_COUNTERS, dtype=np.uint32)
    for text in sample:
        counts[np.unique(_counter(_shingles(text)))] += 1
    most = min(max(3, len(sample) // 2), max(20, len(sample) // 20))
    return counts > most


def _signature(hashes: _Hashes) -> npt.NDArray[np.uint32]:
    """Smallest hash of each bin, `(_BINS,)`; `_EMPTY` for bins without a hash."""
    high = hashes >> np.uint64(32)
    bins = ((high * np.uint64(_BINS)) >> np.uint64(32)).astype(np.intp)
    signature = np.full(_BINS, _EMPTY, dtype=np.uint32)
    np.minimum.at(signature, bins, hashes.astype(np.uint32))
    return signature


def _fill_empty(matrix: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Signatures with each empty bin filled from the next non-empty bin, in a ring."""
    filled = matrix.copy()
    for _ in range(_BINS):
        is_empty = filled == _EMPTY
        if not is_empty.any():
            break
        filled = np.where(is_empty, np.roll(filled, -1, axis=1), filled)
    return filled


def _candidates(matrix: npt.NDArray[np.uint32]) -> Iterator[tuple[int, int]]:
    """Pairs of rows with equal values in all bins of a band."""
    width, seen = _BINS // _BANDS, set()
    for band in range(_BANDS):
        buckets: defaultdict[bytes, list[int]] = defaultdict(list)
        part = np.ascontiguousarray(matrix[:, band * width : (band + 1) * width])
        for number, row in enumerate(part):
            buckets[row.tobytes()].append(number)
        for bucket in buckets.values():
            # The first and the previous row: in some bucket near duplicates are neighbours.
            for position in range(1, len(bucket)):
                for other in {bucket[0], bucket[position - 1]}:
                    pair = (other, bucket[position])
                    if pair not in seen:
                        seen.add(pair)
                        yield pair


# ------------------------------------------------------------------------------------- overlaps


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Number of rows of a split that occur in another split.

    Attributes:
        rows: Name of the split whose rows are counted.
        other: Name of the split that is searched.
        same: Rows with a duplicate in the other split.
        near: Further rows with a near duplicate in the other split.
        total: Rows of the split.
    """

    rows: str
    other: str
    same: int
    near: int
    total: int

    def describe(self) -> str:
        """One sentence with the numbers."""
        near = f", and {self.near} more are nearly the same as one" if self.near else ""
        return (
            f"{self.same} of {self.total} {self.rows} rows are also {_NAMES[self.other]} "
            f"rows{near}."
        )


_NAMES = {"train": "training", "validation": "validation", "test": "test"}
PAIRS = (("validation", "train"), ("test", "train"), ("test", "validation"))
"""Pairs of splits to compare: rows of the first are looked up in the second."""


def count_overlaps(splits: dict[str, Sequence[int]], clusters: Clusters) -> tuple[Overlap, ...]:
    """Non-empty overlaps between the pairs of splits.

    Args:
        splits: Positions of the rows in the clusters, by name of the split.
        clusters: Clusters of all rows.
    """
    found = []
    for rows, other in PAIRS:
        if rows in splits and other in splits:
            same, near = shared(splits[rows], splits[other], clusters)
            if same or near:
                found.append(
                    Overlap(
                        rows=rows,
                        other=other,
                        same=len(same),
                        near=len(near),
                        total=len(splits[rows]),
                    )
                )
    return tuple(found)


def shared(
    rows: Sequence[int], others: Sequence[int], clusters: Clusters
) -> tuple[list[int], list[int]]:
    """The rows with a duplicate among the others, and further rows with a near duplicate."""
    same = {clusters.same[other] for other in others}
    near = {clusters.near[other] for other in others}
    return (
        [row for row in rows if clusters.same[row] in same],
        [row for row in rows if clusters.same[row] not in same and clusters.near[row] in near],
    )


def largest_share(labels: Sequence[int]) -> float:
    """Share of the rows in the largest cluster."""
    return max(Counter(labels).values(), default=0) / max(1, len(labels))
