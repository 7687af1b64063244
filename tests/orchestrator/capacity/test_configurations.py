"""What of a space is looked at: all of a small one, the ends of a large one."""

from orchestrator.capacity.configurations import by_group, configurations, count, signature
from orchestrator.spec.sections import BudgetSpec
from tests.support.sweeps import build_sweep
from trainables.spec import BaseSpec, OptimSpec

FIXED = {"optim": OptimSpec(steps=20), "budget": BudgetSpec(trials=4)}


def test_a_small_space_is_listed_whole_without_what_is_forbidden():
    spec = build_sweep(
        space={
            "base.quantization": {"choice": ["nf4", "none"]},
            "lora.rank": {"choice": [2, 4, 8]},
        },
        forbid=({"lora.rank": 8, "base.quantization": "none"},),
        **FIXED,
    )
    trials, is_whole = configurations(spec)
    assert is_whole
    assert {(one.base.quantization, one.lora.rank) for one in trials} == {
        ("nf4", 2), ("nf4", 4), ("nf4", 8), ("none", 2), ("none", 4),
    }  # fmt: skip
    assert count(spec) == {"all": 6, "valid": 5}
    groups = by_group(trials)
    assert {base.quantization: len(found) for base, found in groups.items()} == {
        "nf4": 3,
        "none": 2,
    }


def test_a_range_is_sampled_with_its_ends_and_the_same_each_time():
    spec = build_sweep(
        space={"lora.rank": {"int": [1, 64]}, "lora.dropout": {"uniform": [0.0, 0.5]}}, **FIXED
    )
    trials, is_whole = configurations(spec)
    assert not is_whole
    assert count(spec) == {"all": None, "valid": None}
    assert {1, 64} < {one.lora.rank for one in trials}
    assert trials == configurations(spec)[0]


def test_double_quantization_makes_a_group_in_4_bits_alone():
    spec = build_sweep(
        base=BaseSpec(model="owner/name", quantization="int8"),
        space={"base.double_quant": {"choice": [True, False]}},
        **FIXED,
    )
    trials, _ = configurations(spec)
    assert len(trials) == 2
    assert len(by_group(trials)) == 1
    assert signature(trials[0]) == signature(trials[1])
