"""Sweeps that are never run: what a search or the finals are asked about."""

from __future__ import annotations

from typing import Any

from orchestrator.spec.finals_sections import FinalsSpec
from orchestrator.spec.sections import ScheduleSpec
from orchestrator.spec.sweep import BudgetSpec, SweepSpec
from trainables.spec import BaseSpec, DataSpec, EvalSpec, OptimSpec

SWEEP_VALUES: dict[str, Any] = {
    "name": "tiny",
    "base": {"model": "owner/name"},
    "data": {"train": "owner/rows"},
    "optim": {"steps": 20},
    "eval": {"every": 10},
    "space": {"lora.rank": {"choice": [2, 4]}},
    "budget": {"trials": 2},
}
"""A small sweep file on a hub base and hub rows, as plain values."""

POPULATION_SPACE = {
    "base.quantization": {"choice": ["nf4", "fp4"]},
    "lora.rank": {"choice": [4, 8]},
    "lora.dropout": {"uniform": [0.0, 0.1]},
    "optim.learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "optim.warmup_steps": {"int": [0, 40]},
    "optim.schedule": {"choice": ["constant", "linear", "cosine"]},
    "optim.batch_size": {"choice": [4, 8]},
    "optim.beta1": {"choice": [0.9]},
}


def build_sweep(**fields: Any) -> SweepSpec:
    """A sweep on a hub base and hub rows, evaluated every 10 steps."""
    common = {
        "name": "tiny",
        "base": BaseSpec(model="owner/name"),
        "data": DataSpec(train="owner/rows"),
        "eval": EvalSpec(every=10),
    }
    return SweepSpec(**{**common, **fields})


def build_population_sweep(
    space: Any = POPULATION_SPACE, trials: int = 16, **changes: Any
) -> SweepSpec:
    """A sweep of population-based training over 80 steps."""
    fields = {
        "optim": OptimSpec(steps=80),
        "budget": BudgetSpec(trials=trials),
        "schedule": ScheduleSpec(algorithm="pbt"),
        "space": space,
    }
    return build_sweep(**{**fields, **changes})


def build_finals_sweep(**changes: Any) -> SweepSpec:
    """A sweep whose two best trials are trained again with two seeds."""
    fields = {
        "optim": OptimSpec(steps=20),
        "budget": BudgetSpec(trials=9),
        "space": {"lora.rank": {"choice": [2, 4, 8, 16]}},
        "finals": FinalsSpec(top=2, seeds=2),
    }
    return build_sweep(**{**fields, **changes})
