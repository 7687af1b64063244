"""First configurations of a sweep: points of the user, a prior for the base's width, past winners.

A start point sets some or all knobs of the space; the other knobs are drawn. The list is made
once, when a sweep starts. Trial 0 gets the first point, trial 1 the second, and so on: a resumed
sweep continues with the next point, even if the registry has changed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.errors import SweepSpecError
from orchestrator.search.study import key_of
from orchestrator.spec.distributions import Choice, Distribution, Range
from orchestrator.spec.settings import ALPHA_PER_RANK
from orchestrator.spec.space import SearchSpace
from orchestrator.spec.sweep import SweepSpec
from trainables.base.shape import hidden_size
from trainables.spec import BaseSpec

_RATE = "optim.learning_rate"
_FULL_RATE, _LORA_FACTOR, _WIDTH, _POWER = 5e-5, 10.0, 2000, 0.43
"""The learning rate for LoRA is 5e-5 * 10 * (2000 / hidden size) ^ p. In the published fit, p is
0.78 for Llama and 0.08 for Qwen; the mean, 0.43, is used for all bases."""

_WARM_POINTS = 3

ReadVersions = Callable[[str], Sequence[Mapping[str, Any]]]
"""Trial specs of a registered model's versions as plain values, the best first."""


def choose_start_points(
    spec: SweepSpec,
    read_versions: ReadVersions | None = None,
    read_width: Callable[[BaseSpec], int | None] = hidden_size,
) -> list[dict[str, Any]]:
    """All start points of a sweep: from the user, the learning-rate prior, and past versions.

    Args:
        spec: The sweep.
        read_versions: Reads the versions of `search.warm_start`; needed only with that setting.
        read_width: Hidden size of a base; `None` if unknown.

    Raises:
        SweepSpecError: A start point of the user is outside of the space.
    """
    space = spec.search_space
    points = [
        space.settle(point, f"search.start[{index}]")
        for index, point in enumerate(spec.search.start)
    ]
    if spec.search.prior:
        points += prior_points(spec, read_width)
    if spec.search.warm_start and read_versions is not None:
        points += warm_points(space, read_versions(spec.search.warm_start))
    return list({key_of(point): point for point in points if point}.values())


def prior_points(
    spec: SweepSpec, read_width: Callable[[BaseSpec], int | None]
) -> list[dict[str, Any]]:
    """A point with the middle of every range and the usual learning rate for the base's width.

    Empty if the learning rate is not searched in a range, or the width is unknown.
    """
    knobs = spec.search_space.knobs
    rate = knobs.get(_RATE)
    width = read_width(spec.base) if isinstance(rate, Range) else None
    if width is None or not isinstance(rate, Range):
        return []
    middles = {
        name: middle for name, knob in knobs.items() if (middle := _middle(knob)) is not None
    }
    return [middles | {_RATE: min(max(usual_rate(width), rate.low), rate.high)}]


def usual_rate(width: int) -> float:
    """First guess of LoRA's learning rate for a base of this hidden size.

    Best learning rates of bases differ by a factor of ten, while the variants of LoRA perform
    alike at their best rate (arXiv:2602.04998): a first guess matters most for this knob.
    """
    scale: float = (_WIDTH / width) ** _POWER
    return _FULL_RATE * _LORA_FACTOR * scale


def warm_points(space: SearchSpace, versions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The knobs of past versions, without settings outside of the space."""
    points: dict[str, dict[str, Any]] = {}
    for version in versions:
        point: dict[str, Any] = {}
        for name in space.knobs:
            value = _setting(version, name)
            if value is not None:
                with contextlib.suppress(SweepSpecError):  # outside of this space
                    point |= space.settle({name: value})
        point = space.settle(point)
        if point:
            points.setdefault(key_of(point), point)
    return list(points.values())[:_WARM_POINTS]


def _middle(knob: Distribution) -> Any:
    """The middle of a range or of a choice of numbers; `None` for other choices."""
    if isinstance(knob, Choice):
        are_numbers = all(
            isinstance(one, int | float) and not isinstance(one, bool) for one in knob.values
        )
        return sorted(knob.values)[(len(knob.values) - 1) // 2] if are_numbers else None
    middle = math.sqrt(knob.low * knob.high) if knob.is_log else (knob.low + knob.high) / 2
    return knob.decode(round(middle) if knob.is_whole else middle)


def _setting(trial: Mapping[str, Any], name: str) -> Any:
    """One dotted setting of a trial, or `None`."""
    if name == ALPHA_PER_RANK:
        alpha, rank = _setting(trial, "lora.alpha"), _setting(trial, "lora.rank")
        return alpha / rank if alpha is not None and rank else None
    section, _, field = name.partition(".")
    return trial.get(section, {}).get(field) if field else trial.get(section)
