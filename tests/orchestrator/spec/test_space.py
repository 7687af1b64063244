"""Knobs of a space, and trials from knobs."""

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import optuna
import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.spec.space import (
    MAX_LISTED,
    SearchSpace,
    describe,
    searched_names,
)
from orchestrator.spec.sweep import BudgetSpec, SweepSpec, build_trial, parse_sweep
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec


def build_sweep(
    space: dict[str, Any],
    *forbid: dict[str, Any],
    lora: dict[str, Any] | None = None,
    **optim: Any,
) -> SweepSpec:
    return SweepSpec(
        lora=LoraSpec(**lora or {}),
        forbid=forbid,
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


FULL = {
    "lora.dropout": {"uniform": [0.0, 0.1], "when": {"lora.rank": 16}},
    "lora.rank": {"choice": [4, 8, 16]},
    "lora.alpha": {"tied": "2 * lora.rank"},
    "optim.warmup_steps": {"tied": "min(optim.steps / 10, lora.alpha)"},
    "base.quantization": {"choice": ["nf4", "fp4", "int8", "none"]},
    "base.double_quant": {
        "choice": [True, False],
        "when": {"base.quantization": ["nf4", "fp4"]},
    },
    "lora.dora": {"choice": [True, False]},
    "lora.rslora": {"choice": [True, False], "when": {"base.double_quant": False}},
    "seed": {"int": [0, 9]},
    "data.train_max_tokens": {"choice": [64, 128]},
    "optim.batch_size": 16,
}
FORBID = (
    {"lora.rank": 16, "base.quantization": ["int8", "none"]},
    {"lora.alpha": 8, "seed": [1, 2, 3]},
    {"lora.rslora": False, "seed": 0},
)
FINITE = {name: written for name, written in FULL.items() if name != "lora.dropout"}


def drawn(space: SearchSpace, count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
        trial = study.ask()
        knobs = space.suggest(trial._suggest)
        assert trial.params == space.encode(knobs)
        yield knobs


def test_suggestions_of_a_space_with_conditions_are_what_it_says() -> None:
    space = build_sweep(FULL, *FORBID).search_space
    refused = 0
    for knobs in drawn(space, 300):
        assert list(knobs) == space.active(knobs) == list(space.distributions(knobs))
        assert [name for name in space.knobs if name in knobs] == list(knobs)
        assert ("lora.dropout" in knobs) == (knobs["lora.rank"] == 16)
        assert ("base.double_quant" in knobs) == (knobs["base.quantization"] in ("nf4", "fp4"))
        assert ("lora.rslora" in knobs) == (knobs.get("base.double_quant") is False)
        assert all(space.knobs[name].holds(value) for name, value in knobs.items())
        assert space.decode(space.encode(knobs)) == knobs == space.settle(knobs)
        refused += bool(space.refuse(knobs))
    assert 0 < refused < 300


def test_trials_have_tied_settings_and_the_fixed_ones_of_inactive_knobs() -> None:
    spec = build_sweep(FULL, *FORBID, lora={"dropout": 0.3, "rslora": True})
    for knobs in drawn(spec.search_space, 100):
        if spec.search_space.refuse(knobs):
            continue
        trial = build_trial(spec, knobs)
        assert trial.lora.alpha == 2 * trial.lora.rank
        assert trial.optim.warmup_steps == 4
        assert (trial.optim.batch_size, spec.optim.batch_size) == (16, 16)
        assert trial.lora.dropout == knobs.get("lora.dropout", 0.3)
        assert trial.lora.rslora == knobs.get("lora.rslora", True)
        assert (trial.seed, trial.data.train_max_tokens) == (
            knobs["seed"],
            knobs["data.train_max_tokens"],
        )
        # What is not active in a configuration does not count, even if it is given.
        assert (
            build_trial(spec, {"lora.dropout": 0.09, **knobs}) == trial or "lora.dropout" in knobs
        )


def brute_force(spec: SweepSpec) -> set[str]:
    """All configurations, from an independent implementation of the rules above."""
    found = set()
    space = spec.search_space
    for values in itertools.product(*(knob.listed() for knob in space.knobs.values())):
        knobs = dict(zip(space.knobs, values, strict=True))
        if knobs["base.quantization"] in ("int8", "none"):
            del knobs["base.double_quant"]
        if knobs.get("base.double_quant") is not False:
            del knobs["lora.rslora"]
        rank, quantization = knobs["lora.rank"], knobs["base.quantization"]
        is_forbidden = (
            (rank == 16 and quantization in ("int8", "none"))
            or (rank == 4 and knobs["seed"] in (1, 2, 3))
            or (not knobs.get("lora.rslora", False) and knobs["seed"] == 0)
            or (knobs["lora.dora"] and quantization == "int8")
        )
        if not is_forbidden:
            found.add(json.dumps(knobs, sort_keys=True))
    return found


def test_finite_space_lists_what_brute_force_finds_once() -> None:
    spec = build_sweep(FINITE, *FORBID)
    listed = [json.dumps(knobs, sort_keys=True) for knobs in spec.search_space.configurations()]
    assert len(listed) == len(set(listed)) == spec.search_space.size
    assert set(listed) == brute_force(spec)
    assert build_sweep(FULL).search_space.size is None


PARTS: dict[str, list[Any]] = {
    "lora.rank": [4, 8],
    "base.quantization": ["nf4", "fp4", "none"],
    "lora.rslora": [True, False],
    "seed": [1, 2, 3],
    "optim.schedule": ["linear", "cosine"],
    "lora.targets": ["mlp", ["q_proj", "v_proj"]],
}


FALLBACKS = {
    "lora.rank": 8,
    "base.quantization": "nf4",
    "lora.rslora": False,
    "seed": 3,
    "optim.schedule": "linear",
    "lora.targets": "all-linear",
}


def some_of(values: list[Any], generator: random.Random) -> list[Any]:
    return generator.sample(values, generator.randint(1, len(values)))


def possible(names: list[str], whens: dict[str, dict[str, list[Any]]]) -> list[dict[str, Any]]:
    """Every configuration, from all products of values; parents come first in the names."""
    found: list[dict[str, Any]] = []
    for values in itertools.product(*(PARTS[name] for name in names)):
        knobs: dict[str, Any] = {}
        for name, value in zip(names, values, strict=True):
            when = whens.get(name, {})
            if all(parent in knobs and knobs[parent] in when[parent] for parent in when):
                knobs[name] = value
        if knobs not in found:
            found.append(knobs)
    return found


def breaks(knobs: dict[str, Any], rule: dict[str, list[Any]]) -> bool:
    return all((FALLBACKS | knobs)[name] in rule[name] for name in rule)


@pytest.mark.parametrize("seed", range(60))
def test_any_finite_space_is_listed_and_suggested_as_its_rules_say(seed: int) -> None:
    generator = random.Random(seed)
    names = generator.sample(list(PARTS), generator.randint(2, len(PARTS)))
    whens = {
        name: {each: some_of(PARTS[each], generator) for each in some_of(names[:i], generator)}
        for i, name in enumerate(names)
        if i and generator.random() < 0.4
    }
    rules = [
        {name: some_of(PARTS[name], generator) for name in generator.sample(names, 2)}
        for _ in range(generator.randint(0, 2))
    ]
    everything = possible(names, whens)
    allowed = [knobs for knobs in everything if not any(breaks(knobs, rule) for rule in rules)]
    order = generator.sample(names, len(names))
    conditions = {name: {"when": whens[name]} if name in whens else {} for name in names}
    written = {name: {"choice": PARTS[name]} | conditions[name] for name in order}
    if not allowed or any(all(name not in knobs for knobs in everything) for name in names):
        with pytest.raises(SweepSpecError, match=r"^forbid: |\.when: got"):
            build_sweep(written, *rules)
        return
    space = build_sweep(written, *rules).search_space
    listed = list(space.configurations())
    assert space.size == len(listed) == len(allowed)
    assert all(knobs in listed for knobs in allowed)
    for knobs in drawn(space, 5):
        assert (knobs in allowed) == (space.refuse(knobs) == "")
        assert list(knobs) == space.active(knobs) == [name for name in order if name in knobs]


def test_space_too_large_to_list_has_no_size() -> None:
    assert build_sweep({"seed": {"int": [0, MAX_LISTED - 1]}}).search_space.is_short
    assert build_sweep({"seed": {"int": [0, MAX_LISTED]}}).search_space.size is None
    # Conditions count: most of this space is one configuration.
    rank, seed = {"choice": [4, 8]}, {"int": [0, MAX_LISTED], "when": {"lora.rank": 4}}
    assert build_sweep({"seed": seed, "lora.rank": rank}).search_space.size is None


def test_infinite_space_is_not_listed() -> None:
    with pytest.raises(ValueError, match="no list"):
        next(build_sweep(WIDE).search_space.configurations())


def test_refusal_says_which_rule_or_what_is_wrong() -> None:
    space = build_sweep(FULL, *FORBID).search_space
    knobs = {"lora.rank": 16, "base.quantization": "none", "lora.dora": False, "seed": 4}
    assert space.refuse(knobs) == (
        "forbid[0]: no trial may have lora.rank 16 with base.quantization int8 or none"
    )
    assert space.refuse(knobs | {"lora.rank": 4, "seed": 1}).startswith("forbid[1]: ")
    assert space.refuse(knobs | {"lora.rank": 8}) == ""
    impossible = knobs | {"lora.rank": 8, "lora.dora": True, "base.quantization": "int8"}
    assert space.refuse(impossible).startswith("lora.dora: got True; allowed: false with")


def test_ties_may_depend_on_ties_and_constants_are_fixed_settings() -> None:
    space = {
        "optim.warmup_steps": {"tied": "lora.alpha / 8 + eval.every"},
        "lora.alpha": {"tied": "lora.rank * optim.batch_size"},
        "lora.rank": {"tied": "seed + 1"},
        "seed": {"int": [0, 3]},
        "optim.batch_size": "4",
        "lora.targets": ["v_proj", "q_proj"],
        "optim.micro_batch_size": None,
    }
    spec = build_sweep(space)
    trial = build_trial(spec, {"seed": 3})
    assert (trial.lora.rank, trial.lora.alpha, trial.optim.warmup_steps) == (4, 16.0, 22)
    assert (spec.optim.batch_size, spec.lora.targets) == (4, ("q_proj", "v_proj"))
    assert list(spec.search_space.knobs) == ["seed"]
    assert searched_names(spec.search_space)[0] == "seed"
    assert set(searched_names(spec.search_space)) == {
        "seed", "lora.rank", "lora.alpha", "optim.warmup_steps"
    }  # fmt: skip
    assert set(searched_names(spec.search_space)) <= describe(trial).keys()


def test_alpha_per_rank_may_be_constant_or_have_a_condition() -> None:
    ranks = {"lora.rank": {"choice": [4, 8]}}
    spec = build_sweep(ranks | {"lora.alpha_per_rank": 2})
    assert build_trial(spec, {"lora.rank": 4}).lora.alpha == 8.0
    assert searched_names(spec.search_space) == ["lora.rank", "lora.alpha"]
    factor = {"choice": [1, 2], "when": {"lora.rank": 8}}
    spec = build_sweep(
        ranks | {"lora.alpha_per_rank": factor}, {"lora.alpha_per_rank": 2}, lora={"alpha": 5.0}
    )
    assert build_trial(spec, {"lora.rank": 4, "lora.alpha_per_rank": 2.0}).lora.alpha == 5.0
    assert build_trial(spec, {"lora.rank": 8, "lora.alpha_per_rank": 1.0}).lora.alpha == 8.0
    assert list(spec.search_space.configurations()) == [
        {"lora.rank": 4},
        {"lora.rank": 8, "lora.alpha_per_rank": 1.0},
    ]


def test_settling_takes_what_users_write_and_leaves_inactive_knobs_out() -> None:
    spec = build_sweep(WIDE | {"lora.rslora": {"choice": [True], "when": {"lora.rank": 4}}})
    settle = spec.search_space.settle
    written = {"optim.learning_rate": "1e-3", "lora.targets": ("v_proj", "q_proj")}
    assert settle(written) == {
        "lora.targets": ["q_proj", "v_proj"],
        "optim.learning_rate": 1e-3,
    }
    assert settle({"lora.rslora": True, "lora.rank": 5}) == {"lora.rank": 5}
    # It may still be active, when the rank is drawn.
    assert settle({"lora.rslora": True}) == {"lora.rslora": True}


@pytest.mark.parametrize(
    ("knobs", "parts"),
    [
        ({"lora.rank": 5}, ["knobs.lora.rank: got 5; allowed: 4, 8, 16.", "space.lora.rank"]),
        ({"lora.rank": "x"}, ["knobs.lora.rank: got 'x'"]),
        ({"lora.dropout": 0.2}, ["knobs.lora.dropout: got 0.2; allowed: 0 to 0.1"]),
        ({"seed": 2.5}, ["knobs.seed: got 2.5"]),
        ({"lora.rnk": 4}, ["knobs.lora.rnk: ", "did you mean lora.rank?"]),
        ({"lora.alpha": 4}, ["knobs.lora.alpha: got 4", "it is computed from others"]),
        ({"optim.steps": 4}, ["knobs.optim.steps: got 4", "it is the same in all trials"]),
    ],
)
def test_knobs_of_another_space_are_not_settled(knobs: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(SweepSpecError) as caught:
        build_sweep(FULL).search_space.settle(knobs)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_knob_of_another_space_is_not_encoded() -> None:
    with pytest.raises(KeyError, match=r"lora\.alpha"):
        build_sweep(FULL).search_space.encode({"lora.alpha": 8})


@pytest.mark.parametrize(
    ("changes", "start", "parts"),
    [
        ({"lora.alpha": {"tied": "2 * lora.rnk"}}, "space.lora.alpha", ["mean lora.rank?"]),
        (
            {"lora.alpha": {"tied": "lora.rank"}, "lora.rank": {"tied": "lora.alpha"}},
            "space.lora",
            ["lora.rank needs lora.alpha", "circle"],
        ),
        ({"lora.alpha": {"tied": "lora.alpha"}}, "space.lora.alpha.tied", ["circle"]),
        (
            {"lora.alpha": {"tied": "lora.rank - 4"}},
            "space.lora.rank: with lora.rank 4",
            ["lora.alpha: got 0.0", "> 0"],
        ),
        (
            {"lora.alpha": {"tied": "1 / (lora.rank - 4)"}},
            "space.lora.alpha",
            ["none for lora.rank 4"],
        ),
        (
            {"seed": {"int": [0, 9], "when": {"lora.alpha": 8}}},
            "space.seed.when.lora.alpha",
            ["Search lora.alpha"],
        ),
        (
            {"seed": {"int": [0, 9], "when": {"optim.batch_size": 16}}},
            "space.seed.when.optim.batch_size",
            ["take it out of the condition"],
        ),
        ({"seed": {"int": [0, 9], "when": {"lora.rnk": 8}}}, "space.seed.when.lora.rnk", []),
        ({"seed": {"int": [0, 9], "when": {}}}, "space.seed.when", ["got {}"]),
        (
            {"seed": {"int": [0, 9], "when": {"lora.rank": [4, 5]}}},
            "space.seed.when.lora.rank",
            ["got 5", "4, 8, 16", "add it to the knob"],
        ),
        (
            {"seed": {"int": [0, 9], "when": {"lora.dropout": 0.05}}},
            "space.seed.when.lora.dropout",
            ["use choices instead"],
        ),
        (
            {
                "base.quantization": {
                    "choice": ["nf4", "fp4"],
                    "when": {"lora.rslora": True},
                }
            },
            "space.",
            [".when: got '", "base.quantization needs lora.rslora", "circle"],
        ),
    ],
)
def test_bad_form_is_named(changes: dict[str, Any], start: str, parts: list[str]) -> None:
    with pytest.raises(SweepSpecError) as caught:
        build_sweep(FULL | changes)
    assert str(caught.value).startswith(start)
    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("rule", "start", "parts"),
    [
        ({"lora.rnk": 16}, "forbid[0].lora.rnk", ["Unknown key", "did you mean lora.rank?"]),
        ({"lora.rank": 32}, "forbid[0].lora.rank", ["got 32", "4, 8, 16"]),
        ({"base.double_quant": "maybe"}, "forbid[0].base.double_quant", ["'maybe'"]),
        ({"lora.dropout": 0.05}, "forbid[0].lora.dropout", ["choices"]),
        ({}, "forbid[0]", ["got {}"]),
        ({"lora.rank": float("nan")}, "forbid[0]", ["nan", "finite numbers"]),
    ],
)
def test_bad_rule_is_named(rule: dict[str, Any], start: str, parts: list[str]) -> None:
    with pytest.raises(SweepSpecError) as caught:
        build_sweep(FULL, rule)
    assert str(caught.value).startswith(start)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_rule_may_name_tied_and_fixed_settings_and_fallbacks() -> None:
    ranks = {"lora.rank": {"choice": [4, 8]}, "lora.alpha": {"tied": "2 * lora.rank"}}
    dropout = {"lora.dropout": {"choice": [0.1, 0.2], "when": {"lora.rank": 8}}}
    kept = [{"lora.rank": 8, "lora.dropout": 0.1}]
    for rules in (
        [{"lora.alpha": 8}, {"lora.dropout": 0.2}],
        [{"lora.rank": 4, "optim.steps": 40}, {"lora.dropout": [0.0, 0.2]}],
        [{"lora.dropout": [0.2, 0.0]}, {"optim.batch_size": 99, "lora.rank": 8}],
    ):
        space = build_sweep(ranks | dropout, *rules).search_space
        assert list(space.configurations()) == kept


@pytest.mark.parametrize(
    ("knob", "written", "parts"),
    [
        ("lora.rank", {"choice": [0]}, ["got 0", "1 to 1024"]),
        ("lora.rank", {"choice": [8, "x"]}, ["'x'", "a whole number"]),
        ("lora.rank", {"choice": [8, True]}, ["True", "give another value"]),
        ("lora.rank", {"choice": [8, 8.0]}, ["8.0", "each choice once"]),
        ("lora.rank", {"choice": []}, ["[]", "a list of values"]),
        ("lora.rank", {"choice": 8}, ["8", "a list of values", "brackets"]),
        ("lora.rank", {"int": [0, 8]}, ["got 0", "1 to 1024"]),
        ("lora.rank", {"int": [4, 2000]}, ["got 2000", "1 to 1024"]),
        ("lora.rank", {"int": [4.5, 8]}, ["4.5", "a whole number"]),
        ("lora.rank", {"uniform": [4, 8]}, ["'uniform'", "choice, int, log_int"]),
        ("lora.rank", [4, 8], ["[4, 8]", "one distribution", "{choice: [a, b]}"]),
        ("lora.rank", {"chioce": [4]}, ["'chioce'", "did you mean choice?"]),
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
        ("eval.every", {"choice": [10]}, ["with the same evaluation", "outside of `space`"]),
        ("seed", {"int": [-1, 2]}, ["got -1", "0 to 4294967295"]),
        ("seed", -1, ["got -1", "0 to 4294967295"]),
        ("lora.rank", 0, ["got 0", "1 to 1024"]),
        ("lora.rank", "many", ["'many'", "a whole number"]),
        ("lora.targets", "atention", ["'atention'", "all-linear"]),
        ("optim.micro_batch_size", 3, ["got 3", "optim.batch_size (8)"]),
        ("data.train_max_tokens", {"choice": [1]}, ["got 1", "data.max_tokens (512)"]),
        ("lora.rank", {"tide": "8"}, ["'tide'", "did you mean tied?"]),
        ("lora.rank", {"tied": "8", "when": {"lora.rslora": True}}, ["one distribution"]),
        ("lora.rank", {"when": {"lora.rslora": True}}, ["one distribution"]),
        ("optim.lr", {"choice": [1]}, ["Unknown key", "did you mean optim.learning_rate?"]),
        ("rank", {"choice": [1]}, ["Unknown key", "did you mean lora.rank?"]),
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


@pytest.mark.parametrize(
    "extra",
    [
        {"lora": {"init": "pissa"}, "space": {"lora.rank": {"choice": [2, 4]}}},
        {"space": {"lora.init": {"choice": ["kaiming", "pissa"]}}},
    ],
    ids=["fixed", "searched"],
)
def test_an_initialisation_that_rewrites_the_base_is_refused_with_the_reason(extra, tmp_path):
    written = {
        "name": "tiny", "base": {"model": "owner/name"}, "data": {"train": "owner/rows"},
        "optim": {"steps": 40}, "eval": {"every": 10}, "budget": {"trials": 4}, **extra,
    }  # fmt: skip
    with pytest.raises(
        SweepSpecError, match=r"lora\.init: got 'pissa'.*changes the base's weights"
    ):
        parse_sweep(written, tmp_path)
