"""Limits of a sweep, the amounts spent, and whether another trial fits into the rest.

The limits hold for all sessions of a sweep together: the event log records what earlier sessions
spent. The search leaves `budget.finals_fraction` of every limit except `trials` to the finals.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.journal.meter import Usage
from orchestrator.spec.complaint import require
from orchestrator.spec.sections import BudgetSpec
from orchestrator.wording import format_duration

_HOUR_S = 3600.0

_PACE_OF = 100
"""The pace of the newest trials predicts the next trial; older trials only cost time to read."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit of a budget with the amount spent.

    Attributes:
        name: Field of `BudgetSpec`.
        limit: Amount that may be spent.
        spent: Amount spent so far.
        rate: Cost of one host second in the limit's unit; 0 for the wall clock, which does not
            depend on hosts.
    """

    name: str
    limit: float
    spent: float
    rate: float

    def left(self, share: float) -> float:
        """Amount left of a share of the limit."""
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
        history: Spending of earlier sessions and pace of trials; another thread adds events.
        cpus: CPU cores of one host.
        gpus: GPUs of one host.
        usage: Returns the device-seconds that hosts of this session have used so far.
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
        """The limits that the sweep sets, each with the amount spent."""
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
        """The first limit that is spent, as a sentence; empty while all have some left.

        Args:
            share: Part of the limits that may be spent.
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
        """Reason why another trial does not fit into the budget; empty if the trial fits.

        The remaining steps of running trials are set aside. Every trial fits before the first
        trial has reported.

        Args:
            steps: Steps of the trial.
            share: Part of the limits that may be spent.
            horizon: Last step of running trials; `None` sets nothing aside.
            is_finals: Set aside for running repeats of the finals, not for trials of the search.
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
                wanted, left = wall_s_per_step(self._history) * steps, limit.left(share)
            if wanted > left:
                return (
                    f"a trial takes about {limit.show(wanted)}, and {limit.show(left)} of the "
                    f"budget ({limit.name}) is left"
                )
        return ""

    def describe_left(self) -> str:
        """`7:55 of 10:00 left, 3:48 of 5:00 of GPU left`; empty without limits."""
        return ", ".join(
            f"{limit.show(max(0.0, limit.left(1.0)))} of {limit.show(limit.limit)} left"
            for limit in self.limits()
        )

    def search_wall_left_s(self) -> float | None:
        """Wall-clock time that the search may still spend; `None` without a limit."""
        for limit in self.limits():
            if limit.name == "wall_clock_s":
                return max(0.0, limit.left(self.search_share))
        return None


def require_measurable(spec: BudgetSpec, gpus: float) -> None:
    """Refuse limits on GPU time without a GPU: nothing would ever be spent of them.

    Args:
        spec: The limits.
        gpus: GPUs of a host.

    Raises:
        SweepSpecError: GPU time is limited, and there is no GPU.
    """
    for name in ("gpu_seconds", "money"):
        require(
            getattr(spec, name) is None or gpus > 0,
            f"budget.{name}",
            getattr(spec, name),
            "no such limit where Ray has no GPU",
            "Limit cpu_seconds or wall_clock_s instead.",
        )


def _host_s_per_step(history: SweepHistory) -> float:
    """Median host seconds per step of a trial, evaluations included."""
    taken = [
        seconds / trial.step
        for trial in _newest(history)
        if (seconds := trial.last("host_s")) and trial.step
    ]
    return statistics.median(taken) if taken else 0.0


def wall_s_per_step(history: SweepHistory) -> float:
    """Median wall-clock seconds per step of a trial, time of its neighbours included.

    The pace of a trial is measured between its reports, or from its start if it has one report.
    Time between two sessions does not count.
    """
    taken = []
    for trial in _newest(history):
        points = [(report.step, report.at) for report in list(trial.reports)]
        if len(points) == 1:
            points = [(0, trial.started_at), *points]
        gaps = [
            (end - start, later - step)
            for (step, start), (later, end) in itertools.pairwise(points)
            if history.meter.are_together(start, end)
        ]
        steps = sum(gap for _, gap in gaps)
        if steps:
            taken.append(sum(seconds for seconds, _ in gaps) / steps)
    return statistics.median(taken) if taken else 0.0


def _newest(history: SweepHistory) -> list[TrialRecord]:
    return list(history.trials.values())[-_PACE_OF:]
