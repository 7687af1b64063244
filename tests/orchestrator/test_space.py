"""Which knobs a space may hold, and how they become trials."""

from typing import Any

import optuna
import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.space import build_trial, describe, searched_names
from orchestrator.spec import BudgetSpec, SweepSpec
from trainables.spec import BaseSpec, DataSpec, OptimSpec, TrialSpec


def build_sweep(space: dict[str, Any], **optim: Any) -> SweepSpec:
    return SweepSpec(
        name="tiny",
        base=BaseSpec(model="owner/name"),
        data=DataSpec(train="owner/rows"),
        optim=OptimSpec(steps=40, **optim),
        budget=BudgetSpec(trials=4),
        space=space,
        seed=3,
    )


WIDE = {
    "base.quantization": {"choice": ["nf4", "fp4"]},
    "lora.rank": {"log_int": [4, 32]},
    "lora.alpha_per_rank": {"choice": [1, "2"]},
    "lora.targets": {"choice": ["attention", ["v_proj", "q_proj"]]},
    "lora.dropout": {"uniform": [0, 0.5]},
    "lora.rslora": {"choice": [True, False]},
    "optim.learning_rate": {"log_uniform": ["1e-4", 1e-2]},
    "optim.warmup_steps": {"int": [0, 40]},
    "optim.weight_decay": {"int": [0, 3]},
    "optim.micro_batch_size": {"choice": [None, 4]},
}


def test_every_suggestion_of_a_wide_space_is_a_trial() -> None:
    spec = build_sweep(WIDE)
    space = spec.search_space
    assert space.size is None
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        params = study.ask(space.distributions()).params
        knobs = space.decode(params)
        assert space.encode(knobs) == params
        trial = build_trial(spec, knobs)
        assert trial.lora.alpha == trial.lora.rank * knobs["lora.alpha_per_rank"]
        assert 4 <= trial.lora.rank <= 32
        assert isinstance(trial.optim.weight_decay, float)
        assert trial.lora.targets in ("attention", ("q_proj", "v_proj"))
        assert TrialSpec.from_dict(trial.to_dict()) == trial


def test_knobs_replace_fixed_settings_and_nothing_else() -> None:
    spec = build_sweep({"lora.rank": {"choice": [4, 8]}}, learning_rate=1e-3)
    trial = build_trial(spec, {"lora.rank": 4})
    assert trial.lora.rank == 4
    assert (trial.optim, trial.base, trial.data, trial.seed) == (
        spec.optim,
        spec.base,
        spec.data,
        spec.seed,
    )


def test_alpha_per_rank_takes_a_fixed_rank_too() -> None:
    spec = build_sweep({"lora.alpha_per_rank": {"choice": [4]}})
    assert build_trial(spec, {"lora.alpha_per_rank": 4.0}).lora.alpha == 4 * spec.lora.rank


def test_description_is_flat_with_readable_names() -> None:
    spec = build_sweep(WIDE)
    knobs = {"lora.targets": ["q_proj", "v_proj"], "lora.rank": 16, "lora.alpha_per_rank": 2.0}
    flat = describe(build_trial(spec, knobs | {"base.quantization": "fp4"}))
    assert flat["lora.targets"] == "q_proj+v_proj"
    assert (flat["lora.alpha"], flat["quantization"], flat["base"]) == (32.0, "fp4", "owner/name")
    assert all(not isinstance(value, list | tuple | dict) for value in flat.values())
    assert set(searched_names(spec.search_space)) <= flat.keys()


def test_finite_space_lists_each_configuration_once() -> None:
    spec = build_sweep({"lora.rank": {"int": [1, 3]}, "lora.rslora": {"choice": [True, False]}})
    listed = list(spec.search_space.configurations())
    assert spec.search_space.size == len(listed) == 6
    assert len({tuple(each.items()) for each in listed}) == 6


