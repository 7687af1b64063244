"""What a sweep may spend, what it has spent, and whether another trial fits into the rest.

The limits hold for all sessions of a sweep together: the log says what earlier ones spent. The
search leaves `budget.finals_fraction` of every limit but `trials` to the finals.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.journal.meter import Meter, Usage
from orchestrator.spec.sections import BudgetSpec
from orchestrator.wording import format_duration

_HOUR_S = 3600.0

_PACE_OF = 100
"""Trials whose pace counts, the newest: more say no more of the next, and take longer to ask."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit of a budget with the amount spent.

    Attributes:
        name: Field of `BudgetSpec`.
        limit: What may be spent.
        spent: What was.
        rate: What one second of a host costs, in the limit's unit; 0 for the wall clock, which
            passes whether hosts work or not.
    """

    name: str
    limit: float
    spent: float
    rate: float

    def left(self, share: float) -> float:
        """What is left of a part of the limit."""
        return self.limit * share - self.spent

    def show(self, amount: float) -> str:
        """An amount in the limit's unit."""
        if self.name == "money":
            return f"{amount:.2f}"
        units = {"gpu_seconds": " of GPU", "cpu_seconds": " of CPU", "wall_clock_s": ""}
        return format_duration(max(amount, 0.0)) + units[self.name]


class Budget:
    """Compares spending with the limits.

    Args:
        spec: The limits.
        history: What earlier sessions spent and what trials took; another thread adds to it.
        cpus: CPU cores of one host.
        gpus: GPUs of one host.
        usage: What hosts of this session have used so far.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        spec: BudgetSpec,
        history: SweepHistory,
        *,
        cpus: float = 1.0,
        gpus: float = 0.0,
        usage: Callable[[], Usage] = Usage,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._spec, self._history = spec, history
        self._cpus, self._gpus = cpus, gpus
        self._usage, self._clock = usage, clock
        self._before = Usage(history.meter.cpu_s, history.meter.gpu_s)

    @property
    def search_share(self) -> float:
        """Part of every limit that the search may spend."""
        return 1.0 - self._spec.finals_fraction

    def used(self) -> Usage:
        """Device-seconds of all sessions."""
        now = self._usage()
        return Usage(self._before.cpu_s + now.cpu_s, self._before.gpu_s + now.gpu_s)

    def limits(self) -> list[Limit]:
        """The limits there are, with what was spent of each."""
        spec, used = self._spec, self.used()
        price = (spec.price_per_gpu_hour or 0.0) / _HOUR_S
        rows = (
            ("wall_clock_s", self._history.meter.wall_clock_s(self._clock()), 0.0),
            ("gpu_seconds", used.gpu_s, self._gpus),
            ("cpu_seconds", used.cpu_s, self._cpus),
            ("money", used.gpu_s * price, self._gpus * price),
        )
        return [
            Limit(name=name, limit=getattr(spec, name), spent=spent, rate=rate)
            for name, spent, rate in rows
            if getattr(spec, name) is not None
        ]

    def exhausted(self, share: float = 1.0) -> str:
        """Which limit is spent, in words; empty while none is.

        Args:
            share: Part of the limits that counts.
        """
        for limit in self.limits():
            if limit.left(share) <= 0:
                whole = "" if share == 1 else f", less {1 - share:.0%} for the finals"
                return f"the budget of {limit.show(limit.limit)} ({limit.name}) is spent{whole}"
        return ""

    def forbids(
        self,
        steps: int,
        share: float = 1.0,
        horizon: int | None = None,
        *,
        is_finals: bool = False,
    ) -> str:
        """Why another trial of so many steps does not fit any more; empty when it does.

        What trials that run already will still take is set aside. Before anything was measured
        every trial fits.

        Args:
            steps: Steps the trial must come to.
            share: Part of the limits that counts.
            horizon: Steps that running trials will come to; `None` sets nothing aside for them.
            is_finals: It is a repeat, which competes with repeats; else with trials of the search.
        """
        spent = self.exhausted(share)
        if spent:
            return spent
        running = [
            trial
            for trial in self._history.unfinished()
            if (trial.repeat_of is not None) == is_finals
        ]
        ahead = sum(max(0, horizon - trial.step) for trial in running) if horizon else 0
        for limit in self.limits():
            if limit.rate:
                needed = _host_s_per_step(self._history) * limit.rate
                wanted, left = needed * steps, limit.left(share) - needed * ahead
            else:
                wanted, left = _wall_s_per_step(self._history) * steps, limit.left(share)
            if wanted > left:
                return (
                    f"a trial takes about {limit.show(wanted)}, and {limit.show(left)} of the "
                    f"budget ({limit.name}) is left"
                )
        return ""

    def describe(self) -> str:
        """`2:05 of 10:00, 1:12 of 5:00 of GPU`: what was spent of each limit."""
        return ", ".join(
            f"{limit.show(limit.spent)} of {limit.show(limit.limit)}" for limit in self.limits()
        )


def _host_s_per_step(history: SweepHistory) -> float:
    """Median host seconds per step of a trial, evaluations included."""
    taken = [
        seconds / trial.step
        for trial in _newest(history)
        if (seconds := trial.last("host_s")) and trial.step
    ]
    return statistics.median(taken) if taken else 0.0


def _wall_s_per_step(history: SweepHistory) -> float:
    """Median wall-clock seconds per step of a trial, time of its neighbours included."""
    paces = (_pace(trial, history.meter) for trial in _newest(history))
    taken = [pace for pace in paces if pace is not None]
    return statistics.median(taken) if taken else 0.0


def _newest(history: SweepHistory) -> list[TrialRecord]:
    return list(history.trials.values())[-_PACE_OF:]


def _pace(trial: TrialRecord, meter: Meter) -> float | None:
    """Seconds per step between reports; from the start on while there is only one.

    What passed between two sessions is nobody's pace.
    """
    points = [(report.step, report.at) for report in list(trial.reports)]
    if len(points) == 1:
        points = [(0, trial.started_at), *points]
    gaps = [
        (end - start, later - step)
        for (step, start), (later, end) in itertools.pairwise(points)
        if meter.are_together(start, end)
    ]
    steps = sum(gap for _, gap in gaps)
    return sum(seconds for seconds, _ in gaps) / steps if steps else None
