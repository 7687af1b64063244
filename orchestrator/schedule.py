"""When trials are stopped early: Ray Tune's schedulers, on a trial's own `step`.

A resumed sweep starts a new scheduler and replays the reports of the event log into it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from orchestrator.history import SweepHistory
from orchestrator.sections import EarlyStop, ObjectiveSpec, ScheduleSpec
from orchestrator.spec import SweepSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NumberedTrial:
    """What a scheduler sees of a trial: the number it keeps over resumes.

    Ray Tune gives a resumed trial a new id, under which it would take a second place on its rungs.
    """

    trial_id: str
    config: Mapping[str, Any]

    @classmethod
    def build(cls, number: int) -> NumberedTrial:
        """The stand-in for a trial of our numbering."""
        return cls(trial_id=f"trial-{number}", config={"trial": number})


class Asha(AsyncHyperBandScheduler):  # type: ignore[misc]
    """Asynchronous successive halving (arXiv:1810.05934) that knows trials by our numbers.

    Ray's compares NaN with its rungs and lets it pass for ever; here a non-finite value stops the
    trial and leaves no trace on a rung.
    """

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take a trial in."""
        super().on_trial_add(tune_controller, _numbered(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop or continue."""
        if not self._is_finite(result):
            logger.warning("trial %s: stopped on a non-finite value", trial.config["trial"])
            return str(TrialScheduler.STOP)
        return str(super().on_trial_result(tune_controller, _numbered(trial), result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Forget a trial that ended, not its marks on the rungs."""
        if self._is_finite(result):
            super().on_trial_complete(tune_controller, _numbered(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forget a trial that never ran."""
        super().on_trial_remove(tune_controller, _numbered(trial))

    def _is_finite(self, result: Mapping[str, Any]) -> bool:
        return math.isfinite(result.get(self.metric, 0.0))


def _build_asha(schedule: ScheduleSpec, objective: ObjectiveSpec, horizon: int) -> TrialScheduler:
    return Asha(
        time_attr="step",
        metric=objective.metric,
        mode=objective.mode,
        max_t=horizon,
        grace_period=schedule.grace_steps,
        reduction_factor=schedule.reduction_factor,
        brackets=1,
    )


def _build_none(schedule: ScheduleSpec, objective: ObjectiveSpec, horizon: int) -> TrialScheduler:
    return FIFOScheduler()


SCHEDULERS: dict[EarlyStop, Callable[[ScheduleSpec, ObjectiveSpec, int], TrialScheduler]] = {
    "asha": _build_asha,
    "none": _build_none,
}
"""Schedulers by the name they have in a sweep file."""


def build_scheduler(spec: SweepSpec) -> TrialScheduler:
    """The scheduler a sweep names; it carries metric and mode, so Ray Tune is given neither."""
    return SCHEDULERS[spec.schedule.algorithm](spec.schedule, spec.objective, spec.horizon)


def replay_history(
    scheduler: TrialScheduler, history: SweepHistory, horizon: int
) -> frozenset[int]:
    """Bring a new scheduler to where an earlier one was, from the reports in their order.

    The metrics of `report` events must be the values that the earlier scheduler saw.

    Returns:
        Numbers of unfinished trials that are stopped already: the driver was lost between the
        decision and its record. They passed their rung, so nothing would stop them there again.
    """
    for number in sorted(history.trials):
        scheduler.on_trial_add(None, NumberedTrial.build(number))
    stopped: set[int] = set()
    last: dict[int, dict[str, Any]] = {}
    for number, report in history.reports:
        result = {**report.metrics, "step": report.step}
        decision = scheduler.on_trial_result(None, NumberedTrial.build(number), result)
        last[number] = result
        if decision == TrialScheduler.STOP and report.step < horizon:
            stopped.add(number)
    for record in history.ended():
        trial = NumberedTrial.build(record.number)
        if record.number in last:
            scheduler.on_trial_complete(None, trial, last[record.number])
        else:
            scheduler.on_trial_remove(None, trial)
    return frozenset(stopped & {record.number for record in history.unfinished()})


def _numbered(trial: Any) -> NumberedTrial:
    return NumberedTrial.build(trial.config["trial"])
