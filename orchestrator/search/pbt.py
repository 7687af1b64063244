"""Population-based training (arXiv:1711.09846), without pausing a trial.

A trial among the worst at a rung ends there. A new trial continues from a copy of one of the
best, with changed knobs. So no trial changes its knobs while training, and a copy is a normal
trial with a number and a budget. Every decision is a function of the reports so far.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.spec.distributions import Choice, Distribution, Range
from orchestrator.spec.population import MIN_JUDGED, changeable_knobs
from orchestrator.spec.sections import ScheduleSpec
from orchestrator.spec.space import SearchSpace
from orchestrator.wording import format_metric
from trainables.contract import Mode

_FACTORS = (0.8, 1.2)
_RESAMPLED = 0.25  # both as in the paper's appendix A

_MAX_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Heir:
    """A trial to start from a copy of another trial.

    Attributes:
        replaces: The stopped trial that the copy replaces.
        parent: The trial to copy.
        step: The rung of the decision; the parent may have trained further when the copy starts.
    """

    replaces: int
    parent: int
    step: int


class Pbt:
    """Stopping rule that replaces weak trials by changed copies of strong trials.

    Args:
        schedule: Distance of rungs, population and quantile.
        mode: Whether lower or higher values are better.
        seed: Seed of the sweep; decides which of the best trials is copied.
        population: Number of trials that start from nothing; see `population`.
    """

    def __init__(self, schedule: ScheduleSpec, mode: Mode, seed: int, population: int) -> None:
        self._schedule, self._mode, self._seed = schedule, mode, seed
        self._population = population
        self._rungs: dict[int, dict[int, float]] = {}
        self._out: set[int] = set()
        """Trials that cannot be copied: broken, ended, or finished."""
        self._heirs: deque[Heir] = deque()

    def stop_reason(self, number: int, step: int, value: float) -> str:
        """Reason to replace a trial at this step; empty to let the trial continue."""
        self._out.discard(number)
        if step % self._schedule.grace_steps:
            return ""
        rung = self._rungs.setdefault(step, {})
        rung[number] = value
        parent = self._choose_parent(number, rung)
        if parent is None:
            return ""
        self._out.add(number)
        self._heirs.append(Heir(replaces=number, parent=parent, step=step))
        shown = said_better(rung[parent], value, self._mode)
        return f"trial {parent} is better at step {step} ({shown}): a changed copy of it goes on"

    def drop(self, number: int) -> None:
        """Exclude a broken or ended trial from being copied."""
        self._out.add(number)

    def next_heir(self) -> Heir | None:
        """Take the next copy to start, in the order of the decisions; `None` without one."""
        return self._heirs.popleft() if self._heirs else None

    def forget_heirs(self, replaced: Collection[int]) -> None:
        """Drop copies that were started already.

        Args:
            replaced: Trials that have been replaced.
        """
        self._heirs = deque(heir for heir in self._heirs if heir.replaces not in replaced)

    def may_start_fresh(self, fresh_started: int) -> bool:
        """Whether the population lacks a fresh trial."""
        return fresh_started < self._population

    def _choose_parent(self, number: int, rung: Mapping[int, float]) -> int | None:
        """A running trial among the best at a rung, if the given trial is among the worst."""
        if len(rung) < max(MIN_JUDGED, math.ceil(self._schedule.population / 2)):
            return None
        sign = 1.0 if self._mode == "min" else -1.0
        ranking = sorted(rung, key=lambda other: (sign * rung[other], other))
        replaced = max(1, math.floor(self._schedule.quantile * len(rung)))
        if number not in ranking[-replaced:]:
            return None
        better = [
            other
            for other in ranking[: len(ranking) // 2]
            if other not in self._out and sign * rung[other] < sign * rung[number]
        ]
        draw = random.Random(f"{self._seed}/{number}")
        return draw.choice(better[:replaced]) if better else None


def explore(space: SearchSpace, parent_knobs: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Changed knobs for a copy (arXiv:1711.09846, appendix A): perturbed or resampled.

    A number is multiplied by 0.8 or 1.2 within its bounds; a choice moves to a neighbour in the
    list. With a probability of a quarter, a knob is resampled instead. Only `changeable_knobs`
    change. At least one knob differs from the parent, if the space allows.
    """
    draw = random.Random(seed)
    names = [name for name in changeable_knobs(space) if name in parent_knobs]
    knobs = dict(parent_knobs)
    for _ in range(_MAX_DRAWS if names else 0):
        knobs |= {name: _change(space.knobs[name], parent_knobs[name], draw) for name in names}
        if knobs != parent_knobs:
            break
    return knobs


def said_better(better: float, worse: float, mode: Mode) -> str:
    """Two values with the sign of comparison: `0.4121 < 0.9312`."""
    sign = "<" if mode == "min" else ">"
    return f"{format_metric(better)} {sign} {format_metric(worse)}"


def _change(knob: Distribution, value: Any, draw: random.Random) -> Any:
    is_resampled = draw.random() < _RESAMPLED
    if isinstance(knob, Choice):
        if is_resampled:
            return draw.choice(knob.values)
        at = knob.values.index(value)
        return draw.choice([*knob.values[max(0, at - 1) : at], *knob.values[at + 1 : at + 2]])
    number = _resample(knob, draw) if is_resampled else _perturb(knob, value, draw)
    return knob.decode(min(knob.high, max(knob.low, number)))


def _resample(knob: Range, draw: random.Random) -> float:
    low, high = (knob.low - 0.5, knob.high + 0.5) if knob.is_whole else (knob.low, knob.high)
    if knob.is_log:
        number = math.exp(draw.uniform(math.log(low), math.log(high)))
    else:
        number = draw.uniform(low, high)
    return round(number) if knob.is_whole else number


def _perturb(knob: Range, value: float, draw: random.Random) -> float:
    factor = draw.choice(_FACTORS)
    if not knob.is_whole:
        return value * factor
    moved = round(value * factor)
    return moved if moved != value else value + (1 if factor > 1 else -1)
