"""What a host learns about itself: bytes beside their forecast, and how many seats pay.

Before the first step of a new pack, its longest rows pass forward and backward, and the gradients
are dropped: what will run out of memory does so in the first minute. Before the first trial of a
host whose number of seats is left to it, throw-away trials are trained for a few steps in packs of
1, 2, … seats. Neither changes a number of any trial.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from trainables.hosts.bench import SeatEngine, attempt
from trainables.hosts.orders import HostGauge, HostPrior
from trainables.memory.calibration import MemoryReading
from trainables.memory.seating import (
    MOST_SEATS_THAT_PAY,
    SeatsDecision,
    decide_seats,
    find_knee,
)
from trainables.spec import TrialSpec

TIMED_S, TIMED_STEPS = 0.3, 5
"""Seconds and steps after which a pack has been timed for long enough: the first of them."""

TOLD_CHANGE = 0.02
"""Least change of a correction for which a measurement like an earlier one is told."""

MOST_MEASURING_S = 5.0
"""Seconds from the second step on after which no larger pack is measured."""


class Gauge:
    """Measures the engine of a host.

    Args:
        engine: The engine.
        clock: Time in seconds.
        finds_seats: Whether the host decides on the number of its seats.
        prior: What hosts of the same group have measured.
    """

    def __init__(
        self,
        engine: SeatEngine,
        clock: Callable[[], float],
        *,
        finds_seats: bool = False,
        prior: HostPrior | None = None,
    ) -> None:
        self._engine, self._clock = engine, clock
        self._finds_seats = finds_seats
        self._speeds = () if prior is None else prior.speeds
        self._rehearsed: list[frozenset[str]] = []
        self._told_decision: SeatsDecision | None = None
        self._told_factors: dict[tuple[int, int], float] = {}
        self._room: int | None = None
        self._is_changed = False

    def measure_speeds(self, spec: TrialSpec) -> None:
        """Measure tokens per second of packs of such trials, once, in an engine without seats."""
        if not self._finds_seats or self._speeds:
            return
        found: list[float] = []
        # A trial that cannot be trained says so in its own seat.
        attempt(lambda: self._measure_packs(spec, found))
        self._speeds = tuple(found)
        self._is_changed = True

    def _measure_packs(self, spec: TrialSpec, found: list[float]) -> None:
        # Initial weights that depend on the data take long, and do not change the speed.
        plain = dataclasses.replace(spec, lora=dataclasses.replace(spec.lora, init="kaiming"))
        names: list[str] = []
        until: float | None = None
        try:
            for seats in range(1, MOST_SEATS_THAT_PAY + 1):
                room = self._engine.foresight.room()
                if room is not None and room < seats:
                    return
                names.append(f"measured-{seats}")
                self._engine.join(names[-1], plain)
                before = self._step(names)  # prepares kernels and moments
                until = self._clock() + MOST_MEASURING_S if until is None else until
                found.append(self._speed(names, before))
                if find_knee(found) < seats or self._clock() > until:
                    return
        finally:
            for name in names:
                self._engine.leave(name)

    def _speed(self, names: Sequence[str], before: int) -> float:
        """Tokens per second of a pack that has trained `before` tokens, in its fastest step.

        A step that something else on the machine delays says nothing of the pack.
        """
        fastest, spent, steps = 0.0, 0.0, 0
        while steps < TIMED_STEPS and spent < TIMED_S:
            started = self._clock()
            after = self._step(names)
            seconds = max(self._clock() - started, 1e-9)
            fastest = max(fastest, (after - before) / seconds)
            before, spent, steps = after, spent + seconds, steps + 1
        return fastest

    def _step(self, names: Sequence[str]) -> int:
        """Tokens that a pack has trained after one more step."""
        return sum(int(result.tokens) for result in self._engine.step(names).values())

    def rehearse(self, keys: Sequence[str]) -> None:
        """Pass the longest rows of a pack, unless it is part of one that has done so.

        Raises:
            Exception: An error of the engine, such as one of memory.
        """
        pack = frozenset(keys)
        if any(pack <= done for done in self._rehearsed):
            return
        if self._engine.rehearse(keys):
            self._is_changed = True
        self._rehearsed = [done for done in self._rehearsed if not done <= pack]
        self._rehearsed.append(pack)

    def forget(self, key: str) -> None:
        """Note that a seat is free, or will be taken in another way."""
        self._rehearsed = [done - {key} for done in self._rehearsed if done - {key}]
        self._is_changed = True

    def take(self, most: int | None) -> HostGauge | None:
        """What is new since the last call; `None` for nothing.

        Args:
            most: Seats that a pack may have after memory ran out; `None` for no such limit.
        """
        if not self._is_changed:
            return None
        self._is_changed = False
        reading = self._take_reading()
        decision = self._decide(most)
        is_new = decision != self._told_decision
        if reading is None and not is_new:
            return None
        self._told_decision = decision
        return HostGauge(reading=reading, decision=decision if is_new else None)

    def _take_reading(self) -> MemoryReading | None:
        """A new reading; `None` if it says what an earlier one of as many seats said."""
        reading = self._engine.foresight.take_reading()
        if reading is None:
            return None
        kind, factor = (reading.seats, reading.train_tokens), reading.correction.factor
        known = self._told_factors.get(kind)
        if known is not None and abs(factor - known) < TOLD_CHANGE:
            return None
        self._told_factors[kind] = factor
        return reading

    def _decide(self, most: int | None) -> SeatsDecision | None:
        if not self._finds_seats:
            return None
        room = self._engine.foresight.room() or self._room
        self._room = room
        limits = [limit for limit in (room, most) if limit is not None]
        return decide_seats(min(limits, default=None), self._speeds or None)
