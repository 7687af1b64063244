"""Observations of trials, and the Optuna study that shows them to a sampler.

A study is built anew for every suggestion, from observations alone. States of trials in the study:

    completed                      complete, with the last values
    stopped, running with values   for TPE with one objective: pruned. Optuna ranks pruned trials
                                   by (step, value), so TPE learns before any trial is complete.
                                   For other samplers: complete, with the last values
    running without values         running; TPE then avoids the same region (constant liar)
    diverged, infeasible           complete, with values worse than all others
    failed, cancelled              failed; samplers ignore the trial
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from orchestrator.errors import SweepStorageError
from orchestrator.journal.history import SweepHistory
from orchestrator.outcome import TRAITS, Lesson, Outcome
from orchestrator.spec.sections import ObjectiveSpec
from orchestrator.spec.space import SearchSpace
from trainables.contract import Mode
from trainables.hosts.orders import fault_metrics, is_stand_in

_MEMORY = "peak_memory_gib"


@dataclass(kw_only=True)
class Observation:
    """A searcher's knowledge of a trial.

    Attributes:
        knobs: Configuration of the trial.
        values: Finite values of the first objective by step.
        metrics: Last finite value of every objective and every bounded metric.
        outcome: `None` while the trial runs.
        reason: Why the trial ended, in one sentence.
        parent: Trial and checkpoint from which the trial continued; see `TrialRecord.parent`.
    """

    knobs: Mapping[str, Any]
    values: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    outcome: Outcome | None = None
    reason: str = ""
    parent: Mapping[str, int] | None = None

    def report(self, step: int, metrics: Mapping[str, Any], objective: ObjectiveSpec) -> None:
        """Take in a report; a repeated step replaces the earlier report of the step.

        Stand-in values of a trial with a fault are not measurements and are ignored.
        """
        self.values = {each: value for each, value in self.values.items() if each < step}
        if is_stand_in(metrics):
            return
        for name in (*objective.goals, *(bound.metric for bound in objective.bounds)):
            value = metrics.get(name)
            if value is not None and math.isfinite(value):
                self.metrics[name] = float(value)
                if name == objective.metric:
                    self.values[step] = float(value)

    @property
    def last(self) -> float | None:
        """Last value of the first objective."""
        return self.values[max(self.values)] if self.values else None

    def known(self, metric: str, first: str) -> list[float]:
        """Values of an objective: all steps for the first objective, the last step for others."""
        if metric == first:
            return list(self.values.values())
        return [self.metrics[metric]] if metric in self.metrics else []

    @cached_property
    def key(self) -> str:
        """`key_of` of the knobs."""
        return key_of(self.knobs)


def key_of(knobs: Mapping[str, Any]) -> str:
    """The same text for equal configurations."""
    return json.dumps(dict(knobs), sort_keys=True)


def observe(history: SweepHistory, objective: ObjectiveSpec) -> dict[int, Observation]:
    """Observations from a sweep's history, by number of the trial; repeats are left out."""
    seen: dict[int, Observation] = {}
    for number, record in history.trials.items():
        if record.repeat_of is not None:
            continue
        seen[number] = Observation(
            knobs=record.knobs, outcome=record.outcome, reason=record.reason, parent=record.parent
        )
        for report in record.reports:
            metrics = fault_metrics(dict(report.metrics)) if report.is_fault else report.metrics
            seen[number].report(report.step, metrics, objective)
    return seen


