"""The worst trials at a rung are replaced by changed copies of the best."""

import math
from typing import Any

import pytest

from orchestrator.search.pbt import Heir, Pbt, explore
from orchestrator.spec.population import changeable_knobs, population
from orchestrator.spec.sections import ScheduleSpec
from orchestrator.spec.space import SearchSpace
from tests.support.sweeps import POPULATION_SPACE
from tests.support.sweeps import build_population_sweep as build_sweep
from trainables.contract import Mode

KNOBS = {
    "base.quantization": "nf4",
    "lora.rank": 8,
    "lora.dropout": 0.05,
    "optim.learning_rate": 1e-3,
    "optim.warmup_steps": 2,
    "optim.schedule": "linear",
    "optim.batch_size": 8,
    "optim.beta1": 0.9,
}
CHANGEABLE = ["lora.dropout", "optim.learning_rate", "optim.warmup_steps", "optim.schedule"]


def space_of(written: Any) -> SearchSpace:
    return build_sweep(written).search_space


def build_pbt(mode: Mode = "min", seed: int = 0, **schedule: Any) -> Pbt:
    fields = {"algorithm": "pbt", "grace_steps": 20, **schedule}
    return Pbt(ScheduleSpec(**fields), mode, seed, population=8)


# -------------------------------------------------------------------------- who is replaced


def test_the_worst_at_a_rung_is_replaced_by_a_copy_of_the_best() -> None:
    pbt = build_pbt()
    for number, loss in [(3, 0.4121), (0, 0.6), (1, 0.7)]:
        assert pbt.stop_reason(number, 20, loss) == ""
    assert pbt.stop_reason(5, 20, 0.9312) == (
        "trial 3 is better at step 20 (0.4121 < 0.9312): a changed copy of it goes on"
    )
    assert pbt.next_heir() == Heir(replaces=5, parent=3, step=20)
    assert pbt.next_heir() is None


def test_a_higher_accuracy_is_better() -> None:
    pbt = build_pbt(mode="max")
    for number, accuracy in enumerate([0.5, 0.6, 0.75]):
        assert pbt.stop_reason(number, 20, accuracy) == ""
    assert pbt.stop_reason(3, 20, 0.25).startswith(
        "trial 2 is better at step 20 (0.7500 > 0.2500)"
    )


@pytest.mark.parametrize(
    ("schedule", "arrivals"), [({}, 4), ({"population": 6}, 4), ({"population": 14}, 7)]
)
def test_nobody_is_replaced_before_enough_have_come(schedule, arrivals) -> None:
    pbt = build_pbt(**schedule)
    said = [pbt.stop_reason(number, 20, float(number)) for number in range(arrivals)]
    assert [bool(reason) for reason in said] == [False] * (arrivals - 1) + [True]


def test_nobody_is_replaced_between_rungs_or_by_an_equal() -> None:
    pbt = build_pbt()
    for number in range(6):
        assert pbt.stop_reason(number, 10, float(number)) == ""
        assert pbt.stop_reason(number, 20, 0.5) == ""
    assert pbt.next_heir() is None


def test_a_trial_in_the_middle_goes_on() -> None:
    pbt = build_pbt()
    for number, loss in enumerate([0.1, 0.2, 0.8, 0.9]):
        pbt.stop_reason(number, 20, loss)
    assert pbt.stop_reason(4, 20, 0.5) == ""


def test_no_parent_is_broken_ended_or_through() -> None:
    pbt = build_pbt()
    for number, loss in enumerate([0.1, 0.2, 0.3, 0.4, 0.5]):
        pbt.stop_reason(number, 20, loss)
    while pbt.next_heir() is not None:
        pass
    pbt.drop(0)
    assert pbt.stop_reason(6, 20, 0.9).startswith("trial 1 is better")
    pbt.drop(1)
    pbt.drop(2)
    assert pbt.stop_reason(7, 20, 0.9) == ""


def test_a_trial_that_was_cut_short_and_goes_on_is_a_parent_again() -> None:
    pbt = build_pbt()
    for number, loss in enumerate([0.1, 0.2, 0.3]):
        pbt.stop_reason(number, 20, loss)
    pbt.drop(0)
    pbt.stop_reason(0, 30, 0.1)
    assert pbt.stop_reason(3, 20, 0.9).startswith("trial 0 is better")


def test_the_seed_and_the_number_choose_among_the_best() -> None:
    def parent(seed: int, number: int) -> int:
        pbt = build_pbt(seed=seed, quantile=0.5)
        for other in range(9):
            pbt.stop_reason(other, 20, -1.0 / (other + 1))
        while pbt.next_heir() is not None:
            pass
        assert pbt.stop_reason(number, 20, 9.0)
        heir = pbt.next_heir()
        assert heir is not None
        return heir.parent

    chosen = {(seed, number): parent(seed, number) for seed in range(6) for number in (20, 21)}
    assert all(parent(*key) == chosen[key] for key in chosen)
    assert 1 < len(set(chosen.values())) <= 5
    assert all(number < 5 for number in chosen.values())


