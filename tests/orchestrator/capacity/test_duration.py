"""Hours and money: from earlier sweeps, from published speeds, or an honest no."""

import json
from pathlib import Path

import pytest

from orchestrator.capacity.duration import expect_duration, measured_speeds, published_speeds
from orchestrator.capacity.hardware import GPUS, hardware_of_cpu
from orchestrator.capacity.lengths import SweepLengths
from orchestrator.journal.log import EventLog
from orchestrator.spec.sections import BudgetSpec, ScheduleSpec
from orchestrator.spec.sweep import build_trial
from tests.support.events import event
from tests.support.sweeps import build_sweep
from trainables.rows.lengths import Lengths
from trainables.spec import BaseSpec, OptimSpec

ROWS = SweepLengths(
    splits={"train": Lengths(all=(512,) * 8, limit=512, kept=8, ends_lost=0, answers=(512,) * 8)}
)
B8, M135 = 8_030_000_000, 135_000_000


def sweep(algorithm="none", **budget):
    return build_sweep(
        optim=OptimSpec(steps=80, batch_size=8),
        space={"lora.rank": {"choice": [2, 4, 8, 16]}},
        schedule=ScheduleSpec(algorithm=algorithm),
        budget=BudgetSpec(trials=4, **budget),
    )


def expected(spec, weights, hardware, runs, work=(4, 0)):
    trial = build_trial(spec, {"lora.rank": 4})
    return expect_duration(spec, trial, ROWS, weights, work, hardware, runs)


def test_every_published_speed_names_a_card_and_a_source():
    rows = published_speeds()
    assert len(rows) > 10
    assert {row.gpu for row in rows} < set(GPUS)
    assert all(row.source and row.speed > 100 and row.tokens > 100 for row in rows)


def test_published_speeds_give_hours_and_money_as_a_range(tmp_path):
    spec = sweep(price_per_gpu_hour=2.0)
    found = expected(spec, B8, GPUS["rtx4090"], tmp_path)
    assert found.tokens == (4 * 80 * 8 * 512,) * 2
    assert found.speeds == pytest.approx((2413, 2413), rel=0.01)
    assert found.seconds[0] == pytest.approx(found.tokens[0] / 2413, rel=0.01)
    assert found.money[0] == pytest.approx(found.seconds[0] / 1800)
    half = expected(spec, B8 // 2, GPUS["rtx4090"], tmp_path)
    assert half.seconds[0] == pytest.approx(found.seconds[0] / 2, rel=0.01)


def test_early_stopping_lowers_the_least_and_finals_raise_both(tmp_path):
    plain = expected(sweep(), B8, GPUS["rtx4090"], tmp_path)
    stopped = expected(sweep("asha"), B8, GPUS["rtx4090"], tmp_path)
    assert stopped.tokens[0] < plain.tokens[0] == stopped.tokens[1]
    # Rungs at 20 and 40 of 80 steps: 4 trials to 20, 2 to 40, 1 to the end.
    assert stopped.tokens[0] == (4 * 20 + 2 * 20 + 1 * 40) * 8 * 512
    final = expected(sweep("asha"), B8, GPUS["rtx4090"], tmp_path, (4, 3))
    assert final.tokens[0] - stopped.tokens[0] == 3 * 80 * 8 * 512


@pytest.mark.parametrize(
    ("weights", "hardware", "said"),
    [
        (B8, "t4", "no published figure for t4"),
        (M135, "h100-80", "of other sizes than 0.14 billion weights"),
        (None, "h100-80", "size of the base is not known"),
    ],
)
def test_what_is_not_published_is_not_guessed(tmp_path, weights, hardware, said):
    found = expected(sweep(), weights, GPUS[hardware], tmp_path)
    assert found.seconds is None
    assert said in found.line()


def record(folder: Path, model: str, tokens: float, host_s: float) -> None:
    trial = build_trial(sweep(), {"lora.rank": 4}).to_dict()
    trial["base"]["model"] = model
    folder.mkdir()
    with EventLog(folder / "events.jsonl") as log:
        log.append(event("trial_started", trial=0, knobs={}, spec=trial))
        metrics = {"tokens": tokens, "host_s": host_s, "eval_loss": 1.0}
        log.append(event("report", trial=0, step=10, metrics=metrics))


def test_earlier_sweeps_of_the_same_base_on_this_machine_count_first(tmp_path):
    record(tmp_path / "a", "owner/name", 4000.0, 40.0)
    record(tmp_path / "b", "owner/name", 3000.0, 10.0)
    record(tmp_path / "c", "other/name", 9000.0, 1.0)
    assert sorted(measured_speeds(tmp_path, BaseSpec(model="owner/name"))) == [100.0, 300.0]
    here = hardware_of_cpu(10**10, has_bfloat16=True)
    found = expected(sweep(), B8, here, tmp_path)
    assert found.speeds == (100.0, 300.0)
    assert "2 trials on this base" in found.line()
    elsewhere = expected(sweep(), B8, GPUS["rtx4090"], tmp_path)
    assert elsewhere.speeds == pytest.approx((2413, 2413), rel=0.01)


def test_a_damaged_log_is_passed_over(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "events.jsonl").write_text(json.dumps({"no": "event"}) + "\n{\n{}\n")
    assert measured_speeds(tmp_path, BaseSpec(model="owner/name")) == []
