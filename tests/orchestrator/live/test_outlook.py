"""Counts of trials, and times left from the measured speed."""

from typing import Any

import pytest

from orchestrator.journal.history import SweepHistory
from orchestrator.live.outlook import Outlook, estimate_outlook
from orchestrator.spec.sweep import BudgetSpec, FinalsSpec, SweepSpec
from tests.support.events import entry
from trainables.spec import BaseSpec, DataSpec, OptimSpec

SPEC = SweepSpec(
    name="tiny",
    base=BaseSpec(model="owner/name"),
    data=DataSpec(train="owner/rows"),
    optim=OptimSpec(steps=100),
    space={"lora.rank": {"choice": [4, 8, 16]}},
    budget=BudgetSpec(trials=10),
    finals=FinalsSpec(top=2, seeds=1),
)


class Sweep:
    """A running sweep that takes two seconds for a step."""

    def __init__(self) -> None:
        self.history, self.now = SweepHistory(), 0.0
        self.tell("sweep_started", sweep_id="s", spec={}, digest="d")

    def tell(self, kind: str, **fields: Any) -> None:
        self.history.apply(entry(kind, self.now, **fields))

    def train(self, trial: int, steps: int, outcome: str | None = "stopped", **more: Any) -> None:
        self.tell("trial_started", trial=trial, knobs={}, spec={}, **more)
        for step in range(25, steps + 1, 25):
            self.now += 50.0
            self.tell("report", trial=trial, step=step, metrics={"eval_loss": 1.0})
        if outcome:
            ended = {"reason": "", "step": steps, "bundle": None}
            self.tell("trial_ended", trial=trial, outcome=outcome, **ended)


@pytest.fixture
def sweep() -> Sweep:
    return Sweep()


def test_before_the_first_report_no_time_is_promised(sweep: Sweep) -> None:
    sweep.train(0, 0, None)
    outlook = estimate_outlook(SPEC, sweep.history)
    assert outlook == Outlook(done=0, running=1, to_come=9)
    assert outlook.times == ""


def test_a_trial_that_waits_for_its_first_seat_is_still_to_come(sweep: Sweep) -> None:
    sweep.train(0, 25, None)
    sweep.train(1, 0, None)
    sweep.train(2, 0, None)
    outlook = estimate_outlook(SPEC, sweep.history, seated=[0, 1])
    assert outlook.counts() == "0 done, 2 running, 8 to come"


def test_a_few_trials_give_an_upper_bound_to_the_horizon(sweep: Sweep) -> None:
    sweep.train(0, 50)
    outlook = estimate_outlook(SPEC, sweep.history)
    assert (outlook.search_s, outlook.is_bound) == (9 * 100 * 2.0, True)
    assert outlook.times == "search: at most 30 min left, finals: about 7 min"


def test_ended_trials_say_how_far_those_to_come_will_train(sweep: Sweep) -> None:
    for trial in range(4):
        sweep.train(trial, 25 if trial % 2 else 75)
    sweep.train(4, 25, None)
    outlook = estimate_outlook(SPEC, sweep.history)
    assert (outlook.search_s, outlook.is_bound) == ((25 + 5 * 50) * 2.0, False)
    assert outlook.times == "search: about 9 min left, finals: about 7 min"


def test_the_wall_clock_bounds_the_search(sweep: Sweep) -> None:
    sweep.train(0, 50)
    assert estimate_outlook(SPEC, sweep.history, 60.0).times.startswith(
        "search: at most 60 s left"
    )


def test_repeats_that_were_trained_are_no_more_ahead(sweep: Sweep) -> None:
    sweep.train(0, 100, "completed")
    sweep.tell("stage_ended", stage="search", reason="", under={})
    sweep.train(1, 100, "completed", repeat_of=0)
    outlook = estimate_outlook(SPEC, sweep.history)
    assert (outlook.search_s, outlook.finals_s, outlook.to_come) == (None, 200.0, 0)
    sweep.tell("stage_ended", stage="repeats", reason="", under={})
    assert estimate_outlook(SPEC, sweep.history).times == ""


def test_a_sweep_that_does_not_run_has_no_time_left(sweep: Sweep) -> None:
    sweep.train(0, 50)
    sweep.tell("sweep_ended", status="cancelled", reason="")
    assert estimate_outlook(SPEC, sweep.history).times == ""
