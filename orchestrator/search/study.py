"""What a search knows of its trials, and the Optuna study that says so to a sampler.

A study is built anew for every suggestion, from observations alone:

    completed                      complete, with its last values
    stopped, running with values   for TPE and one objective: pruned, which Optuna ranks by
                                   (step, value), so that it learns while nothing is complete yet;
                                   for other samplers, which know complete trials only: complete,
                                   with the last values
    running without values         running, which keeps others away (the constant liar)
    diverged, infeasible           complete, worse than all that was seen
    failed, cancelled              failed, which says nothing
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Mapping, Sequence
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
        knobs: Its configuration.
        values: Finite values of the first objective by step.
        metrics: Every objective and every bounded metric as last reported, where finite.
        outcome: `None` while it runs.
        reason: One sentence on its end.
        parent: The trial it went on from, as `TrialRecord.parent` has it.
    """

    knobs: Mapping[str, Any]
    values: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    outcome: Outcome | None = None
    reason: str = ""
    parent: Mapping[str, int] | None = None

    def report(self, step: int, metrics: Mapping[str, Any], objective: ObjectiveSpec) -> None:
        """Take in a report; a repeated step replaces the lost one.

        What a trial with a fault reports in place of measurements is none.
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
        """The first objective as last reported."""
        return self.values[max(self.values)] if self.values else None

    def known(self, metric: str, first: str) -> list[float]:
        """Values of an objective: of the first one at every step, of others the last."""
        if metric == first:
            return list(self.values.values())
        return [self.metrics[metric]] if metric in self.metrics else []

    @cached_property
    def key(self) -> str:
        """The same for equal configurations."""
        return key_of(self.knobs)


def key_of(knobs: Mapping[str, Any]) -> str:
    """The same text for equal configurations."""
    return json.dumps(dict(knobs), sort_keys=True)


def observe(history: SweepHistory, objective: ObjectiveSpec) -> dict[int, Observation]:
    """What a sweep's history says about each trial of the search, by number."""
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
        space: What is searched.
        objective: What trials are compared by; each goal is an objective of the study, each bound
            a constraint.
        observations: What is known of each trial, by number.
        sampler: Who will be asked.
        ranks_pruned: The sampler learns from pruned trials, at least with one objective.
        generations: Attribute in which the sampler looks for a complete trial's generation, and
            the size of one.

    Raises:
        SweepStorageError: A trial's knobs are not of this space.
    """
    # Not a word about each study that is made: one is made per suggestion.
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
                f"trial {number}: its knobs {dict(observations[number].knobs)!r} are not of this "
                f"space ({error}); allowed: the space the sweep was started with. Use another "
                "storage folder."
            ) from error
    return study


class _Told(FrozenTrial):  # type: ignore[misc]
    """A trial that a study adds without a deep copy, which took most of the time."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Told:
        return copy.copy(self)


class _Teller:
    """Turns observations into Optuna's trials, each in the light of all."""

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
        self._worst = {
            name: _worse_than_all(
                [value for one in possible for value in one.known(name, objective.metric)], mode
            )
            for name, mode in objective.goals.items()
        }
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
        for name in self._bounds if is_told else ():
            trial.set_constraint(name, self._excess_of(seen, name))
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
        """A value per objective; the worst of all values for an unknown one."""
        if seen.outcome is Outcome.INFEASIBLE:
            # What it measured before it ran out of memory, a low peak too, is not to its credit.
            return list(self._worst.values())
        values = {name: seen.metrics.get(name, worst) for name, worst in self._worst.items()}
        first, last = self._objective.metric, seen.last
        values[first] = (
            self._worst[first] if last is None or seen.outcome is Outcome.DIVERGED else last
        )
        return list(values.values())

    def _excess_of(self, seen: Observation, name: str) -> float:
        """How far a trial is beyond a bound; not at all as long as the metric is unknown."""
        bound = self._bounds[name]
        if seen.outcome is Outcome.INFEASIBLE and bound.metric == _MEMORY:
            return max(self._excess[name], 0.0) + 1.0
        value = seen.metrics.get(bound.metric)
        return 0.0 if value is None else bound.excess(value)


def _lesson(seen: Observation) -> Lesson:
    """The lesson of a trial for a sampler; a running trial teaches its values so far."""
    return "values" if seen.outcome is None else TRAITS[seen.outcome].lesson


def _worse_than_all(values: Sequence[float], mode: Mode) -> float:
    """A finite value worse than all of these."""
    sign = 1.0 if mode == "min" else -1.0
    worst = max((sign * value for value in values), default=0.0)
    return sign * (worst + max(1.0, abs(worst)))
