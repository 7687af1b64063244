"""Samplers by their names in a sweep file; a sampler is built anew for each suggestion."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from cmaes import CMA
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

from orchestrator.spec.sections import Algorithm

_MIN_POPULATION = 4
_CMA_SIGMA = 0.3
"""First step size, in units of a knob's range: as Hansen advises (arXiv:1604.00772)."""


@dataclass(frozen=True, kw_only=True)
class SamplerRequest:
    """Arguments for building a sampler.

    Attributes:
        seed: Seed of this suggestion.
        startup: Number of random trials before the sampler learns.
        has_conditions: The set of knobs differs between trials.
    """

    seed: int
    startup: int
    has_conditions: bool = False


@dataclass(frozen=True, kw_only=True)
class Learner:
    """How to build a sampler, and the number of trials to show to the sampler.

    Attributes:
        build: Makes the sampler.
        most: Maximum number of trials to show, to bound the time of a suggestion.
        ranks_pruned: The sampler learns from pruned trials.
        generation_attr: System attribute from which the sampler reads a trial's generation.
    """

    build: Callable[[SamplerRequest], BaseSampler]
    most: int
    ranks_pruned: bool = False
    generation_attr: str | None = None

    def generations(self, request: SamplerRequest) -> tuple[str, int] | None:
        """For a genetic algorithm: the attribute of a trial's generation, and the size of one."""
        name = self.generation_attr
        return None if name is None else (name, _population(request))


def _build_tpe(request: SamplerRequest) -> BaseSampler:
    with warnings.catch_warnings():
        # The parameter `group` has been experimental since Optuna 2.8.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(
            n_startup_trials=request.startup,
            multivariate=True,
            group=request.has_conditions,
            constant_liar=True,
            seed=request.seed,
        )


def _population(request: SamplerRequest) -> int:
    """Size of a generation: the random trials at the start are the first generation."""
    return max(request.startup, _MIN_POPULATION)


LEARNERS: Mapping[Algorithm, Learner] = {
    # TPE takes a tenth of the trials for good ones, but at most 25: more than 250 do not help.
    "tpe": Learner(build=_build_tpe, most=250, ranks_pruned=True),
    "gp": Learner(
        build=lambda request: GPSampler(
            n_startup_trials=request.startup, seed=request.seed, warn_independent_sampling=False
        ),
        most=150,
    ),
    "cmaes": Learner(
        build=lambda request: CmaSampler(startup=request.startup, seed=request.seed), most=1000
    ),
    "nsga2": Learner(
        build=lambda request: NSGAIISampler(
            population_size=_population(request), seed=request.seed
        ),
        most=500,
        generation_attr="NSGAIISampler:generation",
    ),
    "random": Learner(build=lambda request: RandomSampler(seed=request.seed), most=0),
}
"""Samplers by name; `grid` needs none."""


class CmaSampler(BaseSampler):  # type: ignore[misc]
    """CMA-ES (arXiv:1604.00772) over the numeric knobs of all trials; other knobs are random.

    Optuna's `CmaEsSampler` keeps its state in attributes of trials. `CmaSampler` has no state: it
    replays the complete trials of the study by number, in groups of the population size, and asks
    once. Trials rank by constraint violation first (Deb 2000), then by value: CMA-ES uses ranks
    only.
    """

    def __init__(self, *, startup: int, seed: int) -> None:
        self._startup = startup
        self._rng = np.random.RandomState(seed)
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The ranges for which every complete trial has a value."""
        common = IntersectionSearchSpace().calculate(study)
        return {
            name: distribution
            for name, distribution in common.items()
            if isinstance(distribution, FloatDistribution | IntDistribution)
            and not distribution.single()
        }

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """A draw from the distribution learnt from the trials so far."""
        seen = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(seen) < self._startup or not search_space:
            return {}
        is_max = study.direction == optuna.study.StudyDirection.MAXIMIZE

        def badness(trial: FrozenTrial) -> tuple[float, float]:
            violation = sum(excess for excess in trial.constraints.values() if excess > 0)
            value: float = trial.values[0]
            return violation, -value if is_max else value

        axes = {name: _Axis.of(distribution) for name, distribution in search_space.items()}
        cma = CMA(
            mean=np.full(len(axes), 0.5),
            sigma=_CMA_SIGMA,
            bounds=np.tile([0.0, 1.0], (len(axes), 1)),
            seed=int(self._rng.randint(2**31)),
        )
        size = cma.population_size
        for start in range(0, len(seen) - size + 1, size):
            group = sorted(seen[start : start + size], key=badness)
            points = [np.array([axis.to_unit(one.params[name]) for name, axis in axes.items()])
                      for one in group]  # fmt: skip
            cma.tell([(point, float(rank)) for rank, point in enumerate(points)])
        drawn = cma.ask()
        return {
            name: axis.from_unit(float(unit))
            for (name, axis), unit in zip(axes.items(), drawn, strict=True)
        }

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A random value: of a choice, of a conditional knob, or at the start."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)


@dataclass(frozen=True)
class _Axis:
    """A range mapped to the interval from 0 to 1; whole numbers map to midpoints."""

    low: float
    high: float
    is_log: bool
    is_whole: bool

    @classmethod
    def of(cls, distribution: FloatDistribution | IntDistribution) -> _Axis:
        is_whole = isinstance(distribution, IntDistribution)
        margin = 0.5 if is_whole else 0.0
        return cls(
            distribution.low - margin, distribution.high + margin, distribution.log, is_whole
        )

    def to_unit(self, value: float) -> float:
        low, high, value = (self._scaled(one) for one in (self.low, self.high, value))
        return (value - low) / (high - low)

    def from_unit(self, unit: float) -> float:
        low, high = self._scaled(self.low), self._scaled(self.high)
        value = low + unit * (high - low)
        value = math.exp(value) if self.is_log else value
        if self.is_whole:
            return min(max(round(value), math.ceil(self.low)), math.floor(self.high))
        return min(max(value, self.low), self.high)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.is_log else value
