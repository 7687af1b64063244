"""Trains the finalists again with new seeds, as trials of Ray Tune."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.search import Searcher

from orchestrator.finals.standings import finalists
from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.spec.settings import MAX_SEED
from orchestrator.spec.sweep import SweepSpec
from trainables.spec import TrialSpec

logger = logging.getLogger(__name__)

_APART = 1_000_003
"""Gap between the new seeds of two finalists, which may have equal settings except the seed."""


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """One more run of a finalist.

    Attributes:
        trial: The finalist.
        seed: Seed of the run.
    """

    trial: TrialRecord
    seed: int

    def spec(self) -> TrialSpec:
        """The finalist's configuration with the new seed."""
        return dataclasses.replace(TrialSpec.from_dict(self.trial.spec), seed=self.seed)


def plan_repeats(spec: SweepSpec, history: SweepHistory) -> list[Repeat]:
    """Repeats still to start, the first new seed of each finalist at the head.

    A budget that ends early therefore repeats every finalist once before any finalist twice.
    """
    planned = []
    for turn in range(1, spec.finals.seeds + 1):
        for trial in finalists(spec, history)[: spec.finals.top]:
            # A seed that neither the search nor another finalist used with these settings.
            seed = int(trial.spec["seed"]) + turn
            if "seed" in spec.search_space.knobs:
                seed += _APART * (trial.number + 1)
            seed %= MAX_SEED + 1
            started = {run.spec["seed"] for run in history.repeats_of(trial.number)}
            if seed not in started:
                planned.append(Repeat(trial=trial, seed=seed))
    return planned


def unwanted_repeats(spec: SweepSpec, history: SweepHistory) -> list[TrialRecord]:
    """Unfinished repeats of trials that are no longer finalists."""
    wanted = {trial.number for trial in finalists(spec, history)[: spec.finals.top]}
    return [
        trial
        for trial in history.unfinished()
        if trial.repeat_of is not None and trial.repeat_of not in wanted
    ]


def are_repeated(spec: SweepSpec, history: SweepHistory) -> bool:
    """Whether no repeat is left to start or to end."""
    return not plan_repeats(spec, history) and not any(
        trial.repeat_of is not None for trial in history.unfinished()
    )


class RepeatSearcher(Searcher):  # type: ignore[misc]
    """Ray Tune's view of the finals: unfinished repeats first, then planned repeats.

    Args:
        spec: The sweep.
        history: Its trials so far.
        constants: Values for the config of every trial.
        may_start: Called before each new repeat; returns a reason against the start, or "".

    Attributes:
        finish_reason: Why repeats were left out; empty when all were started.
    """

    def __init__(
        self,
        spec: SweepSpec,
        history: SweepHistory,
        constants: Mapping[str, Any],
        may_start: Callable[[], str],
    ) -> None:
        super().__init__(metric=spec.objective.metric, mode=spec.objective.mode)
        self.finish_reason = ""
        self._constants = dict(constants)
        self._may_start = may_start
        self._unfinished = deque(t for t in history.unfinished() if t.repeat_of is not None)
        self._planned = deque(plan_repeats(spec, history))
        self._next = max(history.trials, default=-1) + 1
        self._configs: dict[str, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its searchers; a copy suggests no trial.
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The config of the next repeat, or `Searcher.FINISHED`."""
        if trial_id in self._configs:
            return self._configs[trial_id]
        if self._unfinished:
            record = self._unfinished.popleft()
            config = {
                "trial": record.number,
                "knobs": dict(record.knobs),
                "spec": dict(record.spec),
                "repeat_of": record.repeat_of,
            }
        elif self._planned:
            self.finish_reason = self._may_start()
            if self.finish_reason:
                logger.warning("%d repeats left out: %s", len(self._planned), self.finish_reason)
                self._planned.clear()
                return str(Searcher.FINISHED)
            repeat = self._planned.popleft()
            config = {
                "trial": self._next,
                "knobs": dict(repeat.trial.knobs),
                "spec": repeat.spec().to_dict(),
                "repeat_of": repeat.trial.number,
            }
            self._next += 1
        else:
            return str(Searcher.FINISHED)
        self._configs[trial_id] = self._constants | config
        return self._configs[trial_id]

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the next repeats do not depend on results."""

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the event log holds the whole state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: `save` writes no state."""
