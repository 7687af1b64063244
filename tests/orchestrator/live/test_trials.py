"""The table of trials at several widths, with long values."""

import io
from typing import Any

import pytest
from rich.console import Console

from orchestrator.journal.history import SweepHistory
from orchestrator.live.trials import read_trials, render_trials
from orchestrator.spec.sweep import BudgetSpec, SweepSpec
from tests.support.events import entry
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec

ALL_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SPEC = SweepSpec(
    name="a-long-name",
    base=BaseSpec(model="owner/name"),
    data=DataSpec(train="owner/rows"),
    optim=OptimSpec(steps=400),
    space={
        "optim.learning_rate": {"log_uniform": [1e-5, 1e-2]},
        "lora.dropout": {"uniform": [0.0, 0.2]},
        "lora.targets": {"choice": ["all-linear", list(ALL_LAYERS)]},
        "base.quantization": {"choice": ["nf4", "fp4"]},
        "lora.rank": {"choice": [4, 8, 16]},
        "lora.alpha_per_rank": {"choice": [1.0, 2.0]},
    },
    budget=BudgetSpec(trials=60),
)


@pytest.fixture(scope="module")
def history() -> SweepHistory:
    """Forty trials, the last three of them running."""
    history, now = SweepHistory(), 0.0

    def tell(kind: str, **fields: Any) -> None:
        nonlocal now
        now += 1
        history.apply(entry(kind, now, **fields))

    for number in range(40):
        targets = ALL_LAYERS if number % 3 else "all-linear"
        trial = TrialSpec(
            base=BaseSpec(model="owner/name"),
            lora=LoraSpec(rank=16, alpha=32.0, targets=targets, dropout=0.12345),
            optim=OptimSpec(steps=400, learning_rate=1.2345e-4),
            data=DataSpec(train="owner/rows"),
        )
        tell("trial_started", trial=number, knobs={}, spec=trial.to_dict())
        for step in (80, 160, 240):
            metrics = {"eval_loss": 100 / step + number, "tokens_per_s": 1234.5}
            metrics |= {"eval_accuracy": 0.5, "peak_memory_gib": 11.25}
            tell("report", trial=number, step=step, metrics=metrics)
        if number < 37:
            outcome = "infeasible" if number == 5 else "completed"
            ended = {"step": 240, "reason": "too large for the device", "bundle": None}
            tell("trial_ended", trial=number, outcome=outcome, **ended)
    return history


def draw(history: SweepHistory, width: int, rows: int = 12) -> list[str]:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(render_trials(read_trials(history, SPEC), 0, SPEC, width, rows))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def test_eighty_columns_hold_six_settings_and_the_curve(history: SweepHistory) -> None:
    lines = draw(history, 80)
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == [
        "trial", "state", "step", "loss", "quant", "r", "α", "targets", "lr", "drop"
    ]  # fmt: skip
    assert lines[2].split() == [
        "37", "running", "240", "37.4167", "█▃▁", "nf4", "16", "32", "q+k+v+o+gate+up+down",
        "1.23e-4", "0.123",
    ]  # fmt: skip


def test_a_value_too_wide_is_broken_between_its_parts(history: SweepHistory) -> None:
    lines = draw(history, 74)
    assert "q+k+v+o+gate+ " in lines[2]
    assert lines[3].split() == ["up+down"]


def test_a_wide_terminal_also_shows_speed_and_memory(history: SweepHistory) -> None:
    lines = draw(history, 140)
    assert lines[0].split()[-3:] == ["accuracy", "tok/s", "GiB"]
    assert lines[2].split()[-3:] == ["0.5000", "1,234", "11.25"]
    assert "q+k+v+o+gate+up+down" in lines[2]


@pytest.mark.parametrize("width", [50, 60, 80, 140, 200])
def test_nothing_is_cut_and_the_rest_is_counted(history: SweepHistory, width: int) -> None:
    lines = draw(history, width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "…" not in text
    shown = sum("running" in line or "completed" in line for line in lines)
    assert f"and {40 - shown} more trials" in text
    assert "trial 5 infeasible: too large" in text


def test_rows_fill_the_height_with_broken_values_counted(history: SweepHistory) -> None:
    taken = [line for line in draw(history, 74, rows=20)[2:] if "more trials" not in line]
    assert 18 <= len(taken) - 1 <= 20  # without the reason at the end
