"""How far a sweep is: trials done, running and to come, and the time left at this speed."""

from __future__ import annotations

import statistics
from collections.abc import Collection
from dataclasses import dataclass, replace

from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.outcome import can_leave_adapter
from orchestrator.search.budget import wall_s_per_step
from orchestrator.spec.sweep import SweepSpec
from orchestrator.wording import format_duration

_ENOUGH = 3
"""Ended trials from which on their mean length stands for those to come."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The counts of the search and the estimates.

    Attributes:
        done: Trials of the search with an end of any kind.
        running: Trials of the search that train.
        to_come: Trials that wait, and those that the budget still allows to start.
        search_s: Seconds that the search will still take; `None` where nothing is measured.
        is_bound: `search_s` is an upper bound: it takes every trial to the last step.
        finals_s: Seconds that the finalists' repeats will take, serving forms not included.
    """

    done: int
    running: int
    to_come: int
    search_s: float | None = None
    is_bound: bool = False
    finals_s: float | None = None

    def counts(self, going: str = "running") -> str:
        """`3 done, 2 running, 3 to come`; `going` is the word for trials without an end."""
        return f"{self.done} done, {self.running} {going}, {self.to_come} to come"

    @property
    def times(self) -> str:
        """Time left of the search and of the finals; empty where nothing is known."""
        parts = []
        if self.search_s is not None:
            much = "at most" if self.is_bound else "about"
            parts.append(f"search: {much} {_coarse(self.search_s)} left")
        if self.finals_s is not None:
            parts.append(f"finals: about {_coarse(self.finals_s)}")
        return ", ".join(parts)


def estimate_outlook(
    spec: SweepSpec,
    history: SweepHistory,
    wall_left_s: float | None = None,
    seated: Collection[int] | None = None,
) -> Outlook:
    """The outlook from the history so far.

    Trials to come are taken to end, on average, at the step at which ended trials did. The speed
    is the median wall-clock time of a step, divided by the trials that train at the same time.

    Args:
        spec: The sweep.
        history: Its history; another thread may add to it.
        wall_left_s: Wall-clock time that the search may still spend; `None` without a limit.
        seated: Trials that have a seat: one that waits for its first seat is still to come.
            `None` if the seats are not known.
    """
    records = list(history.trials.values())
    searched = [record for record in records if record.repeat_of is None]
    is_searched = "search" in history.stages
    going = [record for record in searched if record.outcome is None]
    waiting = [
        record
        for record in going
        if seated is not None and record.number not in seated and not record.reports
    ]
    unstarted = 0 if is_searched else max(spec.budget.trials - len(searched), 0)
    outlook = Outlook(
        done=len(searched) - len(going),
        running=len(going) - len(waiting),
        to_come=unstarted + len(waiting),
    )
    pace = wall_s_per_step(history)
    if history.status != "running" or not pace:
        return outlook
    at_once = max(1, sum(record.outcome is None for record in records))
    search_s, is_bound = None, False
    if not is_searched:
        steps, is_bound = _steps_ahead(spec, searched, unstarted)
        search_s = steps * pace / at_once
        if wall_left_s is not None and wall_left_s < search_s:
            search_s, is_bound = max(0.0, wall_left_s), True
    repeated = _repeat_steps_ahead(spec, history)
    return replace(
        outlook,
        search_s=search_s,
        is_bound=is_bound,
        finals_s=repeated * pace / at_once if repeated else None,
    )


def _steps_ahead(spec: SweepSpec, searched: list[TrialRecord], to_come: int) -> tuple[float, bool]:
    """Steps that the search still trains, and whether they are an upper bound."""
    ended = [record.step for record in searched if can_leave_adapter(record.outcome)]
    is_bound = len(ended) < _ENOUGH
    expected = float(spec.horizon) if is_bound else statistics.fmean(ended)
    ahead = expected * to_come
    for record in searched:
        if record.outcome is None:
            goal = expected if record.step < expected else spec.horizon
            ahead += max(0.0, goal - record.step)
    return ahead, is_bound


def _repeat_steps_ahead(spec: SweepSpec, history: SweepHistory) -> int:
    """Steps of the finalists' repeats that are not trained yet."""
    if "repeats" in history.stages:
        return 0
    wanted = spec.finals.top * spec.finals.seeds * spec.horizon
    repeats = [record for record in list(history.trials.values()) if record.repeat_of is not None]
    trained = sum(spec.horizon if one.outcome is not None else one.step for one in repeats)
    return max(0, wanted - trained)


def _coarse(seconds: float) -> str:
    """A duration as exact as an estimate may look: seconds in fives, then minutes."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return format_duration(60 * minutes).removesuffix(":00") + " h"
