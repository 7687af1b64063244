"""Choices follow the rows, the base and the machine."""

from dataclasses import replace

import pytest
import yaml

from orchestrator.preflight.draft import Facts, as_text, draft_sweep, lines_of
from orchestrator.preflight.machine import Gpu, Machine

CPU = Machine(cores=2, has_bfloat16=True, memory=16 * 10**9, gpus=())
GPU = replace(CPU, gpus=(Gpu(name="A10", memory=24 * 10**9, driver="550"),))
SMALL = Facts(
    rows=240,
    validation_rows=30,
    lengths=(40,) * 240,
    longest=50,
    is_counted=True,
    weights=135_000_000,
    width=576,
    positions=2048,
    quantization=None,
    machine=CPU,
)


def chosen(facts):
    sections = draft_sweep(facts).sections
    return {
        f"{s}.{name}": value for s, one in sections.items() for name, (value, _) in one.items()
    }


@pytest.mark.parametrize("rows", [40, 240, 3_000, 80_000])
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_steps_are_whole_evaluations_and_less_data_is_seen_more_often(rows, machine):
    facts = replace(SMALL, rows=rows, lengths=(40,) * rows, machine=machine)
    values = chosen(facts)
    assert values["optim.steps"] == 6 * values["eval.every"]
    assert values["schedule.grace_steps"] % values["eval.every"] == 0
    assert values["optim.warmup_steps"] <= values["schedule.grace_steps"]
    if machine is GPU:
        epochs = values["optim.steps"] * values["optim.batch_size"] / rows
        assert epochs == pytest.approx({40: 8, 240: 5, 3_000: 3, 80_000: 1}[rows], rel=0.1)


def test_a_trial_that_would_take_too_long_on_a_cpu_is_shortened_and_says_so():
    facts = replace(SMALL, rows=5_000, lengths=(500,) * 5_000, longest=500)
    steps, reason = draft_sweep(facts).sections["optim"]["steps"]
    assert steps < 100
    assert "not 3: more would take too long here" in reason
    fast = draft_sweep(replace(facts, machine=GPU)).sections["optim"]["steps"]
    assert fast[0] > 900


def test_the_learning_rate_is_searched_around_the_usual_one_of_the_width():
    low, high = chosen(SMALL)["space.optim.learning_rate"]["log_uniform"]
    assert low < 500e-6 * (2000 / 576) ** 0.43 < high
    assert chosen(replace(SMALL, width=None))["space.optim.learning_rate"] == {
        "log_uniform": [5e-5, 2e-3]
    }


def test_the_limit_of_tokens_fits_all_rows_or_the_base():
    assert chosen(SMALL)["data.max_tokens"] == 64
    long = draft_sweep(replace(SMALL, longest=900, positions=512)).sections["data"]["max_tokens"]
    assert long[0] == 512
    assert long[1].startswith("the most of the base")
    assert chosen(replace(SMALL, is_counted=False))["data.max_tokens"] == 80


def test_values_and_reasons_are_yaml_in_short_lines():
    values = {"a": 2e-4, "b": [0.0, 0.05], "c": {"tied": "2 * x"}, "d": "no", "e": "./x.jsonl"}
    assert yaml.safe_load(as_text(values)) == values
    assert "e: ./x.jsonl" in as_text(values)
    lines = list(lines_of("s", {"long": ("x" * 80, "why " * 6), "n": (1, "one")}))
    assert lines == ["s:", f"  # {'why ' * 6}", f"  long: {'x' * 80}", "  n: 1  # one"]
