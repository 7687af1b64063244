"""Early stopping: rules that compare trials at the same step, and the scheduler for Ray Tune.

A rule identifies trials by their numbers, which stay the same when a sweep is resumed, and decides
from the reports so far and their order only. So a resumed sweep replays the reports of the event
log into a new scheduler and continues as if it had not been interrupted.
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
from orchestrator.journal.recording import recorded_metrics
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
    """Compares trials; called once for each report, in the order of the reports."""

    def stop_reason(self, number: int, step: int, value: float) -> str:
        """Reason to stop a trial at this step; empty to let the trial continue."""

    def drop(self, number: int) -> None:
        """Note that a trial broke, was ended by another rule, or finished."""


@dataclass(frozen=True, kw_only=True)
class NumberedTrial:
    """Stand-in for Ray's trial, with an id made from the trial's number.

    Ray Tune gives a resumed trial a new id: with that id, the trial would count twice on a rung.
    """

    trial_id: str

    @classmethod
    def build(cls, number: int) -> NumberedTrial:
        """The stand-in for the trial with this number."""
        return cls(trial_id=f"trial-{number}")


class Ladders:
    """Asynchronous successive halving (arXiv:1810.05934), on one ladder of rungs or on several.

    Several ladders with increasing first rungs are Hyperband (arXiv:1603.06560). A trial's number
    decides its ladder. Ray's own brackets are assigned at random, so a replay would differ.

    Args:
        objective: Metric, and whether lower or higher is better.
        schedule: First rung and reduction factor.
        horizon: Steps of a trial that is never stopped.
        brackets: Maximum number of ladders; a ladder with no rung up to the horizon is left out.
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

    def stop_reason(self, number: int, step: int, value: float) -> str:
        """Reason to stop a trial worse than the cutoff at its rung; empty otherwise."""
        ladder = self._ladders[self._turns[number % len(self._turns)]]
        trial = NumberedTrial.build(number)
        if number not in self._seen:
            self._seen.add(number)
            ladder.on_trial_add(None, trial)
        reason = self._explain(ladder, trial, step, value)
        decision = ladder.on_trial_result(None, trial, {"step": step, self._metric: value})
        return reason if decision == TrialScheduler.STOP else ""

    def drop(self, number: int) -> None:
        """Keep the trial's values on its rungs."""

    def _explain(
        self, ladder: AsyncHyperBandScheduler, trial: NumberedTrial, step: int, value: float
    ) -> str:
        """The rung and cutoff that a trial meets, as a reason; call before the trial enters."""
        bracket = ladder._brackets[0]  # no public access to rungs; the highest rung is the first
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

    Ray's own rule is not used: it counts the last report of an ended trial twice, and pauses
    trials until enough have reported.

    Args:
        schedule: Steps before the first decision, and the minimum number of trials to compare.
        mode: Whether lower or higher values are better.
    """

    def __init__(self, schedule: ScheduleSpec, mode: Mode) -> None:
        self._grace, self._least = schedule.grace_steps, schedule.min_trials
        self._mode = mode
        self._values: dict[int, dict[int, float]] = {}

    def stop_reason(self, number: int, step: int, value: float) -> str:
        """Reason to stop a trial with a best value worse than the median of running means."""
        own = self._values.setdefault(number, {})
        own[step] = value
        others = [
            other
            for other, values in self._values.items()
            if other != number and max(values) >= step
        ]
        if step < self._grace or len(others) < self._least:
            return ""
        running_means = [
            statistics.fmean(
                value for at, value in self._values[other].items() if self._grace <= at <= step
            )
            for other in others
        ]
        median = statistics.median(running_means)
        best = min(own.values()) if self._mode == "min" else max(own.values())
        if best == median or (best < median) == (self._mode == "min"):
            return ""
        shown = said_better(median, best, self._mode)
        return f"the median of {len(others)} others is better at step {step} ({shown})"

    def drop(self, number: int) -> None:
        """Keep the trial's values, to compare other trials with."""


class NoRule:
    """Never stops a trial."""

    def stop_reason(self, number: int, step: int, value: float) -> str:
        """Let the trial continue."""
        return ""

    def drop(self, number: int) -> None:
        """Do nothing: there is no state to update."""


