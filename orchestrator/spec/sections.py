"""Sections of a sweep file on search, early stopping and budget.

The section on hosts is in `orchestrator.spec.hosts_section`, those on the best trials are in
`orchestrator.spec.finals_sections`, those of a trial
(`base`, `lora`, `optim`, `data`, `eval`) in `trainables.spec`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, cast, get_args

from orchestrator.errors import SweepSpecError
from orchestrator.metrics import TRIAL_METRICS, Metric, ReportedMetric
from orchestrator.spec.complaint import complaint, nearest, require
from trainables.contract import Mode
from trainables.functions import FORM, names_function

Algorithm = Literal["tpe", "gp", "cmaes", "nsga2", "random", "grid"]
EarlyStop = Literal["asha", "hyperband", "median", "pbt", "none"]

_STRICT: dict[str, Any] = {"extra": "forbid"}
_BOUND = re.compile(r"\s*([a-z_]+)\s*(<=|>=)\s*([-+.0-9e]+)\s*")


class Bound(NamedTuple):
    """One constraint on a metric of a trial."""

    metric: str
    is_upper: bool
    limit: float

    def excess(self, value: float) -> float:
        """Amount by which a value exceeds the bound; 0 or less for an allowed value."""
        return value - self.limit if self.is_upper else self.limit - value


def parse_bound(written: str) -> Bound:
    """A constraint such as `peak_memory_gib <= 20`.

    Raises:
        SweepSpecError: The text is not such a comparison.
    """
    match = _BOUND.fullmatch(written)
    metrics = get_args(ReportedMetric)
    if match is None or match[1] not in metrics:
        raise complaint(
            "objective.constraints",
            written,
            f"METRIC <= NUMBER or METRIC >= NUMBER, of {', '.join(metrics)}",
            "Write it as peak_memory_gib <= 20.",
        )
    try:
        limit = float(match[3])
    except ValueError:
        limit = math.nan
    require(math.isfinite(limit), "objective.constraints", written, "a number", "Correct it.")
    return Bound(metric=match[1], is_upper=match[2] == "<=", limit=limit)


_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """Objectives and constraints for comparing trials.

    Attributes:
        metric: A metric in every report of a trial: `eval_loss`, `eval_accuracy`,
            `eval_token_accuracy`, `train_loss`, or `eval_<function>` of `eval.metric`.
        mode: Whether lower or higher is better; by default, `min` for a loss, and `max` for an
            accuracy and for a metric of yours.
        also: Further objectives with their directions, such as `{peak_memory_gib: min}`. The
            searcher and the Pareto front use all objectives; early stopping, ranking and promotion
            use `metric`.
        constraints: Bounds such as `peak_memory_gib <= 20`. A trial beyond a bound is not ranked,
            and the searcher avoids similar configurations.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    metric: Metric | str = "eval_loss"
    mode: Mode = field(default=cast("Mode", None))
    also: Mapping[ReportedMetric, Mode] = field(default_factory=dict)
    constraints: tuple[str, ...] = ()

    @property
    def own_function(self) -> str | None:
        """The name of the user's function that `metric` stands for; `None` for other metrics."""
        if self.metric in TRIAL_METRICS or not self.metric.startswith("eval_"):
            return None
        return self.metric.removeprefix("eval_")

    @property
    def goals(self) -> dict[str, Mode]:
        """All objectives with their directions, the ranking objective first."""
        return {str(self.metric): self.mode} | {
            str(name): mode for name, mode in self.also.items()
        }

    @cached_property
    def bounds(self) -> tuple[Bound, ...]:
        """`constraints`, parsed."""
        return tuple(parse_bound(written) for written in self.constraints)

    def unknown_metric(self, function: str = "") -> SweepSpecError:
        """The error for a metric that no report has.

        Args:
            function: Name of the user's function in `eval.metric`, if any.
        """
        names, own = get_args(Metric), self.own_function
        yours = f"eval_{function}" if function else "eval_FUNCTION, a function of yours"
        return complaint(
            "objective.metric",
            self.metric,
            f"{', '.join(names)} or {yours} in eval.metric",
            "Correct the name" + (f", or name a function {own} in eval.metric." if own else "."),
            meant=nearest(self.metric, names, is_dotted=False),
        )

    def __post_init__(self) -> None:
        require(
            self.metric not in self.also,
            "objective.also",
            dict(self.also),
            f"metrics besides objective.metric ({self.metric})",
            f"Remove {self.metric} from objective.also.",
        )
        _ = self.bounds
        own = self.own_function
        if self.metric not in get_args(Metric) and own is None:
            raise self.unknown_metric()
        fitting = "max" if own is not None else TRIAL_METRICS[cast("Metric", self.metric)].mode
        if cast("Mode | None", self.mode) is None:
            object.__setattr__(self, "mode", fitting)
        require(
            self.mode == fitting or own is not None,
            "objective.mode",
            self.mode,
            f"{fitting} for {self.metric}",
            "Leave it out.",
        )


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """Choice of configurations.

    Attributes:
        algorithm: `tpe` (multivariate, with a constant liar), `gp` (Gaussian process), `cmaes` and
            `nsga2` learn from the trials so far; `random` does not; `grid` tries every
            combination of a space without float ranges in a shuffled order. All but `cmaes` take
            more than one objective.
        startup_trials: Random trials before an algorithm starts to learn.
        prior: Begin with the usual learning rate for a base of this size (arXiv:2602.04998), if
            the space has a range of learning rates.
        start: Configurations to try first; missing knobs are drawn.
        warm_start: A registered model. Its champion and best versions are tried first, without
            settings outside of this space.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    algorithm: Algorithm = "tpe"
    startup_trials: int = 8
    prior: bool = True
    start: tuple[Mapping[str, Any], ...] = ()
    warm_start: str | None = None

    def __post_init__(self) -> None:
        require(
            self.startup_trials >= 1,
            "search.startup_trials",
            self.startup_trials,
            ">= 1",
            "Let at least one trial be random.",
        )
        if self.warm_start is not None:
            require_slug("search.warm_start", self.warm_start)


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """Early stopping of trials in comparison with other trials.

    Attributes:
        algorithm: `asha` (arXiv:1810.05934) stops a trial at a rung unless the trial is among the
            best `1 / reduction_factor` at this rung; `hyperband` (arXiv:1603.06560) spreads trials
            over several such ladders with increasing first rungs; `median` (Golovin et al. 2017,
            section 3.2.2) stops a trial if its best value is worse than the median of the others'
            running means; `pbt` (arXiv:1711.09846) ends the worst trials at a rung and replaces
            each by a changed copy of one of the best; `none` stops no trial.
        grace_steps: The first rung, a multiple of `eval.every`; 0 takes a quarter of
            `optim.steps`. For `pbt` also the distance between rungs.
        reduction_factor: Ratio of the steps of two successive rungs; at least 2, so that every
            rung has its own report.
        brackets: Number of ladders of `hyperband`.
        min_trials: Minimum number of other trials at a step before `median` stops a trial.
        population: Number of trials that `pbt` starts with; 0 takes half of `budget.trials`, but
            4 to 8.
        quantile: Part of the population that `pbt` replaces at a rung; also the part to copy from.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    algorithm: EarlyStop = "asha"
    grace_steps: int = 0
    reduction_factor: float = 2.0
    brackets: int = 3
    min_trials: int = 4
    population: int = 0
    quantile: float = 0.25

    def __post_init__(self) -> None:
        require(
            math.isfinite(self.reduction_factor) and self.reduction_factor >= 2,
            "schedule.reduction_factor",
            self.reduction_factor,
            "a number >= 2",
            "Use 2, 3 or 4.",
        )
        for name, least in (("brackets", 1), ("min_trials", 2), ("population", 0)):
            value = getattr(self, name)
            require(value >= least, f"schedule.{name}", value, f">= {least}", "Raise it.")
        require(
            0 < self.quantile <= 0.5,
            "schedule.quantile",
            self.quantile,
            "a number > 0 and <= 0.5",
            "Use 0.25.",
        )


