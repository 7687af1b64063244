"""Sweeps of population-based training that cannot work are refused."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.spec.population import changeable_knobs
from orchestrator.spec.sections import ScheduleSpec
from orchestrator.spec.space import SearchSpace
from tests.support.sweeps import build_population_sweep as build_sweep
from trainables.spec import EvalSpec, OptimSpec


def space_of(written: Any) -> SearchSpace:
    return build_sweep(written).search_space


def test_a_knob_that_decides_on_others_stays() -> None:
    space = space_of(
        {
            "lora.rank": {"choice": [4, 8], "when": {"optim.schedule": ["linear"]}},
            "optim.schedule": {"choice": ["constant", "linear"]},
            "optim.learning_rate": {"log_uniform": [1e-4, 1e-2]},
            "optim.weight_decay": {"uniform": [0.0, 0.1]},
            "lora.alpha": {"tied": "16 + optim.weight_decay"},
        }
    )
    assert changeable_knobs(space) == ["optim.learning_rate"]


def test_a_sweep_that_can_be_trained_so_is_not_refused() -> None:
    assert build_sweep().schedule.algorithm == "pbt"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"space": {"lora.rank": {"choice": [4, 8]}, "optim.batch_size": {"choice": [4, 8]}}},
            r"schedule\.algorithm: got 'pbt'; .* pbt needs a knob of optim .* lora\.dropout",
            id="knobs",
        ),
        pytest.param(
            {"schedule": ScheduleSpec(algorithm="pbt", grace_steps=30)},
            r"schedule\.grace_steps: got 30; allowed: up to 20 for pbt, .* Use 20\.",
            id="rungs",
        ),
        pytest.param(
            {"eval": EvalSpec(every=40)},
            r"schedule\.grace_steps: got 40; .* at least 3 evaluations .* Lower eval\.every",
            id="evaluations",
        ),
        pytest.param({"trials": 4}, r"budget\.trials: got 4; allowed: more than 4", id="budget"),
        pytest.param(
            {"schedule": ScheduleSpec(algorithm="pbt", population=16)},
            r"schedule\.population: got 16; allowed: 4 to 15",
            id="no room for copies",
        ),
        pytest.param(
            {"schedule": ScheduleSpec(algorithm="pbt", population=3)},
            r"schedule\.population: got 3; allowed: 4 to 15",
            id="too few to compare",
        ),
    ],
)
def test_a_sweep_without_knobs_rungs_or_room_is_refused(changes, message) -> None:
    with pytest.raises(SweepSpecError, match=message):
        build_sweep(**changes)


def test_rungs_are_counted_before_the_horizon() -> None:
    spec = build_sweep()
    assert spec.schedule.grace_steps == 20
    with pytest.raises(SweepSpecError, match=r"before optim\.steps"):
        replace(spec, optim=OptimSpec(steps=60))
