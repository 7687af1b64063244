"""Configurations of a space that differ in memory, by base form: what shares a host is a group."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from orchestrator.spec.sweep import SweepSpec, build_trial
from trainables.spec import BaseSpec, TrialSpec

MOST_LISTED = 2000
"""Configurations that are looked at; of a larger space, a sample with the ends of its ranges."""


def configurations(spec: SweepSpec) -> tuple[list[TrialSpec], bool]:
    """Trials of the space, and whether they are all of them.

    A sample draws each number at one end of its range in two of three cases, since memory is
    largest and smallest there.
    """
    space = spec.search_space
    if space.is_short and (space.size or 0) <= MOST_LISTED:
        found = [build_trial(spec, knobs) for knobs in space.configurations()]
        return found, True
    drawn = random.Random(spec.seed)
    trials = []
    for knobs in itertools.islice(_draws(spec, drawn), MOST_LISTED):
        if not space.refuse(knobs):
            trials.append(build_trial(spec, knobs))
    return trials, False


def _draws(spec: SweepSpec, drawn: random.Random) -> Iterator[dict[str, Any]]:
    def draw(_: str, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, CategoricalDistribution):
            return drawn.choice(distribution.choices)
        low, high = distribution.low, distribution.high
        middle = drawn.uniform(low, high)
        whole = isinstance(low, int)
        return drawn.choice((low, high, round(middle) if whole else middle))

    while True:
        yield spec.search_space.suggest(draw)


def by_group(trials: list[TrialSpec]) -> dict[BaseSpec, list[TrialSpec]]:
    """Trials by base form; trials of a group share hosts."""
    groups: dict[BaseSpec, list[TrialSpec]] = {}
    for trial in trials:
        groups.setdefault(form_of_group(trial.base), []).append(trial)
    return groups


def form_of_group(base: BaseSpec) -> BaseSpec:
    """The base as hosts tell groups apart: double quantization counts in 4 bits alone."""
    is_4bit = base.quantization in ("nf4", "fp4")
    return base if is_4bit else dataclasses.replace(base, double_quant=False)


def signature(trial: TrialSpec) -> tuple[object, ...]:
    """What of a trial its memory depends on."""
    return (
        form_of_group(trial.base),
        trial.lora.rank,
        trial.lora.targets,
        trial.lora.dropout > 0,
        trial.lora.dora,
        trial.optim.batch_size,
        trial.optim.micro_batch_size,
        trial.optim.max_tokens_per_pass,
        trial.optim.gradient_checkpointing,
        trial.optim.optimizer,
        trial.data.max_tokens,
        trial.data.train_max_tokens,
        trial.eval.batch_size,
    )


def count(spec: SweepSpec) -> dict[str, int | None]:
    """Number of all configurations and of the valid ones; `None` where it is infinite or huge."""
    space = spec.search_space
    if not space.is_short:
        return {"all": None, "valid": None}
    whole = sum(1 for _ in space.expand(space.order))
    return {"all": whole, "valid": space.size}
