"""Which configuration a sweep tries next.

The next configuration is a pure function of the seed, the trial's number and what is known of the
other trials: for every suggestion an Optuna study is built from these observations, with a sampler
seeded for that number, and asked once. So there is no sampler state to save, and a sweep resumed
from its event log goes on exactly as it would have. (500 trials cost 0.2 s per suggestion.)
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.search import Searcher

from orchestrator.errors import SweepStorageError
from orchestrator.history import SweepHistory
from orchestrator.outcome import Outcome, infer_outcome
from orchestrator.sections import Algorithm, Metric, Mode, SearchSpec
from orchestrator.space import MAX_LISTED, SearchSpace, build_trial
from orchestrator.spec import SweepSpec

logger = logging.getLogger(__name__)

_MAX_ASKS = 16
"""Asks for one suggestion before a repeated configuration is no longer chance."""

_MAX_FIRST_FAILURES = 3
"""Trials that may fail before any has measured anything; then the sweep itself is at fault."""

_STATES = {
    None: TrialState.RUNNING,
    Outcome.COMPLETED: TrialState.COMPLETE,
    Outcome.STOPPED: TrialState.PRUNED,
    # Both say that the configuration itself does not work. A failed Optuna trial teaches the
    # sampler nothing, so these count as completed, worse than every value seen.
    Outcome.DIVERGED: TrialState.COMPLETE,
    Outcome.INFEASIBLE: TrialState.COMPLETE,
    Outcome.FAILED: TrialState.FAIL,
    Outcome.CANCELLED: TrialState.FAIL,
}


@dataclass(kw_only=True)
class Observation:
    """What a searcher knows of one trial.

    Attributes:
        knobs: Its configuration.
        values: Finite values of the objective by step.
        outcome: `None` while it runs.
    """

    knobs: Mapping[str, Any]
    values: dict[int, float] = field(default_factory=dict)
    outcome: Outcome | None = None


def _build_tpe(space: SearchSpace, search: SearchSpec, seed: int) -> BaseSampler:
    return TPESampler(
        n_startup_trials=search.startup_trials, multivariate=True, constant_liar=True, seed=seed
    )


def _build_random(space: SearchSpace, search: SearchSpec, seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _build_grid(space: SearchSpace, search: SearchSpec, seed: int) -> BaseSampler:
    # The seed shuffles the grid, and must do so alike for every number: it is not used.
    return GridSampler({name: knob.build().choices for name, knob in space.knobs.items()}, seed=0)


SEARCHERS: dict[Algorithm, Callable[[SearchSpace, SearchSpec, int], BaseSampler]] = {
    "tpe": _build_tpe,
    "random": _build_random,
    "grid": _build_grid,
}
"""Samplers by the name they have in a sweep file."""


def observe(history: SweepHistory, metric: Metric) -> dict[int, Observation]:
    """What a sweep's history says about each trial, by number."""
    return {
        number: Observation(
            knobs=record.knobs,
            values={
                report.step: value
                for report in record.reports
                if math.isfinite(value := report.metrics.get(metric, math.nan))
            },
            outcome=record.outcome,
        )
        for number, record in history.trials.items()
    }


def build_study(
    space: SearchSpace,
    mode: Mode,
    observations: Mapping[int, Observation],
    sampler: BaseSampler | None = None,
) -> optuna.Study:
    """An Optuna study in memory that holds the observations, in the order of their numbers.

    Raises:
        SweepStorageError: A trial's knobs are not of this space.
    """
    # Not a word about each study that is made: one is made per suggestion.
    logging.getLogger("optuna.storages._in_memory").setLevel(logging.WARNING)
    study = optuna.create_study(
        direction="minimize" if mode == "min" else "maximize", sampler=sampler
    )
    worst = _worse_than_all(observations, mode)
    distributions = space.distributions()
    for number in sorted(observations):
        seen = observations[number]
        state = _STATES[seen.outcome]
        if state is TrialState.COMPLETE and not seen.values and seen.outcome is Outcome.COMPLETED:
            state = TrialState.FAIL  # nothing finite to compare
        try:
            trial = optuna.trial.create_trial(
                state=state,
                value=_final_value(seen, worst) if state is TrialState.COMPLETE else None,
                params=space.encode(seen.knobs),
                distributions=distributions,
                intermediate_values=dict(seen.values),
                user_attrs={"trial": number},
            )
        except (KeyError, ValueError) as error:
            raise SweepStorageError(
                f"trial {number}: its knobs {dict(seen.knobs)!r} are not of this space ({error}); "
                "allowed: the space the sweep was started with. Use another storage folder."
            ) from error
        study.add_trial(trial)
    return study


def suggest_knobs(
    spec: SweepSpec, number: int, observations: Mapping[int, Observation]
) -> dict[str, Any] | None:
    """The configuration of one trial, never that of another; `None` when there is none left."""
    space = spec.search_space
    tried = {_key(seen.knobs) for seen in observations.values()}
    if space.size is not None and len(tried) >= space.size:
        return None
    seed = _seed_of(spec.seed, number)
    sampler = SEARCHERS[spec.search.algorithm](space, spec.search, seed)
    study = build_study(space, spec.objective.mode, observations, sampler)
    distributions = space.distributions()
    for _ in range(_MAX_ASKS):
        knobs = space.decode(study.ask(distributions).params)
        if _key(knobs) not in tried:
            return knobs
    if space.size is None or space.size > MAX_LISTED:
        return None
    left = [knobs for knobs in space.configurations() if _key(knobs) not in tried]
    return random.Random(seed).choice(left)


