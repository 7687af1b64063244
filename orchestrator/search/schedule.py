"""When trials are stopped early, by their own `step`, and why.

A rule compares a trial with the others. It knows trials by their numbers, which they keep over
resumes, and decides by nothing but the reports so far and their order: a resumed sweep starts with
a new scheduler, replays the reports of the event log into it, and goes on as if never interrupted.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from orchestrator.journal.history import SweepHistory
from orchestrator.metrics import Metric
from orchestrator.outcome import Outcome, TrialOutcome
from orchestrator.search.exits import find_exit
from orchestrator.search.pbt import Heir, Pbt, said_better
from orchestrator.spec.population import population
from orchestrator.spec.sections import (
    EarlyStop,
    ExitSpec,
    ObjectiveSpec,
    ScheduleSpec,
)
from orchestrator.spec.sweep import SweepSpec
from trainables.contract import Mode
from trainables.hosts.orders import fault_metrics, is_stand_in

logger = logging.getLogger(__name__)


class StoppingRule(Protocol):
    """Compares trials; told each step of a trial once, in the order they were reported."""

    def judge(self, number: int, step: int, value: float) -> str:
        """Reason to stop a trial at this step; empty to let the trial go on."""

    def drop(self, number: int) -> None:
        """The trial broke, was ended by another rule or is through."""


@dataclass(frozen=True, kw_only=True)
class NumberedTrial:
    """Ray's view of a trial: a number that stays the same over resumes.

    Ray Tune gives a resumed trial a new id, under which it would take a second place on its rungs.
    """

    trial_id: str

    @classmethod
    def build(cls, number: int) -> NumberedTrial:
        """The stand-in for a trial of our numbering."""
        return cls(trial_id=f"trial-{number}")


class Ladders:
    """Asynchronous successive halving (arXiv:1810.05934), on one ladder of rungs or on several.

    Several, with later and later first rungs, are Hyperband (arXiv:1603.06560). Which one a trial
    climbs follows from its number; Ray's own brackets draw lots, which no replay could repeat.

    Args:
        objective: Metric and direction of better.
        schedule: First rung and reduction factor.
        horizon: Steps of a trial that is never stopped.
        brackets: How many ladders, at most: one that would begin beyond the horizon is left out.
    """

    def __init__(
        self, objective: ObjectiveSpec, schedule: ScheduleSpec, horizon: int, brackets: int
    ) -> None:
        self._metric, self._mode = objective.metric, objective.mode
        factor = schedule.reduction_factor
        firsts = [schedule.grace_steps * factor**skipped for skipped in range(brackets)]
        self._ladders = [
            AsyncHyperBandScheduler(
                time_attr="step",
                metric=self._metric,
                mode=self._mode,
                max_t=horizon,
                grace_period=first,
                reduction_factor=factor,
                brackets=1,
            )
            for first in firsts
            if first <= horizon
        ]
        self._turns = ladder_turns(len(self._ladders), factor)
        self._seen: set[int] = set()

    def judge(self, number: int, step: int, value: float) -> str:
        """Stop a trial worse than the cutoff at its rung."""
        ladder = self._ladders[self._turns[number % len(self._turns)]]
        trial = NumberedTrial.build(number)
        if number not in self._seen:
            self._seen.add(number)
            ladder.on_trial_add(None, trial)
        reason = self._explain(ladder, trial, step, value)
        decision = ladder.on_trial_result(None, trial, {"step": step, self._metric: value})
        return reason if decision == TrialScheduler.STOP else ""

    def drop(self, number: int) -> None:
        """Leave the marks of the trial on its rungs."""

    def _explain(
        self, ladder: AsyncHyperBandScheduler, trial: NumberedTrial, step: int, value: float
    ) -> str:
        """The rung that a trial reaches and the cutoff there; read before the trial enters."""
        bracket = ladder._brackets[0]  # Ray shows rungs nowhere else; the highest is the first
        for above, (milestone, values) in enumerate(bracket._rungs):
            if step >= milestone and trial.trial_id not in values:
                rung = f"rung {len(bracket._rungs) - above}"
                cutoff = bracket.cutoff(values)
                best = 0.0 if cutoff is None else float(cutoff) * ladder._metric_op
                shown = said_better(best, value, self._mode)
                return f"others were better at step {step} ({rung}: {shown})"
        return f"others were better at step {step}"


class MedianStop:
    """The median stopping rule (Golovin et al. 2017, Google Vizier, section 3.2.2).

    Ray's rule counts the last report of an ended trial twice and pauses trials while it has seen
    too few; neither is wanted here.

    Args:
        schedule: Steps before which nothing is judged or counted, and trials to compare with.
        mode: Direction of better.
    """

    def __init__(self, schedule: ScheduleSpec, mode: Mode) -> None:
        self._grace, self._least = schedule.grace_steps, schedule.min_trials
        self._mode = mode
        self._values: dict[int, dict[int, float]] = {}

    def judge(self, number: int, step: int, value: float) -> str:
        """Stop a trial whose best value is worse than the median of the others' running means."""
        own = self._values.setdefault(number, {})
        own[step] = value
        others = [
            other
            for other, values in self._values.items()
            if other != number and max(values) >= step
        ]
        if step < self._grace or len(others) < self._least:
            return ""
        means = [self._running_mean(other, step) for other in others]
        median = statistics.median(means)
        best = min(own.values()) if self._mode == "min" else max(own.values())
        if best == median or (best < median) == (self._mode == "min"):
            return ""
        shown = said_better(median, best, self._mode)
        return f"the median of {len(means)} others is better at step {step} ({shown})"

    def drop(self, number: int) -> None:
        """Leave the trial's values for others to be compared with."""

    def _running_mean(self, number: int, step: int) -> float:
        return statistics.fmean(
            value for at, value in self._values[number].items() if self._grace <= at <= step
        )