def test_places_that_were_taken_are_forgotten() -> None:
    pbt = build_pbt()
    for number, loss in enumerate([0.1, 0.2, 0.3, 0.8, 0.9]):
        pbt.stop_reason(number, 20, loss)
    pbt.forget_heirs({3})
    assert pbt.next_heir() == Heir(replaces=4, parent=0, step=20)
    assert pbt.next_heir() is None


@pytest.mark.parametrize(
    ("written", "trials", "expected"), [(0, 6, 4), (0, 12, 6), (0, 99, 8), (10, 12, 10)]
)
def test_the_population_is_what_is_written_or_what_the_budget_allows(
    written, trials, expected
) -> None:
    spec = build_sweep(trials=trials, schedule=ScheduleSpec(algorithm="pbt", population=written))
    assert population(spec.schedule, trials) == expected
    pbt = Pbt(spec.schedule, "min", 0, expected)
    assert pbt.may_start_fresh(expected - 1)
    assert not pbt.may_start_fresh(expected)


# ------------------------------------------------------------------------------ changed knobs


def test_only_knobs_change_that_a_checkpoint_does_not_depend_on() -> None:
    space = space_of(POPULATION_SPACE)
    assert changeable_knobs(space) == CHANGEABLE
    for seed in range(50):
        changed = explore(space, KNOBS, seed)
        assert list(changed) == list(KNOBS)
        assert {name for name in KNOBS if changed[name] != KNOBS[name]} <= set(CHANGEABLE)


def test_a_copy_differs_and_is_the_same_for_the_same_seed() -> None:
    space = space_of(POPULATION_SPACE)
    for seed in range(50):
        changed = explore(space, KNOBS, seed)
        assert changed != KNOBS
        assert changed == explore(space, KNOBS, seed)
    assert len({str(explore(space, KNOBS, seed)) for seed in range(50)}) > 40


@pytest.mark.parametrize(
    ("name", "written", "value", "perturbed"),
    [
        pytest.param(
            "optim.learning_rate",
            {"log_uniform": [1e-4, 1e-2]},
            1e-3,
            {8e-4, 1.2e-3},
            id="factor",
        ),
        pytest.param(
            "optim.learning_rate", {"log_uniform": [1e-4, 1e-3]}, 1e-3, {8e-4}, id="bound"
        ),
        pytest.param("optim.warmup_steps", {"int": [0, 40]}, 1, {0, 2}, id="at least one"),
        pytest.param("optim.warmup_steps", {"log_int": [1, 40]}, 20, {16, 24}, id="whole"),
        pytest.param(
            "optim.schedule",
            {"choice": ["constant", "linear", "cosine"]},
            "constant",
            {"linear"},
            id="neighbour",
        ),
        pytest.param(
            "optim.schedule",
            {"choice": ["constant", "linear", "cosine"]},
            "linear",
            {"constant", "cosine"},
            id="neighbours",
        ),
    ],
)
def test_a_knob_is_perturbed_mostly_and_drawn_anew_sometimes(
    name, written, value, perturbed
) -> None:
    space = space_of({name: written})
    drawn = [explore(space, {name: value}, seed)[name] for seed in range(300)]
    assert all(space.knobs[name].holds(one) for one in drawn)
    near = [one for one in drawn if any(is_close(one, other) for other in perturbed)]
    assert 150 < len(near) <= 300
    assert value not in near
    if not isinstance(value, str):
        assert 300 - len(near) > 20


def is_close(one: Any, other: Any) -> bool:
    return one == other if isinstance(one, str) else math.isclose(one, other)


def test_a_dropout_of_zero_can_grow_again() -> None:
    space = space_of({"lora.dropout": {"uniform": [0.0, 0.1]}})
    assert explore(space, {"lora.dropout": 0.0}, 0)["lora.dropout"] > 0


def test_knobs_that_the_parent_does_not_have_stay_out() -> None:
    space = space_of(POPULATION_SPACE)
    parent = {"optim.learning_rate": 1e-3}
    assert explore(space, parent, 0).keys() == parent.keys()


def test_nothing_changes_where_nothing_can() -> None:
    written = {"lora.rank": {"choice": [4, 8]}}
    space = build_sweep(written, schedule=ScheduleSpec(algorithm="none")).search_space
    assert explore(space, {"lora.rank": 4}, 0) == {"lora.rank": 4}