def most_telling(
    observations: Mapping[int, Observation], mode: Mode, most: int
) -> Mapping[int, Observation]:
    """At most `most` observations: the newest, and the best of the older ones."""
    if len(observations) <= most:
        return observations
    sign = 1.0 if mode == "min" else -1.0

    def badness(number: int) -> tuple[float, int]:
        last = observations[number].last
        return (math.inf if last is None else sign * last), number

    split = len(observations) - most // 2
    numbers = sorted(observations)
    kept = [*sorted(numbers[:split], key=badness)[: most - most // 2], *numbers[split:]]
    return {number: observations[number] for number in kept}


def build_study(
    space: SearchSpace,
    objective: ObjectiveSpec,
    observations: Mapping[int, Observation],
    sampler: BaseSampler | None = None,
    *,
    ranks_pruned: bool = True,
    generations: tuple[str, int] | None = None,
) -> optuna.Study:
    """An Optuna study in memory that holds the observations, in the order of their numbers.

    Args:
        space: Search space of the sweep.
        objective: Each goal is an objective of the study, each bound a constraint.
        observations: Observation of each trial, by number.
        sampler: Sampler of the study.
        ranks_pruned: The sampler learns from pruned trials; used with one objective only.
        generations: Attribute from which the sampler reads a complete trial's generation, and the
            size of a generation.

    Raises:
        SweepStorageError: The knobs of a trial are outside of this space.
    """
    # Optuna logs every new study, and a study is built for each suggestion.
    logging.getLogger("optuna.storages._in_memory").setLevel(logging.WARNING)
    directions = [f"{mode}imize" for mode in objective.goals.values()]
    study = optuna.create_study(directions=directions, sampler=sampler)
    teller = _Teller(space, objective, observations, ranks_pruned)
    complete = 0
    for number in sorted(observations):
        try:
            trial = teller.trial(observations[number])
            if generations is not None and trial.state is TrialState.COMPLETE:
                trial.system_attrs[generations[0]] = complete // generations[1]
                complete += 1
            study.add_trial(trial)
        except (KeyError, ValueError) as error:
            raise SweepStorageError(
                f"trial {number}: its knobs {dict(observations[number].knobs)!r} are outside of "
                f"this space ({error}); allowed: the space that the sweep was started with. Use "
                "another storage folder."
            ) from error
    return study


class _Told(FrozenTrial):  # type: ignore[misc]
    """A trial that a study adds as a shallow copy: deep copies took most of the time."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Told:
        return copy.copy(self)


class _Teller:
    """Turns observations into Optuna's trials; values worse than all others need all of them."""

    def __init__(
        self,
        space: SearchSpace,
        objective: ObjectiveSpec,
        observations: Mapping[int, Observation],
        ranks_pruned: bool,
    ) -> None:
        self._space, self._objective = space, objective
        self._ranks_pruned = ranks_pruned and len(objective.goals) == 1
        self._distributions = space.distributions()
        self._now = datetime.now()
        possible = [one for one in observations.values() if _lesson(one) != "worst"]
        self._worst: dict[str, float] = {}
        """A finite value of each objective that is worse than all values seen."""
        for name, mode in objective.goals.items():
            sign = 1.0 if mode == "min" else -1.0
            seen = (value for one in possible for value in one.known(name, objective.metric))
            worst = max((sign * value for value in seen), default=0.0)
            self._worst[name] = sign * (worst + max(1.0, abs(worst)))
        self._bounds = {f"{bound.metric} {bound.limit}": bound for bound in objective.bounds}
        self._excess = {
            name: max((bound.excess(one.metrics[bound.metric]) for one in possible
                       if bound.metric in one.metrics), default=0.0)
            for name, bound in self._bounds.items()
        }  # fmt: skip

    def trial(self, seen: Observation) -> FrozenTrial:
        """One observation as a trial."""
        state = self._state(seen)
        params = self._space.encode(seen.knobs)
        is_told = state in (TrialState.COMPLETE, TrialState.PRUNED)
        trial = _Told(
            number=-1,
            trial_id=-1,
            state=state,
            value=None,
            values=self._values(seen) if state is TrialState.COMPLETE else None,
            datetime_start=self._now,
            datetime_complete=self._now if state.is_finished() else None,
            params=params,
            distributions={name: self._distributions[name] for name in params},
            user_attrs={},
            system_attrs={},
            intermediate_values=seen.values,
        )
        for name, bound in self._bounds.items() if is_told else ():
            if seen.outcome is Outcome.INFEASIBLE and bound.metric == _MEMORY:
                excess = max(self._excess[name], 0.0) + 1.0
            elif bound.metric in seen.metrics:
                excess = bound.excess(seen.metrics[bound.metric])
            else:
                excess = 0.0  # unknown
            trial.set_constraint(name, excess)
        return trial

    def _state(self, seen: Observation) -> TrialState:
        lesson = _lesson(seen)
        if lesson == "nothing":
            return TrialState.FAIL
        if lesson == "worst":
            return TrialState.COMPLETE
        if not seen.values:
            return TrialState.RUNNING if seen.outcome is None else TrialState.FAIL
        if seen.outcome is Outcome.COMPLETED or not self._ranks_pruned:
            return TrialState.COMPLETE
        return TrialState.PRUNED

    def _values(self, seen: Observation) -> list[float]:
        """A value for each objective; a value worse than all others if unknown."""
        if seen.outcome is Outcome.INFEASIBLE:
            # Values before the trial ran out of memory would mislead, a low memory peak above all.
            return list(self._worst.values())
        values = {name: seen.metrics.get(name, worst) for name, worst in self._worst.items()}
        first, last = self._objective.metric, seen.last
        values[first] = (
            self._worst[first] if last is None or seen.outcome is Outcome.DIVERGED else last
        )
        return list(values.values())


def _lesson(seen: Observation) -> Lesson:
    """What a sampler learns from a trial; a running trial has values so far."""
    return "values" if seen.outcome is None else TRAITS[seen.outcome].lesson