class NoRule:
    """Compares nobody."""

    def judge(self, number: int, step: int, value: float) -> str:
        """Let it go on."""
        return ""

    def drop(self, number: int) -> None:
        """Do nothing: this rule keeps no state."""


class EarlyStopping(FIFOScheduler):  # type: ignore[misc]
    """What Ray Tune asks: `exits` first, then the rule; each report is judged once.

    Args:
        metric: What the rule compares by.
        exits: When a trial ends because of itself.
        rule: When it ends because of others.
    """

    def __init__(self, metric: Metric, exits: ExitSpec, rule: StoppingRule) -> None:
        super().__init__()
        self._metric, self._exits, self._rule = metric, exits, rule
        self._reports: dict[int, list[Mapping[str, float]]] = {}
        self._ends: dict[int, TrialOutcome] = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop or continue."""
        self.take(trial.config["trial"], result)
        is_stopped = self.end_of(trial.config["trial"]) is not None
        return str(TrialScheduler.STOP if is_stopped else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Take the last result of a trial that ended by itself, as Ray Tune gives it here."""
        if "step" in result:
            self.take(trial.config["trial"], result, is_through="outcome" in result)

    def end_of(self, number: int) -> TrialOutcome | None:
        """The end of a trial stopped by this scheduler; `None` for other trials."""
        return self._ends.get(number)

    def next_heir(self) -> Heir | None:
        """The next copy to start in place of a stopped trial, once; only `pbt` has any."""
        return self._rule.next_heir() if isinstance(self._rule, Pbt) else None

    def may_start_fresh(self, fresh_started: int) -> bool:
        """Whether another fresh trial may start; only `pbt` limits fresh trials."""
        return not isinstance(self._rule, Pbt) or self._rule.may_start_fresh(fresh_started)

    def forget_heirs(self, history: SweepHistory) -> None:
        """Do not start again what a history says was started."""
        if isinstance(self._rule, Pbt):
            parents = [record.parent for record in history.trials.values() if record.parent]
            self._rule.forget_heirs({parent["replaces"] for parent in parents})

    def take(self, number: int, report: Mapping[str, Any], is_through: bool = False) -> None:
        """Take in a report; a report of a known step or of a stopped trial is ignored.

        Args:
            number: Of the trial.
            report: `step` and metrics.
            is_through: The trial ended with it by itself.
        """
        if number in self._ends:
            return
        reports = self._reports.setdefault(number, [])
        if is_through or is_stand_in(report):
            self._rule.drop(number)
            self._judge_last(number, [*reports, report])
        elif not reports or report["step"] > reports[-1]["step"]:
            reports.append(report)
            self._judge(number, report)

    def _judge_last(self, number: int, reports: list[Mapping[str, float]]) -> None:
        """End a trial whose last report diverged; at the horizon, no other rule applies."""
        end = None if is_stand_in(reports[-1]) else find_exit(self._exits, reports)
        if end is not None and end.outcome is Outcome.DIVERGED:
            self._ends[number] = end

    def _judge(self, number: int, report: Mapping[str, Any]) -> None:
        step, value = report["step"], report.get(self._metric, math.nan)
        end = find_exit(self._exits, self._reports[number])
        if end is None and not math.isfinite(value):
            end = TrialOutcome(Outcome.DIVERGED, f"{self._metric} is {value} at step {step}")
        if end is not None:
            self._rule.drop(number)
        elif reason := self._rule.judge(number, step, value):
            end = TrialOutcome(Outcome.STOPPED, reason)
        if end is not None:
            logger.info("trial %d: %s, %s", number, end.outcome.value, end.reason)
            self._ends[number] = end