@pytest.mark.parametrize(
    ("knob", "written", "parts"),
    [
        ("lora.rank", {"choice": [0]}, ["got 0", "1 to 1024"]),
        ("lora.rank", {"choice": [8, "x"]}, ["'x'", "a whole number"]),
        ("lora.rank", {"choice": [8, True]}, ["True", "Give a number"]),
        ("lora.rank", {"choice": [8, 8.0]}, ["8.0", "each choice once"]),
        ("lora.rank", {"choice": []}, ["[]", "a list of values"]),
        ("lora.rank", {"choice": 8}, ["8", "a list of values", "brackets"]),
        ("lora.rank", {"int": [0, 8]}, ["got 0", "1 to 1024"]),
        ("lora.rank", {"int": [4, 2000]}, ["got 2000", "1 to 1024"]),
        ("lora.rank", {"int": [4.5, 8]}, ["4.5", "a whole number"]),
        ("lora.rank", {"uniform": [4, 8]}, ["'uniform'", "choice, int, log_int"]),
        ("lora.rank", [4, 8], ["[4, 8]", "one distribution", "{choice: [a, b]}"]),
        ("lora.rank", {"chioce": [4]}, ["'chioce'", "Did you mean choice?"]),
        ("lora.rank", {"choice": [4], "int": [1, 2]}, ["one distribution"]),
        ("lora.targets", {"uniform": [0, 1]}, ["'uniform'", "allowed: choice."]),
        ("lora.targets", {"choice": ["atention"]}, ["'atention'", "all-linear"]),
        ("lora.targets", {"choice": [["a", "b"], ["b", "a"]]}, ["each choice once"]),
        ("lora.targets", {"choice": [[]]}, ["at least one layer name"]),
        ("lora.alpha_per_rank", {"choice": [-1]}, ["-1.0", "lora.alpha", "> 0"]),
        ("optim.learning_rate", {"log_uniform": [0, 1]}, ["got 0", "low bound > 0"]),
        ("optim.learning_rate", {"uniform": [2, 1]}, ["[2, 1]", "low < high"]),
        ("optim.learning_rate", {"uniform": [1]}, ["[1]", "[low, high]"]),
        ("optim.learning_rate", {"uniform": [1, "x"]}, ["'x'", "a finite number"]),
        ("optim.learning_rate", {"uniform": [1, float("inf")]}, ["inf", "finite numbers"]),
        ("optim.learning_rate", {"choice": [1e-3, float("nan")]}, ["nan", "finite"]),
        ("optim.micro_batch_size", {"choice": [3]}, ["got 3", "optim.batch_size (8)"]),
        ("base.quantization", {"choice": ["nf5"]}, ["'nf5'", "'nf4'", "Choose one"]),
        ("optim.steps", {"choice": [10]}, ["one horizon", "outside of `space`"]),
        ("data.max_tokens", {"choice": [10]}, ["same data", "outside of `space`"]),
        ("eval.every", {"choice": [10]}, ["measured the same way", "outside of `space`"]),
        ("seed", {"int": [-1, 2]}, ["got -1", "0 to 4294967295"]),
        ("seed", -1, ["got -1", "0 to 4294967295"]),
        ("lora.rank", 0, ["got 0", "1 to 1024"]),
        ("lora.rank", "many", ["'many'", "a whole number"]),
        ("lora.targets", "atention", ["'atention'", "all-linear"]),
        ("optim.micro_batch_size", 3, ["got 3", "optim.batch_size (8)"]),
        ("data.train_max_tokens", {"choice": [1]}, ["got 1", "data.max_tokens (512)"]),
        ("lora.rank", {"tide": "8"}, ["'tide'", "Did you mean tied?"]),
        ("lora.rank", {"tied": "8", "when": {"lora.rslora": True}}, ["one distribution"]),
        ("lora.rank", {"when": {"lora.rslora": True}}, ["one distribution"]),
        ("optim.lr", {"choice": [1]}, ["unknown key", "Did you mean optim.learning_rate?"]),
        ("rank", {"choice": [1]}, ["unknown key", "Did you mean lora.rank?"]),
    ],
)
def test_bad_knob_fails_before_anything_starts(knob: str, written: Any, parts: list[str]) -> None:
    with pytest.raises(SweepSpecError) as caught:
        build_sweep({knob: written})
    message = str(caught.value)
    assert message.startswith(f"space.{knob}: ")
    assert [part for part in parts if part not in message] == []


def test_alpha_is_searched_in_one_way() -> None:
    both = {"lora.alpha": {"choice": [8]}, "lora.alpha_per_rank": {"choice": [1]}}
    with pytest.raises(SweepSpecError, match="Remove one of the two knobs"):
        build_sweep(both)