class OptunaSearcher(Searcher):  # type: ignore[misc]
    """Ray Tune's view of the search: trials of an earlier run first, then new ones.

    A suggestion is `{"trial": number, "knobs": ..., "spec": TrialSpec.to_dict()}`, with
    `"resume": True` for a trial that an earlier run left unfinished. It counts trials itself
    (`budget.trials`), so give Ray Tune `num_samples=-1`, and neither metric nor mode.

    Attributes:
        finish_reason: Why there are no more suggestions; empty before that.
    """

    def __init__(
        self,
        spec: SweepSpec,
        history: SweepHistory | None = None,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        """Start from what a history knows; `constants` are put into every suggestion."""
        super().__init__(metric=spec.objective.metric, mode=spec.objective.mode)
        history = history or SweepHistory()
        self.finish_reason = ""
        self._spec = spec
        self._constants = dict(constants or {})
        self._observations = observe(history, spec.objective.metric)
        self._unfinished = deque(record.number for record in history.unfinished())
        self._configs: dict[str, dict[str, Any]] = {}
        """What was suggested, by Ray Tune's trial ids."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """A configuration for this trial, or `Searcher.FINISHED`."""
        if trial_id in self._configs:
            return self._configs[trial_id]
        if self._unfinished:
            self._configs[trial_id] = self._config(self._unfinished.popleft()) | {"resume": True}
            return self._configs[trial_id]
        if len(self._observations) >= self._spec.budget.trials:
            return self._finish(f"the budget of {self._spec.budget.trials} trials is spent")
        if self._is_hopeless():
            return self._finish(f"the first {_MAX_FIRST_FAILURES} trials and more all failed")
        number = next(n for n in itertools.count() if n not in self._observations)
        knobs = suggest_knobs(self._spec, number, self._observations)
        if knobs is None:
            tried = len(self._observations)
            return self._finish(f"nothing new to try: {tried} configurations were tried")
        self._observations[number] = Observation(knobs=knobs)
        self._configs[trial_id] = self._config(number)
        return self._configs[trial_id]

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take in one report; a step reported twice counts once, a non-finite value not at all."""
        seen = self._seen(trial_id)
        value = result.get(self.metric)
        if seen.outcome is None and value is not None and math.isfinite(value):
            seen.values[int(result["step"])] = float(value)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take in a trial's end; a second end changes nothing."""
        if trial_id not in self._configs:
            return
        if result and "step" in result:
            # Ray Tune shows the last result of a stopped trial here only.
            self.on_trial_result(trial_id, result)
        seen = self._seen(trial_id)
        if seen.outcome is None:
            seen.outcome = infer_outcome(result, self._spec.horizon, error)

    def _is_hopeless(self) -> bool:
        """Nothing has measured anything, and whatever ended failed: it is not the knobs."""
        seen = self._observations.values()
        ended = [one.outcome for one in seen if one.outcome is not None]
        return (
            len(ended) >= _MAX_FIRST_FAILURES
            and set(ended) == {Outcome.FAILED}
            and not any(one.values for one in seen)
        )

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the event log holds all there is to know."""

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: a sweep is resumed from its event log.

        Raises:
            SweepStorageError: Always.
        """
        raise SweepStorageError(
            f"{checkpoint_path}: a search is not restored from Ray Tune's files; allowed: the "
            "event log of the sweep. Resume the sweep's storage folder instead."
        )

    def _seen(self, trial_id: str) -> Observation:
        return self._observations[self._configs[trial_id]["trial"]]

    def _config(self, number: int) -> dict[str, Any]:
        knobs = dict(self._observations[number].knobs)
        trial = build_trial(self._spec, knobs)
        return {**self._constants, "trial": number, "knobs": knobs, "spec": trial.to_dict()}

    def _finish(self, reason: str) -> str:
        if not self.finish_reason:
            self.finish_reason = reason
            logger.info("search finished: %s", reason)
        return str(Searcher.FINISHED)


def _final_value(seen: Observation, worst: float) -> float:
    return seen.values[max(seen.values)] if seen.outcome is Outcome.COMPLETED else worst


def _worse_than_all(observations: Mapping[int, Observation], mode: Mode) -> float:
    """A finite value worse than all that trials measured which could work at all."""
    sign = 1.0 if mode == "min" else -1.0
    values = [
        sign * value
        for seen in observations.values()
        if seen.outcome in (None, Outcome.COMPLETED, Outcome.STOPPED)
        for value in seen.values.values()
    ]
    worst = max(values, default=0.0)
    return sign * (worst + max(1.0, abs(worst)))


def _seed_of(seed: int, number: int) -> int:
    """An own random stream for every trial of every seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")


def _key(knobs: Mapping[str, Any]) -> str:
    return json.dumps(dict(knobs), sort_keys=True)
