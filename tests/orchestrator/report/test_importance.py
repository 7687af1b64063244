"""Which settings mattered, on made-up sweeps whose answer is known."""

import math
import random
import struct
from typing import Any

import pytest

from orchestrator.journal.history import SweepHistory
from orchestrator.report.importance import (
    FEWEST_TRIALS,
    draw_importance,
    find_importance,
)
from orchestrator.spec.sweep import BudgetSpec, SweepSpec, build_trial
from tests.support.events import entry
from trainables.spec import BaseSpec, DataSpec, OptimSpec

SPACE: dict[str, Any] = {
    "lora.rank": {"choice": [4, 8, 16]},
    "lora.alpha_per_rank": {"choice": [1, 2]},
    "lora.targets": {"choice": ["attention", ["q_proj", "v_proj"], "mlp"]},
    "lora.dropout": {"uniform": [0.0, 0.1], "when": {"lora.rank": 16}},
    "optim.learning_rate": {"log_uniform": [1e-4, 1e-2]},
}


def build_sweep(space: dict[str, Any] = SPACE) -> SweepSpec:
    return SweepSpec(
        name="made-up",
        base=BaseSpec(model="owner/name"),
        data=DataSpec(train="owner/rows"),
        optim=OptimSpec(steps=80),
        budget=BudgetSpec(trials=40),
        space=space,
    )


def draw_knobs(rng: random.Random) -> dict[str, Any]:
    knobs = {
        "lora.rank": rng.choice([4, 8, 16]),
        "lora.alpha_per_rank": rng.choice([1.0, 2.0]),
        "lora.targets": rng.choice(["attention", ["q_proj", "v_proj"], "mlp"]),
        "optim.learning_rate": 10 ** rng.uniform(-4, -2),
    }
    if knobs["lora.rank"] == 16:
        knobs["lora.dropout"] = rng.uniform(0.0, 0.1)
    return knobs


def add_trial(history, spec, number, knobs, loss, outcome="completed", **origin):
    def tell(kind: str, **fields: Any) -> None:
        history.apply(entry(kind, 1.0, trial=number, **fields))

    trial = build_trial(spec, knobs).to_dict()
    tell("trial_started", knobs=knobs, spec=trial, **origin)
    tell("report", step=80, metrics={"eval_loss": loss})
    tell("trial_ended", outcome=outcome, reason="", step=80, bundle="b")


def tell_sweep(loss_of, trials=24, seed=0) -> tuple[SweepSpec, SweepHistory]:
    spec, history, rng = build_sweep(), SweepHistory(), random.Random(seed)
    for number in range(trials):
        knobs = draw_knobs(rng)
        add_trial(history, spec, number, knobs, loss_of(knobs) + rng.uniform(0, 0.02))
    return spec, history


def loss_by_rate(knobs):
    return 1 + (math.log10(knobs["optim.learning_rate"]) + 2.7) ** 2


def loss_by_targets(knobs):
    return 1 + {"attention": 0, "mlp": 1}.get(str(knobs["lora.targets"]), 2)


@pytest.mark.parametrize(
    ("loss_of", "decides"),
    [(loss_by_rate, "optim.learning_rate"), (loss_by_targets, "lora.targets")],
    ids=["a number", "a choice"],
)
def test_the_setting_that_decides_comes_first_by_far(loss_of, decides):
    found = find_importance(*tell_sweep(loss_of))
    assert next(iter(found.parts)) == decides
    assert found.parts[decides] > 0.6
    assert sum(found.parts.values()) == pytest.approx(1)
    assert set(found.parts) == set(SPACE)  # the one that is not always searched, too
    assert found.trials == 24


def test_the_same_history_has_the_same_importance():
    story = tell_sweep(loss_by_rate, trials=14)
    assert find_importance(*story).parts == find_importance(*story).parts


def test_few_trials_get_a_sentence():
    found = find_importance(*tell_sweep(loss_by_rate, trials=FEWEST_TRIALS - 1))
    assert not found.parts
    assert "11 trials with results are too few" in found.note
    assert find_importance(*tell_sweep(loss_by_rate, trials=FEWEST_TRIALS)).parts


def test_a_setting_that_never_varied_is_named_and_one_alone_is_not_judged():
    spec, history, rng = build_sweep(), SweepHistory(), random.Random(1)
    for number in range(14):
        knobs = draw_knobs(rng) | {"lora.rank": 4, "lora.alpha_per_rank": 1.0}
        knobs.pop("lora.dropout", None)
        add_trial(history, spec, number, knobs, loss_by_rate(knobs))
    found = find_importance(spec, history)
    assert found.constant == ("lora.rank", "lora.alpha_per_rank", "lora.dropout")
    assert set(found.parts) == {"lora.targets", "optim.learning_rate"}
    history = SweepHistory()
    for number in range(14):
        rate = {"optim.learning_rate": 10 ** rng.uniform(-4, -2)}
        knobs = {"lora.rank": 4, "lora.alpha_per_rank": 1.0, "lora.targets": "mlp", **rate}
        add_trial(history, spec, number, knobs, loss_by_rate(knobs))
    alone = find_importance(spec, history)
    assert not alone.parts
    assert "1 settings varied" in alone.note


def test_diverged_trials_count_as_the_worst_and_others_without_results_do_not():
    spec, history = tell_sweep(lambda knobs: 1.0, trials=14)
    rng = random.Random(5)
    for number in range(14, 26):
        knobs = draw_knobs(rng) | {"optim.learning_rate": 1e-2}
        add_trial(history, spec, number, knobs, 1e9, outcome="diverged")
    for number, outcome in ((26, "failed"), (27, "infeasible")):
        add_trial(history, spec, number, draw_knobs(rng), 0.1, outcome=outcome)
    add_trial(history, spec, 28, draw_knobs(rng), 0.1, repeat_of=3)
    copied = {"trial": 0, "step": 20, "replaces": 1}
    add_trial(history, spec, 29, draw_knobs(rng), 0.1, parent=copied)
    found = find_importance(spec, history)
    assert found.trials == 26
    assert next(iter(found.parts)) == "optim.learning_rate"


def test_parts_have_intervals_that_are_wide_where_trials_are_few():
    few, many = (find_importance(*tell_sweep(loss_by_rate, trials=n)) for n in (14, 80))
    assert set(few.intervals) == set(few.parts)

    def width(found):
        low, high = found.intervals["optim.learning_rate"]
        assert 0 <= low <= high <= 1
        return high - low

    assert width(few) > 1.5 * width(many)


def test_the_picture_has_its_size():
    found = find_importance(*tell_sweep(loss_by_rate, trials=12))
    png = draw_importance(found, title="made-up")
    assert struct.unpack(">II", png[16:24]) == (1200, 510)
