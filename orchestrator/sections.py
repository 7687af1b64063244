"""The sections of a sweep file that are the sweep's own: how it searches, stops, spends and keeps.

Those that describe a trial (`base`, `lora`, `optim`, `data`, `eval`) are in `trainables.spec`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

from orchestrator.complaint import require

Metric = Literal["eval_loss", "eval_accuracy", "eval_token_accuracy", "train_loss"]
Mode = Literal["min", "max"]
Algorithm = Literal["tpe", "random", "grid"]
EarlyStop = Literal["asha", "none"]

_STRICT: dict[str, Any] = {"extra": "forbid"}
_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """What trials are compared by.

    Attributes:
        metric: One of the metrics every report of a trial holds.
        mode: Direction of better; left out, `min` for a loss and `max` for an accuracy.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    metric: Metric = "eval_loss"
    mode: Mode = field(default=cast("Mode", None))

    def __post_init__(self) -> None:
        fitting: Mode = "min" if self.metric.endswith("loss") else "max"
        if cast("Mode | None", self.mode) is None:
            object.__setattr__(self, "mode", fitting)
        require(
            self.mode == fitting,
            "objective.mode",
            self.mode,
            f"{fitting} for {self.metric}",
            "Leave it out.",
        )


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """How configurations are chosen.

    Attributes:
        algorithm: `tpe` learns from the trials so far, `random` does not, `grid` tries every
            combination of a space of choices in a shuffled order.
        startup_trials: Random trials before `tpe` starts to learn.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    algorithm: Algorithm = "tpe"
    startup_trials: int = 8

    def __post_init__(self) -> None:
        require(
            self.startup_trials >= 1,
            "search.startup_trials",
            self.startup_trials,
            ">= 1",
            "Let at least one trial be random.",
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """When a trial is stopped early.

    Attributes:
        algorithm: `asha` (arXiv:1810.05934) stops a trial at a rung where it is not among the
            best `1 / reduction_factor` of those that came there; `none` never does.
        grace_steps: The first rung, a multiple of `eval.every`; 0 takes a quarter of
            `optim.steps`.
        reduction_factor: Ratio of a rung's steps to the one before. At least 2, so that every
            rung has a report of its own.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    algorithm: EarlyStop = "asha"
    grace_steps: int = 0
    reduction_factor: float = 2.0

    def __post_init__(self) -> None:
        require(
            math.isfinite(self.reduction_factor) and self.reduction_factor >= 2,
            "schedule.reduction_factor",
            self.reduction_factor,
            "a number >= 2",
            "Use 2, 3 or 4.",
        )


@dataclass(frozen=True, kw_only=True)
class BudgetSpec:
    """How much a sweep may spend.

    Attributes:
        trials: Trials started, whatever their end.
        wall_clock_s: Seconds from start or resume until running trials are told to end.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    trials: int
    wall_clock_s: float | None = None

    def __post_init__(self) -> None:
        require(self.trials >= 1, "budget.trials", self.trials, ">= 1", "Allow one trial.")
        seconds = self.wall_clock_s
        require(
            seconds is None or (math.isfinite(seconds) and seconds > 0),
            "budget.wall_clock_s",
            seconds,
            "a finite number of seconds > 0",
            "Leave it out for no limit.",
        )


@dataclass(frozen=True, kw_only=True)
class HostsSpec:
    """Where trials are trained.

    Attributes:
        seats: Trials that one host trains at once.
        fresh: Start a new host for every trial instead of keeping warm ones.
        max_failures: Times a host's worker is started anew before the host is given up. It takes
            three to tell a trial that kills its host from the neighbours that only die with it.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    seats: int = 1
    fresh: bool = False
    max_failures: int = 5

    def __post_init__(self) -> None:
        require(1 <= self.seats <= 256, "hosts.seats", self.seats, "1 to 256", "Use 1 or more.")
        require(
            self.max_failures >= 0,
            "hosts.max_failures",
            self.max_failures,
            ">= 0",
            "Use 0 to give up at the first loss.",
        )


@dataclass(frozen=True, kw_only=True)
class RegisterSpec:
    """What happens to the best adapters; without it nothing is registered.

    Attributes:
        name: Registered model that the versions belong to; left out, the sweep's name.
        top: How many adapters are evaluated on test rows and registered.
        promote: Put the best one before the promotion gate.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str = ""
    top: int = 1
    promote: bool = True

    def __post_init__(self) -> None:
        require(self.top >= 1, "register.top", self.top, ">= 1", "Register at least the best.")
        if self.name:
            require_slug("register.name", self.name)


def require_slug(where: str, name: str) -> None:
    """Refuse a name that cannot be a folder, a registered model and a Kubernetes label at once."""
    slug = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:63]
    require(
        _SLUG.fullmatch(name) is not None,
        where,
        name,
        "1 to 63 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit",
        f"Use {slug}." if slug else "Choose a short lower-case name.",
    )
