"""Rows that say the same, or nearly the same, under whatever id they come.

Rows are the same when their trained text is, white space and case aside. Long rows are nearly the
same when at least `NEAR` of their shingles are (Jaccard index), which MinHash estimates (Broder
1997) with one permutation (Li, Owen & Zhang 2012, arXiv:1208.1259). Shingles that many rows share,
such as those of one long instruction, tell rows not apart and do not count.
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
"""Least share of shingles that two rows have in common when they are nearly the same."""

_WIDTH = 8
"""Bytes of a shingle, so that one is a 64-bit number."""
_FEWEST = 100
"""Fewest shingles of a row that is compared by them: a short row is the same, or another."""
_MOST_BYTES = 1 << 16
_BINS, _BANDS = 100, 20
_EMPTY = np.uint32(0xFFFFFFFF)
_COUNTERS = 1 << 20
_SAMPLE = 4096
"""Rows that are looked at for shingles that many rows share."""

_Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Content:
    """What is trained of a row, white space and case aside.

    Attributes:
        key: Equal for rows that say the same.
        text: UTF-8 bytes, at most 65,536 of them.
    """

    key: bytes
    text: bytes


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Rows sorted into clusters, by position.

    Attributes:
        same: Number of the cluster of rows that say the same.
        near: Number of the cluster of rows that say the same or nearly the same.
    """

    same: tuple[int, ...]
    near: tuple[int, ...]


def content_of(example: Example) -> Content:
    """What is trained of an example, white space and case aside."""
    if isinstance(example, ChatExample):
        turns = [
            [turn["role"], _normal(str(turn.get("content") or "")), turn.get("tool_calls")]
            for turn in example.turns
        ]
        text = json.dumps([turns, getattr(example, "tools", ())], sort_keys=True, default=str)
    else:
        # The border counts: "a b" and "c" teach something else than "a" and "b c".
        text = f"{_normal(example.prompt)}\0{_normal(example.answer)}"
    content = text.encode()
    return Content(
        key=hashlib.blake2b(content, digest_size=16).digest(), text=content[:_MOST_BYTES]
    )


def find_clusters(contents: Sequence[Content]) -> Clusters:
    """Which rows say the same, and which nearly the same; the same for the same rows."""
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
    """Clusters of rows that share a label of any kind: a number for each row, by position."""
    forest = _Forest(len(labels[0]) if labels else 0)
    for kind in labels:
        first: dict[object, int] = {}
        for position, label in enumerate(kind):
            forest.join(position, first.setdefault(label, position))
    return [forest.root(position) for position in range(len(forest.parents))]


class _Forest:
    """Disjoint sets of numbers; the smallest stands for its set."""

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
    """Positions of rows that are nearly the same, enough of them to connect all such rows."""
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
    """A hash of every `_WIDTH` bytes that follow one another, `(len(text) - _WIDTH + 1,)`."""
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(text, np.uint8), _WIDTH)
    hashes = np.ascontiguousarray(windows).view(np.uint64).ravel()
    # The finalizer of splitmix64 (Steele et al. 2014): neighbours must not have near values.
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _Hashes = hashes ^ (hashes >> np.uint64(31))
    return mixed


def _counter(hashes: _Hashes) -> npt.NDArray[np.intp]:
    return (hashes & np.uint64(_COUNTERS - 1)).astype(np.intp)


def _common_shingles(texts: Sequence[bytes]) -> npt.NDArray[np.bool_]:
    """Which counters stand for shingles that too many rows have, `(_COUNTERS,)`."""
    sample = texts[:: -(-len(texts) // _SAMPLE)]
    counts = np.zeros(_COUNTERS, dtype=np.uint32)
    for text in sample:
        counts[np.unique(_counter(_shingles(text)))] += 1
    most = min(max(3, len(sample) // 2), max(20, len(sample) // 20))
    return counts > most


def _signature(hashes: _Hashes) -> npt.NDArray[np.uint32]:
    """The least hash of each bin, `(_BINS,)`; `_EMPTY` for bins without one."""
    high = hashes >> np.uint64(32)
    bins = ((high * np.uint64(_BINS)) >> np.uint64(32)).astype(np.intp)
    signature = np.full(_BINS, _EMPTY, dtype=np.uint32)
    np.minimum.at(signature, bins, hashes.astype(np.uint32))
    return signature


def _fill_empty(matrix: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Signatures whose empty bins take the value of the next one that is not, in a ring."""
    filled = matrix.copy()
    for _ in range(_BINS):
        is_empty = filled == _EMPTY
        if not is_empty.any():
            break
        filled = np.where(is_empty, np.roll(filled, -1, axis=1), filled)
    return filled


def _candidates(matrix: npt.NDArray[np.uint32]) -> Iterator[tuple[int, int]]:
    """Pairs of rows that agree in all bins of a band, each with the first such row."""
    width, seen = _BINS // _BANDS, set()
    for band in range(_BANDS):
        buckets: defaultdict[bytes, list[int]] = defaultdict(list)
        part = np.ascontiguousarray(matrix[:, band * width : (band + 1) * width])
        for number, row in enumerate(part):
            buckets[row.tobytes()].append(number)
        for bucket in buckets.values():
            # With the first and with the one before: some bucket has two alike as neighbours.
            for position in range(1, len(bucket)):
                for other in {bucket[0], bucket[position - 1]}:
                    pair = (other, bucket[position])
                    if pair not in seen:
                        seen.add(pair)
                        yield pair


# ------------------------------------------------------------------------------------- overlaps


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much of one split is in another.

    Attributes:
        rows: Name of the split whose rows are counted.
        other: Name of the split in which they are looked for.
        same: Rows that say the same as one there.
        near: Further rows that say nearly the same as one there.
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
"""Splits that are held against each other: the rows of the first in the second."""


def count_overlaps(splits: dict[str, Sequence[int]], clusters: Clusters) -> tuple[Overlap, ...]:
    """Overlaps of each pair of splits that have any.

    Args:
        splits: By name, the positions of its rows in the clusters.
        clusters: Of all rows.
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
    """Which of the rows say the same as one of the others, and which further ones nearly."""
    same = {clusters.same[other] for other in others}
    near = {clusters.near[other] for other in others}
    return (
        [row for row in rows if clusters.same[row] in same],
        [row for row in rows if clusters.same[row] not in same and clusters.near[row] in near],
    )


def largest_share(labels: Sequence[int]) -> float:
    """Part of the rows that are in the largest cluster."""
    return max(Counter(labels).values(), default=0) / max(1, len(labels))
