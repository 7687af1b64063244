"""Reproducible sample of rows: equal rows give an equal sample."""

from __future__ import annotations

import hashlib

import numpy as np


def sample(rows: int, most: int, digest: str) -> list[int]:
    """Positions of at most `most` of the rows, in ascending order; a pure function.

    Rows are drawn at random, because the first rows of a sorted file may be all of one kind. A
    smaller sample is a subset of a larger one.

    Args:
        rows: Number of rows.
        most: Most rows in the sample.
        digest: Digest of the rows; other rows give another sample.
    """
    if most >= rows:
        return list(range(rows))
    seed = int.from_bytes(hashlib.sha256(digest.encode()).digest()[:8], "big")
    order = np.random.default_rng(seed).permutation(rows)
    return sorted(order[:most].tolist())