class EarlyStopping(FIFOScheduler):  # type: ignore[misc]
    """Ray Tune's scheduler: applies `exits`, then the rule; each report is considered once.

    Args:
        metric: Metric that the rule compares.
        exits: Reasons to end a trial that depend on its own reports only.
        rule: Comparison with other trials.
    """

    def __init__(self, metric: str, exits: ExitSpec, rule: StoppingRule) -> None:
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
        """Take in the last result of a trial that ended by itself."""
        if "step" in result:
            self.take(trial.config["trial"], result, is_through="outcome" in result)

    def end_of(self, number: int) -> TrialOutcome | None:
        """Outcome of a trial stopped by this scheduler; `None` for other trials."""
        return self._ends.get(number)

    def next_heir(self) -> Heir | None:
        """Take the next copy to start in place of a stopped trial; `None` except with `pbt`."""
        return self._rule.next_heir() if isinstance(self._rule, Pbt) else None

    def may_start_fresh(self, fresh_started: int) -> bool:
        """Whether another fresh trial may start; only `pbt` limits fresh trials."""
        return not isinstance(self._rule, Pbt) or self._rule.may_start_fresh(fresh_started)

    def forget_heirs(self, history: SweepHistory) -> None:
        """Drop the copies that were started already, according to a history."""
        if isinstance(self._rule, Pbt):
            parents = [record.parent for record in history.trials.values() if record.parent]
            self._rule.forget_heirs({parent["replaces"] for parent in parents})

    def take(self, number: int, report: Mapping[str, Any], is_through: bool = False) -> None:
        """Take in a report; a report of a known step or of a stopped trial is ignored.

        Args:
            number: Number of the trial.
            report: `step` and metrics.
            is_through: The trial ended by itself with this report.
        """
        if number in self._ends:
            return
        reports = self._reports.setdefault(number, [])
        if is_through or is_stand_in(report):
            self._rule.drop(number)
            # The trial has ended: only divergence can still change its outcome.
            end = None if is_stand_in(report) else find_exit(self._exits, [*reports, report])
            if end is not None and end.outcome is Outcome.DIVERGED:
                self._ends[number] = end
        elif not reports or report["step"] > reports[-1]["step"]:
            # Not the whole result, which holds the trial's configuration once more.
            reports.append({"step": report["step"], **recorded_metrics(report)})
            self._decide(number, report)

    def _decide(self, number: int, report: Mapping[str, Any]) -> None:
        step, value = report["step"], report.get(self._metric, math.nan)
        end = find_exit(self._exits, self._reports[number])
        if end is None and not math.isfinite(value):
            end = TrialOutcome(Outcome.DIVERGED, f"{self._metric} is {value} at step {step}")
        if end is not None:
            self._rule.drop(number)
        elif reason := self._rule.stop_reason(number, step, value):
            end = TrialOutcome(Outcome.STOPPED, reason)
        if end is not None:
            logger.info("trial %d: %s, %s", number, end.outcome.value, end.reason)
            self._ends[number] = end


SCHEDULERS: dict[EarlyStop, Callable[[SweepSpec], StoppingRule]] = {
    "asha": lambda spec: Ladders(spec.objective, spec.schedule, spec.horizon, brackets=1),
    "hyperband": lambda spec: Ladders(
        spec.objective, spec.schedule, spec.horizon, spec.schedule.brackets
    ),
    "median": lambda spec: MedianStop(spec.schedule, spec.objective.mode),
    "pbt": lambda spec: Pbt(
        spec.schedule,
        spec.objective.mode,
        spec.seed,
        population(spec.schedule, spec.budget.trials),
    ),
    "none": lambda spec: NoRule(),
}
"""Rules by their names in a sweep file."""


def build_scheduler(spec: SweepSpec) -> EarlyStopping:
    """The scheduler of a sweep; give Ray Tune neither metric nor mode: the scheduler has both."""
    rule = SCHEDULERS[spec.schedule.algorithm](spec)
    return EarlyStopping(spec.objective.metric, spec.exits, rule)


def replay_history(
    scheduler: EarlyStopping, history: SweepHistory, horizon: int
) -> dict[int, TrialOutcome]:
    """Bring a new scheduler to the state of an earlier one, from the reports in their order.

    The metrics of `report` events must be the values that the earlier scheduler saw. Repeats in
    the finals are left out: the scheduler does not compare them.

    Returns:
        Outcomes of trials that were stopped, but have no end in the history: the driver was lost
        between decision and record. The scheduler would not stop these trials at that step again.
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
    """The ladder of each trial in a round, evenly spread; ladder 0 has the lowest first rung.

    The shares are those of Hyperband's brackets (arXiv:1603.06560, algorithm 1): with B ladders,
    a ladder with s rungs more than the last ladder gets B / (s + 1) * factor^s trials.
    """
    shares = [math.ceil(ladders / (more + 1) * factor**more) for more in reversed(range(ladders))]
    turns: list[int] = []
    for turn in range(1, sum(shares) + 1):
        behind = [share * turn / sum(shares) - turns.count(i) for i, share in enumerate(shares)]
        turns.append(behind.index(max(behind)))
    return tuple(turns)
