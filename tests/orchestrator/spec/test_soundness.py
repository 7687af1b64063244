"""Values that work in no configuration are refused before the start; other values stay."""

from typing import Any

import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.spec.sweep import BudgetSpec, SweepSpec
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec


def build_sweep(space: dict[str, Any], *forbid: dict[str, Any], **lora: Any) -> SweepSpec:
    return SweepSpec(
        name="tiny",
        base=BaseSpec(model="owner/name"),
        data=DataSpec(train="owner/rows"),
        lora=LoraSpec(**lora),
        optim=OptimSpec(steps=40),
        budget=BudgetSpec(trials=4 if space else 1),
        space=space,
        forbid=forbid,
    )


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (
            {
                "optim.batch_size": {"choice": [16, 32]},
                "optim.micro_batch_size": {"choice": [16, 32]},
            },
            3,
        ),
        ({"lora.init": {"choice": ["kaiming", "orthogonal"]}, "lora.rank": {"int": [3, 4]}}, 3),
        (
            {
                "lora.dora": {"choice": [True, False]},
                "base.quantization": {"choice": ["nf4", "int8"]},
            },
            3,
        ),
        # Works with one of 512 values of the other knob only.
        (
            {
                "optim.micro_batch_size": {"choice": [1, 509]},
                "optim.batch_size": {"int": [1, 512]},
            },
            513,
        ),
    ],
)
def test_impossible_combination_of_sound_values_is_left_out(
    space: dict[str, Any], size: int
) -> None:
    assert build_sweep(space).search_space.size == size


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {
                "optim.batch_size": {"choice": [16, 32]},
                "optim.micro_batch_size": {"choice": [8, 3]},
            },
            r"^space\.optim\.micro_batch_size: got 3; allowed: a divisor",
        ),
        (
            {"lora.init": {"choice": ["kaiming", "orthogonal"]}, "lora.rank": {"choice": [3, 5]}},
            r"^space\.lora\.init: with lora\.init 'orthogonal': lora\.rank: got 7; .*even rank",
        ),
        (
            {
                "base.quantization": {"choice": ["nf4", "int8"]},
                "lora.dora": {"choice": [True, False], "when": {"base.quantization": "int8"}},
            },
            r"^space\.lora\.dora: got True; allowed: false with base\.quantization int8",
        ),
    ],
)
def test_value_that_works_nowhere_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(SweepSpecError, match=message):
        build_sweep(space, rank=7)


def test_fixed_settings_that_only_searched_values_replace_may_be_anything() -> None:
    # The fixed rank would make alpha negative; no trial has it.
    space = {"lora.rank": {"choice": [32, 64]}, "lora.alpha": {"tied": "lora.rank - 16"}}
    assert build_sweep(space).search_space.size == 2


def test_fixed_settings_alone_are_tried_too() -> None:
    with pytest.raises(SweepSpecError, match=r"^lora\.dora: got True; allowed: false with"):
        SweepSpec(
            name="tiny",
            base=BaseSpec(model="owner/name", quantization="int8"),
            data=DataSpec(train="owner/rows"),
            lora=LoraSpec(dora=True),
            optim=OptimSpec(steps=40),
            budget=BudgetSpec(trials=1),
        )


def test_knob_that_is_never_active_is_refused() -> None:
    space = {
        "lora.rank": {"choice": [4, 8]},
        "lora.rslora": {"choice": [True, False], "when": {"lora.rank": 4}},
        "seed": {"int": [0, 9], "when": {"lora.rank": 8, "lora.rslora": True}},
    }
    with pytest.raises(SweepSpecError, match=r"^space\.seed\.when: got .*together"):
        build_sweep(space)


def test_values_are_tried_where_their_knob_is_active() -> None:
    space = {
        "lora.rank": {"choice": [4, 8]},
        "lora.rslora": {"choice": [True, False], "when": {"lora.rank": 8}},
        "lora.dropout": {"choice": [0.1, 1.0], "when": {"lora.rslora": False}},
    }
    with pytest.raises(SweepSpecError, match=r"^space\.lora\.dropout: got 1\.0; allowed: 0 <= p"):
        build_sweep(space)


def test_rules_that_leave_nothing_are_refused() -> None:
    space = {"lora.rank": {"choice": [4, 8]}, "lora.dropout": {"choice": [0.0, 0.1]}}
    build_sweep(space, {"lora.rank": 4}, {"lora.dropout": 0.0})
    with pytest.raises(SweepSpecError, match=r"^forbid: got \['lora\.rank 4 or 8'\]; .*Remove"):
        build_sweep(space, {"lora.rank": [4, 8]})
    with pytest.raises(SweepSpecError, match=r"^forbid: got "):
        build_sweep({}, {"lora.rank": 7}, rank=7)
    with pytest.raises(SweepSpecError, match=r"^forbid: got "):
        build_sweep(space | {"lora.alpha": {"uniform": [1, 2]}}, {"lora.rank": [4, 8]})


def test_space_without_a_working_combination_is_refused() -> None:
    # Each works with the fixed value of the other, which no trial has.
    space = {"base.quantization": {"choice": ["int8"]}, "lora.dora": {"choice": [True]}}
    with pytest.raises(SweepSpecError, match=r"^space: no combination .* lora\.dora: got True;"):
        build_sweep(space)