def _build_asha(spec: SweepSpec) -> StoppingRule:
    return Ladders(spec.objective, spec.schedule, spec.horizon, brackets=1)


def _build_hyperband(spec: SweepSpec) -> StoppingRule:
    return Ladders(spec.objective, spec.schedule, spec.horizon, spec.schedule.brackets)


def _build_median(spec: SweepSpec) -> StoppingRule:
    return MedianStop(spec.schedule, spec.objective.mode)


def _build_pbt(spec: SweepSpec) -> StoppingRule:
    fresh = population(spec.schedule, spec.budget.trials)
    return Pbt(spec.schedule, spec.objective.mode, spec.seed, fresh)


def _build_none(spec: SweepSpec) -> StoppingRule:
    return NoRule()


SCHEDULERS: dict[EarlyStop, Callable[[SweepSpec], StoppingRule]] = {
    "asha": _build_asha,
    "hyperband": _build_hyperband,
    "median": _build_median,
    "pbt": _build_pbt,
    "none": _build_none,
}
"""Rules by the name they have in a sweep file."""


def build_scheduler(spec: SweepSpec) -> EarlyStopping:
    """The scheduler a sweep names; it carries the metric, so Ray Tune is given neither.

    Raises:
        SweepSpecError: The schedule cannot work with this space or horizon.
    """
    rule = SCHEDULERS[spec.schedule.algorithm](spec)
    return EarlyStopping(spec.objective.metric, spec.exits, rule)


def replay_history(
    scheduler: EarlyStopping, history: SweepHistory, horizon: int
) -> dict[int, TrialOutcome]:
    """Bring a new scheduler to where an earlier one was, from the reports in their order.

    The metrics of `report` events must be the values that the earlier scheduler saw. Trials that
    repeat another in the finals are not compared.

    Returns:
        Unfinished trials that are stopped already, with their ends: the driver was lost between
        the decision and its record. Nothing would stop them at that step again.
    """
    for number, report in history.reports:
        record = history.trials.get(number)
        if record is None or record.repeat_of is None:
            metrics = fault_metrics(dict(report.metrics)) if report.is_fault else report.metrics
            result = {**metrics, "step": report.step}
            scheduler.take(number, result, is_through=report.step >= horizon)
    scheduler.forget_heirs(history)
    ends = {record.number: scheduler.end_of(record.number) for record in history.unfinished()}
    return {number: end for number, end in ends.items() if end is not None}


def ladder_turns(ladders: int, factor: float) -> tuple[int, ...]:
    """Which ladder each trial of a round climbs, evenly spread; ladder 0 has the first rung first.

    Their shares are those of the brackets of Hyperband (arXiv:1603.06560, algorithm 1): with B
    ladders, the one with s rungs more than the last gets B / (s + 1) * factor^s trials.
    """
    shares = [math.ceil(ladders / (more + 1) * factor**more) for more in reversed(range(ladders))]
    turns: list[int] = []
    for turn in range(1, sum(shares) + 1):
        behind = [share * turn / sum(shares) - turns.count(i) for i, share in enumerate(shares)]
        turns.append(behind.index(max(behind)))
    return tuple(turns)
