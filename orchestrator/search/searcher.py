"""Which configuration a sweep tries next.

The next configuration is a pure function of the seed, the trial's number and what is known of the
other trials: for every suggestion an Optuna study is built from these observations, with a sampler
seeded for that number, and asked. So there is no sampler state to save, and a sweep resumed from
its event log goes on exactly as it would have.
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

logger = logging.getLogger(__name__)

_MAX_ASKS = 16
"""Asks of a sampler for one suggestion before it is clear that it will not come up with one."""

_MAX_DRAWS = 256
"""Random draws after that."""

_MAX_FIRST_FAILURES = 3
"""Trials that may fail alike before any has measured anything; then the sweep is at fault. Twice
as many when each has reasons of its own."""

Draw = Callable[[str, BaseDistribution], Any]


class Steering(Protocol):
    """The part of the scheduler that a search asks; see `orchestrator.search.schedule`."""

    def next_heir(self) -> Heir | None:
        """The copy of a trial that is to come next, once."""

    def may_start_fresh(self, fresh_started: int) -> bool:
        """Whether one more fresh trial may start."""

    def end_of(self, trial: int) -> TrialOutcome | None:
        """Why the scheduler stopped a trial, if it did."""


class Suggester:
    """Chooses configurations, without state besides the sweep.

    Args:
        spec: The sweep.
        start_points: What the first trials are, by their numbers; knobs that one lacks are drawn.
    """

    def __init__(self, spec: SweepSpec, start_points: Sequence[Mapping[str, Any]] = ()) -> None:
        self._spec, self._space = spec, spec.search_space
        self._start_points = start_points

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
            refusal = self._space.refuse(knobs)
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
            yield from self._near(self._start_points[number], seed)
        if self._spec.search.algorithm == "grid":
            yield from self._shuffled(self._spec.seed)
            return
        asked = self._study(observations, seed, self._spec.search.algorithm)
        yield from map(self._space.suggest, _draws(asked, _MAX_ASKS))
        drawn = self._study({}, _seed_of(seed, "draws"), "random")
        yield from map(self._space.suggest, _draws(drawn, _MAX_DRAWS))
        if self._space.is_short:
            yield from self._shuffled(seed)

    def _near(self, point: Mapping[str, Any], seed: int) -> Iterator[dict[str, Any]]:
        """Configurations with the active knobs of a start point."""
        wanted = self._space.encode(point)
        for draw in _draws(self._study({}, seed, "random"), _MAX_ASKS):
            yield self._space.suggest(_preferring(wanted, draw))

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
        """Every configuration of a finite space that may be tried."""
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
    """Ray Tune's view of the search: trials of an earlier run first, then new ones.

    A suggestion is `{"trial": number, "knobs": ..., "spec": TrialSpec.to_dict()}`, with
    `"resume": True` for a trial that an earlier run left unfinished, and `"parent": {"trial",
    "step", "replaces"}` for one that goes on from another's checkpoint. It counts trials itself
    (`budget.trials`), so give Ray Tune `num_samples=-1`, and neither metric nor mode.

    Attributes:
        finish_reason: Why there are no more suggestions; empty before that.
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
    ) -> None:
        """Go on from what a history knows.

        Args:
            spec: The sweep.
            history: What was recorded of it.
            constants: Put into every suggestion.
            start_points: What `choose_start_points` gave when the sweep was started.
            may_start: Told the number of trials before each new one; gives a reason not to start
                it, or nothing.
            scheduler: Where population based training takes its heirs from. Where no trial may
                start from nothing, a new one waits for an heir to be due.
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
        self._suggester = Suggester(spec, start_points)
        self._may_start = may_start or (lambda trials: "")
        self._scheduler = scheduler
        self._configs: dict[str, dict[str, Any]] = {}
        """What was suggested, by Ray Tune's trial ids."""

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its searchers; a copy suggests nothing.
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A configuration for this trial, `Searcher.FINISHED`, or `None` to be asked later."""
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
            return None if is_any_running else self._finish("nobody is left to go on from")
        seen = self._search(number) if heir is None else self._inherit(number, heir)
        if seen is None:
            tried = len(self._observations)
            return self._finish(f"nothing new to try: {tried} configurations were tried")
        self._observations[number] = seen
        self._configs[trial_id] = self._config(number)
        return self._configs[trial_id]

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take in one report; a step reported twice counts once, a non-finite value not at all."""
        seen = self._seen(trial_id)
        if seen.outcome is None and "step" in result:
            seen.report(int(result["step"]), result, self._spec.objective)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take in a trial's end; a second end changes nothing."""
        if trial_id not in self._configs:
            return
        if result:
            # Ray Tune shows the last result of a stopped trial here only.
            self.on_trial_result(trial_id, result)
        seen = self._seen(trial_id)
        if seen.outcome is None:
            number = self._configs[trial_id]["trial"]
            decided = self._scheduler.end_of(number) if self._scheduler else None
            failure = "no message" if error else None  # Ray Tune tells a searcher nothing more
            end = settle_end(result, self._spec.horizon, decided, failure)
            seen.outcome, seen.reason = end.outcome, end.reason

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

    def _why_finish(self) -> str:
        """Why no new trial is started; empty when one is."""
        trials, budget = len(self._observations), self._spec.budget.trials
        if trials >= budget:
            return f"the budget of {budget} trials is spent"
        return _why_hopeless(list(self._observations.values())) or self._may_start(trials)

    def _search(self, number: int) -> Observation | None:
        knobs = self._suggester.suggest(number, self._observations)
        return None if knobs is None else Observation(knobs=knobs)

    def _may_start_fresh(self) -> bool:
        fresh = sum(1 for seen in self._observations.values() if seen.parent is None)
        return self._scheduler is None or self._scheduler.may_start_fresh(fresh)

    def _inherit(self, number: int, heir: Heir) -> Observation:
        """A changed copy of a better trial, as population based training wants one."""
        parent = {"trial": heir.parent, "step": heir.step, "replaces": heir.replaces}
        knobs = self._explored(self._observations[heir.parent].knobs, number)
        return Observation(knobs=knobs, parent=parent)

    def _explored(self, knobs: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Knobs a step away from the given knobs; the given ones if all neighbours are refused."""
        space = self._spec.search_space
        for attempt in range(_MAX_ASKS):
            changed = explore(space, knobs, _seed_of(self._spec.seed, f"{number}/{attempt}"))
            if not space.refuse(changed):
                return changed
        return dict(knobs)

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
        or any(not TRAITS[end].may_be_mended for one in ended if (end := one.outcome))
    ):
        return ""
    # Digits tell apart what is the same: bytes, process ids, trial numbers.
    kinds = {re.sub(r"\d+", "", one.reason) for one in ended}
    count, reason = len(ended), ended[0].reason or "no reason given"
    if len(kinds) == 1:
        return f"the first {count} trials all failed the same way: {reason}; more would too"
    if count >= 2 * _MAX_FIRST_FAILURES:
        return f"the first {count} trials all failed, the first one so: {reason}"
    return ""


def _draws(study: optuna.Study, times: int) -> Iterator[Draw]:
    """New trials of a study as what `SearchSpace.suggest` draws from."""
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
    """The wanted values, and drawn ones where there is none."""
    return lambda name, distribution: wanted[name] if name in wanted else draw(name, distribution)


def _seed_of(seed: int, name: object) -> int:
    """An own random stream for every name, such as a trial's number, of every seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")
