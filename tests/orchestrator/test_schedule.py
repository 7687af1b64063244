"""A scheduler that was replayed decides as the one that was there all along."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from orchestrator.events import EventLog
from orchestrator.history import SweepHistory
from orchestrator.schedule import build_scheduler, replay_history
from orchestrator.sections import ScheduleSpec
from orchestrator.spec import BudgetSpec, SweepSpec
from trainables.spec import BaseSpec, DataSpec, EvalSpec, OptimSpec

HORIZON = 80


def build_sweep(algorithm: Any = "asha") -> SweepSpec:
    return SweepSpec(
        name="tiny",
        base=BaseSpec(model="owner/name"),
        data=DataSpec(train="owner/rows"),
        optim=OptimSpec(steps=HORIZON),
        eval=EvalSpec(every=10),
        budget=BudgetSpec(trials=20),
        schedule=ScheduleSpec(algorithm=algorithm, grace_steps=20, reduction_factor=2),
        space={"lora.rank": {"choice": [4, 8]}},
    )


class Tune:
    """Calls a scheduler as Ray Tune does and logs what it saw; each life has its own trial ids."""

    def __init__(self, life: str, scheduler: TrialScheduler, path: Path) -> None:
        self.life = life
        self.scheduler = scheduler
        self.log = EventLog(path)

    def trial(self, number: int) -> SimpleNamespace:
        return SimpleNamespace(trial_id=f"{self.life}-{number}", config={"trial": number})

    def start(self, number: int) -> None:
        self.log.append("trial_started", trial=number, knobs={}, spec={})
        self.add(number)

    def add(self, number: int) -> None:
        self.scheduler.on_trial_add(None, self.trial(number))

    def report(self, number: int, step: int, loss: float, loses_end: bool = False) -> str:
        result = {"step": step, "eval_loss": loss}
        decision = self.scheduler.on_trial_result(None, self.trial(number), result)
        self.log.append("report", trial=number, step=step, metrics={"eval_loss": loss})
        if decision == TrialScheduler.STOP and not loses_end:
            self.scheduler.on_trial_complete(None, self.trial(number), result)
            outcome = "completed" if step >= HORIZON else "stopped"
            fields = {"outcome": outcome, "reason": "", "step": step, "bundle": None}
            self.log.append("trial_ended", trial=number, **fields)
        return str(decision)


def play(tune: Tune, moves: list[tuple[int, int, float]], running: set[int]) -> list[str]:
    decisions = []
    for number, step, loss in moves:
        if number in running:
            decisions.append(tune.report(number, step, loss))
            if decisions[-1] == TrialScheduler.STOP:
                running.remove(number)
    return decisions


@pytest.mark.parametrize("seed", range(8))
def test_replayed_scheduler_decides_as_the_undisturbed_one(tmp_path: Path, seed: int) -> None:
    spec = build_sweep()
    rng = random.Random(seed)
    moves = [(n, step, rng.random()) for step in range(10, 90, 10) for n in range(12)]
    cut = rng.randrange(10, 60)
    first = Tune("first", build_scheduler(spec), tmp_path / "events.jsonl")
    running = set(range(12))
    for number in running:
        first.start(number)
    play(first, moves[:cut], running)
    first.log.close()

    replayed = build_scheduler(spec)
    history = SweepHistory.read(tmp_path / "events.jsonl")
    assert replay_history(replayed, history, HORIZON) == frozenset()
    second = Tune("second", replayed, tmp_path / "events.jsonl")
    for record in history.unfinished():
        second.add(record.number)
    resumed = play(second, moves[cut:], set(running))
    second.log.close()

    undisturbed = Tune("first", first.scheduler, tmp_path / "other.jsonl")
    assert resumed == play(undisturbed, moves[cut:], set(running))
    undisturbed.log.close()
    assert {"STOP", "CONTINUE"} == set(resumed)
    rungs = [scheduler._brackets[0]._rungs for scheduler in (replayed, first.scheduler)]
    assert rungs[0] == rungs[1]


def test_reports_done_again_take_no_second_place_on_a_rung(tmp_path: Path) -> None:
    spec = build_sweep()
    tune = Tune("first", build_scheduler(spec), tmp_path / "events.jsonl")
    tune.start(0)
    tune.report(0, 20, 1.0)
    tune.report(0, 30, 1.0)
    tune.log.close()
    replayed = build_scheduler(spec)
    replay_history(replayed, SweepHistory.read(tmp_path / "events.jsonl"), HORIZON)
    again = Tune("second", replayed, tmp_path / "events.jsonl")
    again.add(0)
    again.report(0, 30, 1.0)
    again.log.close()
    rungs = {step: len(recorded) for step, recorded in replayed._brackets[0]._rungs}
    assert rungs == {20: 1, 40: 0, 80: 0}


def test_stop_that_was_decided_but_not_recorded_is_told(tmp_path: Path) -> None:
    spec = build_sweep()
    tune = Tune("first", build_scheduler(spec), tmp_path / "events.jsonl")
    for number in range(3):
        tune.start(number)
    assert tune.report(0, 20, 1.0) == "CONTINUE"
    assert tune.report(1, 20, 9.0, loses_end=True) == "STOP"
    assert tune.report(0, HORIZON, 1.0, loses_end=True) == "STOP"
    tune.log.close()
    history = SweepHistory.read(tmp_path / "events.jsonl")
    assert replay_history(build_scheduler(spec), history, HORIZON) == {1}


def test_replay_keeps_the_order_of_the_reports(tmp_path: Path) -> None:
    spec = build_sweep()
    tune = Tune("first", build_scheduler(spec), tmp_path / "events.jsonl")
    tune.start(0)
    tune.start(1)
    assert tune.report(1, 20, 9.0) == "CONTINUE"
    assert tune.report(0, 20, 1.0) == "CONTINUE"
    tune.log.close()
    history = SweepHistory.read(tmp_path / "events.jsonl")
    assert replay_history(build_scheduler(spec), history, HORIZON) == frozenset()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_value_stops_its_trial_and_marks_no_rung(value: float) -> None:
    scheduler = build_scheduler(build_sweep())
    trial = SimpleNamespace(trial_id="a", config={"trial": 0})
    scheduler.on_trial_add(None, trial)
    result = {"step": 20, "eval_loss": value}
    assert scheduler.on_trial_result(None, trial, result) == "STOP"
    scheduler.on_trial_complete(None, trial, result)
    assert [len(recorded) for _, recorded in scheduler._brackets[0]._rungs] == [0, 0, 0]


def test_no_schedule_stops_nothing(tmp_path: Path) -> None:
    scheduler = build_scheduler(build_sweep("none"))
    assert type(scheduler) is FIFOScheduler
    tune = Tune("first", scheduler, tmp_path / "events.jsonl")
    tune.start(0)
    assert tune.report(0, HORIZON, 1e9) == "CONTINUE"
    tune.log.close()
    history = SweepHistory.read(tmp_path / "events.jsonl")
    assert replay_history(scheduler, history, HORIZON) == frozenset()
