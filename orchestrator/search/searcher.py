"""Choice of the next configuration of a sweep.

The next configuration is a pure function of the seed, the trial's number and the observations of
other trials. For every suggestion, an Optuna study is built from these observations, with a
sampler seeded for the number. So there is no sampler state to save, and a sweep resumed from its
event log gets the same suggestions as without the interruption.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import random
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from ray.tune.search import Searcher

from orchestrator.errors import SweepStorageError
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.pins import pinned_base
from orchestrator.outcome import TRAITS, TrialOutcome, settle_end
from orchestrator.search.pbt import Heir, explore
from orchestrator.search.samplers import LEARNERS, SamplerRequest
from orchestrator.search.study import Observation, build_study, key_of, most_telling, observe
from orchestrator.spec.sweep import SweepSpec, build_trial
from trainables.spec import TrialSpec

logger = logging.getLogger(__name__)

_MAX_ASKS = 16
"""Maximum number of samples from the algorithm for one suggestion."""

_MAX_DRAWS = 256
"""Maximum number of random draws, if none of the algorithm's samples can be tried."""

_MAX_FIRST_FAILURES = 3
"""The search ends if this many first trials fail for the same reason before any trial has
reported, or twice as many for different reasons: the cause is the sweep, not the knobs."""

Draw = Callable[[str, BaseDistribution], Any]
Refuse = Callable[[TrialSpec], str]


class Steering(Protocol):
    """The part of the scheduler that a search uses; see `orchestrator.search.schedule`."""

    def next_heir(self) -> Heir | None:
        """Take the next copy of a trial to start; `None` without one."""

    def may_start_fresh(self, fresh_started: int) -> bool:
        """Whether one more fresh trial may start."""

    def end_of(self, trial: int) -> TrialOutcome | None:
        """Outcome of a trial that the scheduler stopped; `None` for other trials."""


class Suggester:
    """Chooses configurations; keeps no state except the sweep.

    Args:
        spec: The sweep.
        start_points: Knobs of the first trials, by number; missing knobs are drawn.
        refuse: Reason against a trial that the space allows, such as its memory; empty for none.
    """

    def __init__(
        self,
        spec: SweepSpec,
        start_points: Sequence[Mapping[str, Any]] = (),
        refuse: Refuse = lambda trial: "",
    ) -> None:
        self._spec, self._space = spec, spec.search_space
        self._start_points, self._refuse_trial = start_points, refuse

    def refuse(self, knobs: Mapping[str, Any]) -> str:
        """Reason against a configuration: the space's first, then that of `refuse`."""
        return self._space.refuse(knobs) or self._refuse_trial(build_trial(self._spec, knobs))

    def suggest(
        self, number: int, observations: Mapping[int, Observation]
    ) -> dict[str, Any] | None:
        """A new configuration for a trial; `None` when the space is exhausted."""
        tried = {seen.key for seen in observations.values()}
        refusals: list[str] = []
        found = None
        for knobs in self._candidates(number, observations):
            if key_of(knobs) in tried:
                continue
            refusal = self.refuse(knobs)
            if not refusal:
                found = knobs
                break
            refusals.append(refusal)
        if refusals:
            logger.info(
                "trial %d: %d suggestions were refused, at last: %s",
                number, len(refusals), refusals[-1],
            )  # fmt: skip
        return found

    def _candidates(
        self, number: int, observations: Mapping[int, Observation]
    ) -> Iterator[dict[str, Any]]:
        """Configurations to try, the most wanted first; bounded and computed lazily."""
        seed = _seed_of(self._spec.seed, number)
        if number < len(self._start_points):
            wanted = self._space.encode(self._start_points[number])
            for draw in _draws(self._study({}, seed, "random"), _MAX_ASKS):
                yield self._space.suggest(_preferring(wanted, draw))
        if self._spec.search.algorithm == "grid":
            yield from self._shuffled(self._spec.seed)
            return
        asked = self._study(observations, seed, self._spec.search.algorithm)
        yield from map(self._space.suggest, _draws(asked, _MAX_ASKS))
        drawn = self._study({}, _seed_of(seed, "draws"), "random")
        yield from map(self._space.suggest, _draws(drawn, _MAX_DRAWS))
        if self._space.is_short:
            yield from self._shuffled(seed)

    def _study(
        self, observations: Mapping[int, Observation], seed: int, algorithm: Any
    ) -> optuna.Study:
        learner, objective = LEARNERS[algorithm], self._spec.objective
        shown = most_telling(observations, objective.mode, learner.most)
        request = SamplerRequest(
            seed=seed,
            startup=self._spec.search.startup_trials + len(self._start_points),
            has_conditions=bool(self._space.conditions),
        )
        return build_study(
            self._space,
            objective,
            shown,
            learner.build(request),
            ranks_pruned=learner.ranks_pruned,
            generations=learner.generations(request),
        )

    def _shuffled(self, seed: int) -> list[dict[str, Any]]:
        return random.Random(seed).sample(self._listed, len(self._listed))

    @cached_property
    def _listed(self) -> list[dict[str, Any]]:
        """All allowed configurations of a finite space."""
        return list(self._space.configurations())


