"""Conditions hold for the named values; conditions on impossible values are refused."""

from typing import Any

import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.spec.conditions import Condition, parents_first, parse_condition, require_taken
from orchestrator.spec.distributions import parse_distribution
from orchestrator.spec.settings import KNOBS


def parse(written: object) -> Condition:
    return parse_condition("forbid[0]", written, KNOBS)


@pytest.mark.parametrize(
    ("written", "options"),
    [
        (16, (16,)),
        ("16", (16,)),
        ([8, 16], (8, 16)),
    ],
)
def test_value_or_list_of_values(written: Any, options: tuple[Any, ...]) -> None:
    assert parse({"lora.rank": written}).allowed == {"lora.rank": options}


@pytest.mark.parametrize(
    ("written", "options"),
    [
        ("mlp", ("mlp",)),
        (["mlp", "all-linear"], ("mlp", "all-linear")),
        (["v_proj", "q_proj"], (["q_proj", "v_proj"],)),
        (["mlp", ["v_proj", "q_proj"]], ("mlp", ["q_proj", "v_proj"])),
        ([["v_proj"]], (["v_proj"],)),
    ],
)
def test_list_of_layers_is_one_value(written: Any, options: tuple[Any, ...]) -> None:
    assert parse({"lora.targets": written}).allowed == {"lora.targets": options}


def test_every_setting_must_have_its_value() -> None:
    condition = parse({"lora.rank": [8, 16], "optim.micro_batch_size": None})
    assert condition.holds({"lora.rank": 8, "optim.micro_batch_size": None, "seed": 1})
    assert not condition.holds({"lora.rank": 4, "optim.micro_batch_size": None})
    assert not condition.holds({"lora.rank": 8})
    assert condition.fails({"lora.rank": 4}, ())
    assert condition.fails({"lora.rank": 8}, {"optim.micro_batch_size"})
    assert not condition.fails({"lora.rank": 8}, ())
    assert str(condition) == "lora.rank 8 or 16 with optim.micro_batch_size None"


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ({}, ["forbid[0]: got {}", "Write it as"]),
        ("lora.rank", ["forbid[0]: got 'lora.rank'"]),
        ({"lora.rnk": 1}, ["forbid[0].lora.rnk: ", "did you mean lora.rank?"]),
        ({1: 1}, ["forbid[0].1: unknown key"]),
        ({"lora.rank": "x"}, ["forbid[0].lora.rank: got 'x'", "a whole number"]),
        ({"lora.rank": True}, ["forbid[0].lora.rank: got True"]),
        ({"lora.rank": []}, ["forbid[0].lora.rank: got []", "List at least one."]),
    ],
)
def test_bad_condition_is_named(written: object, parts: list[str]) -> None:
    with pytest.raises(SweepSpecError) as caught:
        parse(written)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_value_that_is_never_taken_is_refused() -> None:
    knobs = {
        "lora.rank": parse_distribution("space.lora.rank", {"int": [4, 8]}, int),
        "lora.dropout": parse_distribution("space.lora.dropout", {"uniform": [0, 0.5]}, float),
    }
    require_taken("forbid[0]", parse({"lora.rank": [4, 5], "lora.alpha": 3}), knobs, {})
    with pytest.raises(SweepSpecError, match=r"^forbid\[0\]\.lora\.rank: got 16; allowed: what "):
        require_taken("forbid[0]", parse({"lora.rank": [4, 16]}), knobs, {})
    require_taken("forbid[0]", parse({"lora.rank": [4, 16]}), knobs, {"lora.rank": 16})
    with pytest.raises(SweepSpecError, match=r"^forbid\[0\]\.lora\.dropout: got 0\.1; .*choices"):
        require_taken("forbid[0]", parse({"lora.dropout": 0.1}), knobs, {})


def test_names_come_after_what_they_need() -> None:
    order = parents_first({"c": ["b", "a"], "b": ["a", "other"], "a": []}, ".when")
    assert order == ("a", "b", "c")


@pytest.mark.parametrize("needs", [{"a": ["a"]}, {"a": ["b"], "b": ["c"], "c": ["a"], "d": []}])
def test_circle_is_refused(needs: dict[str, list[str]]) -> None:
    with pytest.raises(SweepSpecError, match=r"^space\.\w\.when: got '(\w needs )+\w'; allowed"):
        parents_first(needs, ".when")
