"""Every field of a sweep refuses impossible values at once, in one sentence that names it."""

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.search.schedule import build_scheduler
from orchestrator.search.searcher import OptunaSearcher
from orchestrator.spec.sweep import BudgetSpec, SweepSpec, parse_sweep
from trainables.claims import LARGEST
from trainables.errors import SpecError
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec

SWEEP: dict[str, Any] = {
    "name": "tiny",
    "base": {"model": "owner/name"},
    "data": {"train": "owner/rows", "template_args": {"a": 1}},
    "optim": {"steps": 20},
    "eval": {"every": 10},
    "budget": {"trials": 2},
    "space": {
        "lora.rank": {"choice": [2, 4]},
        "optim.learning_rate": {"log_uniform": [1e-4, 1e-2]},
        "optim.warmup_steps": {"int": [0, 5]},
        "lora.dropout": {"uniform": [0.0, 0.1]},
    },
    "search": {"start": [{"lora.rank": 2}]},
    "forbid": [{"lora.rank": 2, "optim.warmup_steps": 3}],
    "finals": {"choices": ["a", "b"], "max_new_tokens": 4},
    "register": {"name": "x"},
}
NUMBERS = (
    -1, 0, 10**9, 10**12, LARGEST, 10**22, 10**400, 10**5000,
    5e-324, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
OTHERS = ("y" * 5000, "", "\0", "\ud800", None, True, [], {}, [[1]], {"a": {"b": 1}}, [10**400])


def fields(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else ()
    for name, inner in enumerate(value) if isinstance(value, list) else items:
        yield from fields(inner, (*at, name))


def changed(values: dict[str, Any], path: tuple[Any, ...], new: Any) -> dict[str, Any]:
    copied = copy.deepcopy(values)
    owner: Any = copied
    for part in path[:-1]:
        owner = owner[part]
    owner[path[-1]] = new
    return copied


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    """Every field of a sweep with its default."""
    return parse_sweep(SWEEP, Path()).to_dict()


def refusal_of(values: dict[str, Any]) -> str:
    """The message of a refused sweep; empty for a sweep that a search can begin with."""
    try:
        spec = parse_sweep(values, Path())
        build_scheduler(spec)
        OptunaSearcher(spec).suggest("first")
    except SweepSpecError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("wrong", [NUMBERS, OTHERS], ids=["numbers", "others"])
def test_every_field_takes_or_refuses_every_value_within_a_second(
    full: dict[str, Any], wrong: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused = []
    for path in fields(full):
        for value in wrong:
            began = time.perf_counter()
            try:
                message = refusal_of(changed(full, path, value))
            except Exception as error:
                raise AssertionError(path) from error
            assert time.perf_counter() - began < 1
            if message:
                refused.append(message)
    assert len(refused) > 500
    assert max(map(len, refused)) < 1000
    assert not any("\n" in message for message in refused)
    assert [message for message in refused if "allowed: " not in message] == []


@pytest.mark.parametrize("number", [10**22, 10**400, 10**5000], ids=["22", "400", "5000"])
@pytest.mark.parametrize("section", ["budget.trials", "optim.steps", "finals.top", "seed"])
def test_a_huge_number_is_named_with_its_field(
    full: dict[str, Any], section: str, number: int
) -> None:
    message = refusal_of(changed(full, tuple(section.split(".")), number))
    assert message.startswith(f"{section}: got ")
    assert f"allowed: whole numbers from -{LARGEST} to {LARGEST}. Use a smaller" in message


def test_a_spec_in_python_refuses_them_too() -> None:
    with pytest.raises(SweepSpecError, match=r"budget\.trials: got 1000"):
        SweepSpec(
            name="tiny",
            base=BaseSpec(model="owner/name"),
            data=DataSpec(train="owner/rows"),
            optim=OptimSpec(steps=20),
            budget=BudgetSpec(trials=10**400),
        )
    with pytest.raises(SpecError, match=r"optim\.steps: got a number of more than 4300 digits"):
        OptimSpec(steps=10**5000)
    with pytest.raises(SpecError, match=r"lora\.alpha: got 1000"):
        LoraSpec(alpha=10**400)
    for name in ("a" * 300, "a/" * 3000):
        with pytest.raises(SpecError, match=r"base\.model: got 'a.*at most 4095 bytes"):
            BaseSpec(model=name)
        with pytest.raises(SpecError, match=r"data\.train: got 'a.*at most 4095 bytes"):
            DataSpec(train=name)