def suggest_knobs(
    spec: SweepSpec,
    number: int,
    observations: Mapping[int, Observation],
    start_points: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any] | None:
    """A new configuration for a trial; `None` when the space is exhausted."""
    return Suggester(spec, start_points).suggest(number, observations)


class OptunaSearcher(Searcher):  # type: ignore[misc]
    """Ray Tune's searcher: suggests unfinished trials of an earlier run first, then new trials.

    A suggestion is `{"trial": number, "knobs": ..., "spec": TrialSpec.to_dict()}`, with
    `"resume": True` for a trial that an earlier run left unfinished, and `"parent": {"trial",
    "step", "replaces"}` for a trial that continues from the checkpoint of another. The searcher
    counts trials itself (`budget.trials`): give Ray Tune `num_samples=-1`, and neither metric nor
    mode.

    Attributes:
        finish_reason: Why the search has ended; empty before.
    """

    def __init__(
        self,
        spec: SweepSpec,
        history: SweepHistory | None = None,
        constants: Mapping[str, Any] | None = None,
        *,
        start_points: Sequence[Mapping[str, Any]] = (),
        may_start: Callable[[int], str] | None = None,
        scheduler: Steering | None = None,
        refuse: Refuse = lambda trial: "",
    ) -> None:
        """Continue from a recorded history.

        Args:
            spec: The sweep.
            history: Recorded history of the sweep; `None` for a new sweep.
            constants: Entries added to every suggestion.
            start_points: Result of `choose_start_points` at the start of the sweep.
            may_start: Called with the number of trials before each new trial; returns a reason
                not to start one, or an empty text.
            scheduler: Source of copies for population-based training. While no fresh trial may
                start, the search waits for a copy.
            refuse: Reason against a trial that the space allows, such as its memory; empty for
                none. Another one is suggested in its place.
        """
        super().__init__(metric=spec.objective.metric, mode=spec.objective.mode)
        history = history or SweepHistory()
        self.finish_reason = ""
        self._spec = spec
        self._constants = dict(constants or {})
        self._observations = observe(history, spec.objective)
        self._pins = history.pins
        self._repeats = history.trials.keys() - self._observations.keys()
        self._unfinished = deque(
            record.number for record in history.unfinished() if record.repeat_of is None
        )
        self._suggester = Suggester(spec, start_points, refuse)
        self._may_start = may_start or (lambda trials: "")
        self._scheduler = scheduler
        self._configs: dict[str, dict[str, Any]] = {}
        """Suggestions by Ray Tune's trial id."""

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its searchers; a copy suggests nothing.
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A configuration for this trial, `Searcher.FINISHED`, or `None` to ask again later."""
        if trial_id in self._configs:
            return self._configs[trial_id]
        if self._unfinished:
            self._configs[trial_id] = self._config(self._unfinished.popleft()) | {"resume": True}
            return self._configs[trial_id]
        reason = self._why_finish()
        if reason:
            return self._finish(reason)
        number = next(
            n for n in itertools.count() if n not in self._observations and n not in self._repeats
        )
        heir = self._scheduler.next_heir() if self._scheduler else None
        if heir is None and not self._may_start_fresh():
            is_any_running = any(seen.outcome is None for seen in self._observations.values())
            return None if is_any_running else self._finish("no trial is left to copy")
        if heir is None:
            knobs = self._suggester.suggest(number, self._observations)
            if knobs is None:
                tried = len(self._observations)
                return self._finish(f"nothing new to try: {tried} configurations were tried")
            self._observations[number] = Observation(knobs=knobs)
        else:
            self._observations[number] = self._inherit(number, heir)
        self._configs[trial_id] = self._config(number)
        return self._configs[trial_id]

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take in a report; a repeated step counts once, a non-finite value does not count."""
        seen = self._seen(trial_id)
        if seen.outcome is None and "step" in result:
            seen.report(int(result["step"]), result, self._spec.objective)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take in the end of a trial; a second end has no effect."""
        if trial_id not in self._configs:
            return
        if result:
            # Ray Tune passes the last result of a stopped trial only here.
            self.on_trial_result(trial_id, result)
        seen = self._seen(trial_id)
        if seen.outcome is None:
            number = self._configs[trial_id]["trial"]
            decided = self._scheduler.end_of(number) if self._scheduler else None
            failure = "no message" if error else None  # Ray Tune does not pass the error itself
            end = settle_end(result, self._spec.horizon, decided, failure)
            seen.outcome, seen.reason = end.outcome, end.reason

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the event log is the record of the search."""

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: a sweep is resumed from its event log.

        Raises:
            SweepStorageError: Always.
        """
        raise SweepStorageError(
            f"{checkpoint_path}: a search is not restored from Ray Tune's files; allowed: the "
            "event log of the sweep. Resume the sweep's storage folder instead."
        )

    def _why_finish(self) -> str:
        """Reason to start no new trial; empty to start one."""
        trials, budget = len(self._observations), self._spec.budget.trials
        if trials >= budget:
            return f"the budget of {budget} trials is spent"
        return _why_hopeless(list(self._observations.values())) or self._may_start(trials)

    def _may_start_fresh(self) -> bool:
        fresh = sum(1 for seen in self._observations.values() if seen.parent is None)
        return self._scheduler is None or self._scheduler.may_start_fresh(fresh)

    def _inherit(self, number: int, heir: Heir) -> Observation:
        """A copy of a better trial with changed knobs; unchanged if all changes are refused."""
        space = self._spec.search_space
        parent_knobs = dict(self._observations[heir.parent].knobs)
        tries = (
            explore(space, parent_knobs, _seed_of(self._spec.seed, f"{number}/{attempt}"))
            for attempt in range(_MAX_ASKS)
        )
        knobs = next(
            (changed for changed in tries if not self._suggester.refuse(changed)), parent_knobs
        )
        parent = {"trial": heir.parent, "step": heir.step, "replaces": heir.replaces}
        return Observation(knobs=knobs, parent=parent)

    def _seen(self, trial_id: str) -> Observation:
        return self._observations[self._configs[trial_id]["trial"]]

    def _config(self, number: int) -> dict[str, Any]:
        seen = self._observations[number]
        knobs = dict(seen.knobs)
        trial = build_trial(self._spec, knobs)
        trial = dataclasses.replace(trial, base=pinned_base(trial.base, self._pins))
        inherited = {} if seen.parent is None else {"parent": dict(seen.parent)}
        return {
            **self._constants,
            "trial": number,
            "knobs": knobs,
            "spec": trial.to_dict(),
            **inherited,
        }

    def _finish(self, reason: str) -> str:
        if not self.finish_reason:
            self.finish_reason = reason
            logger.info("search finished: %s", reason)
        return str(Searcher.FINISHED)


def _why_hopeless(seen: Sequence[Observation]) -> str:
    """Reason to end the search: all first trials failed before measuring anything."""
    ended = [one for one in seen if one.outcome is not None]
    if (
        len(ended) < _MAX_FIRST_FAILURES
        or any(one.values for one in seen)
        or any(not TRAITS[end].may_be_corrected for one in ended if (end := one.outcome))
    ):
        return ""
    # Equal reasons differ in digits only: bytes, process ids, trial numbers.
    kinds = {re.sub(r"\d+", "", one.reason) for one in ended}
    count, reason = len(ended), ended[0].reason or "no reason given"
    if len(kinds) == 1:
        return f"the first {count} trials all failed the same way: {reason}; more would fail, too"
    if count >= 2 * _MAX_FIRST_FAILURES:
        return f"the first {count} trials all failed; the first reason: {reason}"
    return ""


def _draws(study: optuna.Study, times: int) -> Iterator[Draw]:
    """New trials of a study, each as the function that `SearchSpace.suggest` draws from."""
    for _ in range(times):
        yield _drawing(study.ask())


def _drawing(trial: optuna.Trial) -> Draw:
    def draw(name: str, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, CategoricalDistribution):
            return trial.suggest_categorical(name, distribution.choices)
        low, high, is_log = distribution.low, distribution.high, distribution.log
        if isinstance(distribution, IntDistribution):
            return trial.suggest_int(name, low, high, log=is_log)
        return trial.suggest_float(name, low, high, log=is_log)

    return draw


def _preferring(wanted: Mapping[str, Any], draw: Draw) -> Draw:
    """A draw that gives the wanted values, and draws the others."""
    return lambda name, distribution: wanted[name] if name in wanted else draw(name, distribution)


def _seed_of(seed: int, name: object) -> int:
    """A seed for each name, such as a trial's number, derived from the sweep's seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")
