"""Order of the training rows: shuffled for each epoch, with similar lengths in a batch."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainables.errors import DataError

_WINDOW_BATCHES = 16
"""Most batches sorted by length together: more batches save padding, fewer batches mix better."""

_WINDOWS_PER_EPOCH = 8
"""Fewest windows of an epoch: with one window, a small data set would repeat the same batches."""


def batch_rows(lengths: Sequence[int], batch_size: int, seed: int, step: int) -> list[int]:
    """Positions of the rows of optimizer step `step` (from 0); a pure function.

    Every epoch shows each row once, except the last `rows % batch_size` of its shuffle. Rows of
    similar length share a batch: shuffled windows of batches are sorted by length, and the batches
    shuffled again. Fewer rows than `batch_size` are repeated to fill it.

    Args:
        lengths: Tokens per row; passing a tuple avoids a copy.
        batch_size: Rows per step.
        seed: Any integer.
        step: Optimizer step, from 0.

    Raises:
        DataError: There are no rows.
    """
    if not lengths:
        raise DataError("data.train: got no rows to batch; allowed: at least one. Add rows.")
    epoch, position = divmod(step, max(1, len(lengths) // batch_size))
    rows: list[int] = _epoch_batches(tuple(lengths), batch_size, seed, epoch)[position].tolist()
    return rows


def longest_rows(
    lengths: Sequence[int], batch_size: int, micro_batch_size: int, seed: int, steps: range
) -> list[int]:
    """Positions of the rows of the largest micro-batch of some steps, padding included.

    Args:
        lengths: Tokens per row.
        batch_size: Rows per step.
        micro_batch_size: Rows per micro-batch.
        seed: Any integer.
        steps: The optimizer steps, from 0; at least one.
    """
    by_row, of_epoch = np.asarray(lengths), max(1, len(lengths) // batch_size)
    found, longest = None, -1
    for epoch in range(steps[0] // of_epoch, steps[-1] // of_epoch + 1):
        batches = _epoch_batches(tuple(lengths), batch_size, seed, epoch)
        first, last = steps[0] - epoch * of_epoch, steps[-1] - epoch * of_epoch
        rows = batches[max(0, first) : last + 1].reshape(-1, micro_batch_size)
        most = by_row[rows].max(axis=1)
        if most.max() > longest:
            found, longest = rows[most.argmax()].tolist(), int(most.max())
            if longest == by_row.max():
                break
    assert found is not None
    return list(found)


# The order of a seed and epoch is requested many times; 64 entries cover a full pack.
@functools.lru_cache(maxsize=64)
def _epoch_batches(
    lengths: tuple[int, ...], batch_size: int, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """Row positions of one epoch, `(steps, batch_size)`."""
    generator = np.random.default_rng([seed % 2**64, epoch])
    order = generator.permutation(len(lengths))
    if len(lengths) < batch_size:
        return np.resize(order, (1, batch_size))
    steps = len(order) // batch_size
    kept = order[: steps * batch_size]
    by_row = np.asarray(lengths)
    window = batch_size * min(_WINDOW_BATCHES, max(1, steps // _WINDOWS_PER_EPOCH))
    for start in range(0, len(kept), window):
        rows = kept[start : start + window]
        kept[start : start + window] = rows[np.argsort(by_row[rows], kind="stable")]
    batches = kept.reshape(-1, batch_size)
    return batches[generator.permutation(len(batches))]
