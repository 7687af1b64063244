"""Number of trials that a host trains at once: what its memory holds, and what still pays."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LEAST_GAIN = 0.1
"""Least relative gain of tokens per second for which one more seat is filled."""

MOST_SEATS_THAT_PAY = 10
"""Most seats that can pay: one more than n seats raises tokens per second by less than 1/n, as a
pack of n + 1 seats takes longer than one of n."""

SeatsReason = Literal["memory", "knee", "no limit"]
"""What limits the seats of a host: its memory, the speed of more seats, or nothing that was
measured: where no memory is known, a host has one seat."""


@dataclass(frozen=True, kw_only=True)
class SeatsDecision:
    """Seats of a host.

    Attributes:
        seats: Trials that are trained at once.
        reason: What limits them.
        by_memory: Seats that the memory holds; `None` if it is not known.
        by_knee: Seats up to the last that pays; `None` before it is measured.
        speeds: Tokens per second of 1, 2, … seats, as measured.
    """

    seats: int
    reason: SeatsReason
    by_memory: int | None = None
    by_knee: int | None = None
    speeds: tuple[float, ...] = ()


def find_knee(speeds: Sequence[float]) -> int:
    """Seats up to the last that raises tokens per second by `LEAST_GAIN`.

    Args:
        speeds: Tokens per second of 1, 2, … seats; at least one.
    """
    for seats, (before, after) in enumerate(itertools.pairwise(speeds), start=1):
        if after - before < LEAST_GAIN * before:
            return seats
    return len(speeds)


def decide_seats(by_memory: int | None, speeds: Sequence[float] | None = None) -> SeatsDecision:
    """The seats of a host whose number is left to it.

    Args:
        by_memory: Seats that the memory holds; `None` if it is not known.
        speeds: Tokens per second of 1, 2, … seats; `None` if they cannot be measured, as in a
            plan, where every seat that can pay is taken to do so.
    """
    by_knee = None if not speeds else find_knee(speeds)
    paying = MOST_SEATS_THAT_PAY if by_knee is None else by_knee
    if by_memory is None and by_knee is None:
        return SeatsDecision(seats=1, reason="no limit")
    is_short = by_memory is not None and by_memory < paying
    return SeatsDecision(
        seats=max(1, by_memory) if is_short and by_memory is not None else paying,
        reason="memory" if is_short else "knee",
        by_memory=by_memory,
        by_knee=by_knee,
        speeds=tuple(speeds or ()),
    )