@dataclass(frozen=True, kw_only=True)
class ExitSpec:
    """Conditions that end a trial without comparison with other trials.

    Attributes:
        divergence: A trial ends as `diverged` if its `eval_loss` exceeds the first `eval_loss` by
            this factor; 0 switches the rule off. (A non-finite loss always ends a trial.)
        overfitting: A trial ends as `stopped` after this number of successive evaluations with an
            `eval_loss` above the minimum while `train_loss` fell; 0 switches the rule off.
        stop: A function of yours, `path/to/file.py:function` or `module:function`, called after
            every report of a trial. Its argument is the list of the trial's reports so far, each
            a mapping with `step` and the metrics; it gives the reason to stop the trial as text,
            or `None`. Equal reports must give an equal answer: a resume asks again.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    divergence: float = 3.0
    overfitting: int = 0
    stop: str | None = None

    def __post_init__(self) -> None:
        require(
            self.divergence == 0 or (math.isfinite(self.divergence) and self.divergence > 1),
            "exits.divergence",
            self.divergence,
            "0, or a number > 1",
            "Use 3, or 0 to switch it off.",
        )
        require(
            self.overfitting >= 0, "exits.overfitting", self.overfitting, ">= 0", "Use 0 for off."
        )
        require(
            self.stop is None or names_function(self.stop),
            "exits.stop",
            self.stop,
            FORM,
            "Name the function behind a colon.",
        )


@dataclass(frozen=True, kw_only=True)
class BudgetSpec:
    """Limits of a sweep over all sessions; the first limit reached counts.

    Attributes:
        trials: Number of trials of the search, with any outcome.
        wall_clock_s: Duration of the sweep's sessions in seconds.
        gpu_seconds: Running time of hosts in seconds, multiplied by their GPUs.
        cpu_seconds: Running time of hosts in seconds, multiplied by their CPU cores.
        money: Amount in the currency of `price_per_gpu_hour`.
        price_per_gpu_hour: Price of one GPU for one hour.
        finals_fraction: Part of every limit except `trials` that the search leaves to the finals.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    trials: int
    wall_clock_s: float | None = None
    gpu_seconds: float | None = None
    cpu_seconds: float | None = None
    money: float | None = None
    price_per_gpu_hour: float | None = None
    finals_fraction: float = 0.2

    def __post_init__(self) -> None:
        require(self.trials >= 1, "budget.trials", self.trials, ">= 1", "Allow one trial.")
        for name in _LIMITS:
            limit = getattr(self, name)
            require(
                limit is None or (math.isfinite(limit) and limit > 0),
                f"budget.{name}",
                limit,
                "a finite number > 0",
                "Leave it out for no limit.",
            )
        require(
            self.money is None or self.price_per_gpu_hour is not None,
            "budget.price_per_gpu_hour",
            self.price_per_gpu_hour,
            "a price, with budget.money",
            "Give the price of one GPU for one hour.",
        )
        require(
            0 <= self.finals_fraction < 1,
            "budget.finals_fraction",
            self.finals_fraction,
            "0 <= fraction < 1",
            "Use 0.2.",
        )


_LIMITS = ("wall_clock_s", "gpu_seconds", "cpu_seconds", "money", "price_per_gpu_hour")


def require_slug(where: str, name: str) -> None:
    """Refuse a name that is not valid as folder, registered model and Kubernetes label."""
    slug = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:63]
    require(
        _SLUG.fullmatch(name) is not None,
        where,
        name,
        "1 to 63 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit",
        f"Use {slug}." if slug else "Choose a short lower-case name.",
    )
