"""Some of many rows, drawn so that whoever draws from the same rows gets the same ones."""

from __future__ import annotations

import hashlib

import numpy as np


def sample(rows: int, most: int, digest: str) -> list[int]:
    """Positions of at most `most` of the rows, in their order; a pure function.

    Rows are drawn at random, as the first ones of a sorted file would all be of one kind. A
    smaller sample is a part of a larger one.

    Args:
        rows: How many there are.
        most: How many are wanted.
        digest: Of the rows; rows that differ give another sample.
    """
    if most >= rows:
        return list(range(rows))
    seed = int.from_bytes(hashlib.sha256(digest.encode()).digest()[:8], "big")
    order = np.random.default_rng(seed).permutation(rows)
    return sorted(order[:most].tolist())
