"""Limits of a budget, amounts spent, and whether another trial fits."""

import pytest

from orchestrator.journal.history import SweepHistory
from orchestrator.journal.meter import Usage
from orchestrator.journal.requests import UserRequests
from orchestrator.search.budget import Budget
from orchestrator.spec.sections import BudgetSpec
from orchestrator.supervision import LOOK_EVERY_S, SweepStopper
from tests.support.events import entry


class Sweep:
    """A history, a clock and device use under the control of a test."""

    def __init__(self, **limits):
        self.spec = BudgetSpec(trials=100, **limits)
        self.history = SweepHistory()
        self.now = 0.0
        self.usage = Usage()
        self.apply("sweep_started", sweep_id="s", spec={}, digest="d")

    def apply(self, kind, **fields):
        self.history.apply(entry(kind, self.now, **fields))

    def train(self, trial, steps, seconds, every=10):
        """A finished trial that used a host alone for the given time."""
        self.begin(trial)
        for step in range(every, steps + 1, every):
            self.now += seconds * every / steps
            metrics = {"eval_loss": 1.0, "host_s": seconds * step / steps}
            self.apply("report", trial=trial, step=step, metrics=metrics)
        end = {"outcome": "completed", "reason": "", "step": steps, "bundle": None}
        self.apply("trial_ended", trial=trial, **end)

    def begin(self, trial):
        self.apply("trial_started", trial=trial, knobs={}, spec={})

    def budget(self, **shape):
        return Budget(
            self.spec,
            self.history,
            usage=lambda: self.usage,
            clock=lambda: self.now,
            **shape,
        )


def test_without_limits_nothing_is_ever_spent():
    sweep = Sweep()
    sweep.now, sweep.usage = 1e9, Usage(1e9, 1e9)
    budget = sweep.budget()
    assert (budget.exhausted(), budget.forbids(1000), budget.describe_left()) == ("", "", "")


@pytest.mark.parametrize(
    ("limits", "now", "usage", "said"),
    [
        ({"wall_clock_s": 100}, 100, Usage(), "1:40 (wall_clock_s)"),
        ({"cpu_seconds": 50}, 0, Usage(cpu_s=50), "50.0 s of CPU (cpu_seconds)"),
        ({"gpu_seconds": 50}, 0, Usage(gpu_s=60), "50.0 s of GPU (gpu_seconds)"),
        ({"money": 2, "price_per_gpu_hour": 4}, 0, Usage(gpu_s=1800), "2.00 (money)"),
    ],
    ids=["wall-clock", "cpu", "gpu", "money"],
)
def test_each_limit_ends_the_sweep(limits, now, usage, said):
    sweep = Sweep(**limits)
    assert sweep.budget(gpus=1).exhausted() == ""
    sweep.now, sweep.usage = float(now), usage
    assert sweep.budget(gpus=1).exhausted() == f"the budget of {said} is spent"


def test_whichever_limit_is_met_first_counts():
    sweep = Sweep(wall_clock_s=1000, cpu_seconds=50)
    sweep.usage = Usage(cpu_s=51)
    assert "cpu_seconds" in sweep.budget().exhausted()


def test_the_search_leaves_a_reserve_to_the_finals():
    sweep = Sweep(wall_clock_s=100, finals_fraction=0.3)
    budget = sweep.budget()
    sweep.now = 69.0
    assert budget.exhausted(budget.search_share) == ""
    sweep.now = 71.0
    assert "less 30% for the finals" in budget.exhausted(budget.search_share)
    assert budget.exhausted() == ""


def test_what_earlier_sessions_spent_counts():
    sweep = Sweep(cpu_seconds=100, wall_clock_s=100)
    sweep.now = 10.0
    sweep.apply("usage", cpu_s=60.0, gpu_s=0.0)
    sweep.now = 5000.0
    sweep.apply("sweep_resumed")
    budget = sweep.budget()
    sweep.usage = Usage(cpu_s=39.0)
    sweep.now = 5089.0
    assert budget.exhausted() == ""
    sweep.usage = Usage(cpu_s=41.0)
    assert "cpu_seconds" in budget.exhausted()
    sweep.usage = Usage()
    sweep.now = 5091.0
    assert "wall_clock_s" in budget.exhausted()


def test_before_anything_was_measured_a_trial_may_start():
    assert Sweep(wall_clock_s=1).budget().forbids(10**6) == ""


def test_a_trial_that_cannot_end_in_time_is_not_started():
    sweep = Sweep(wall_clock_s=100)
    sweep.train(0, steps=100, seconds=60.0)
    budget = sweep.budget()
    assert budget.forbids(100) == (
        "a trial takes about 1:00, and 40.0 s of the budget (wall_clock_s) is left"
    )
    # Early stopping may end it at a rung that is in time.
    assert budget.forbids(50) == ""


def test_device_time_is_judged_by_what_a_trial_takes_of_its_host():
    sweep = Sweep(gpu_seconds=200)
    sweep.train(0, steps=100, seconds=60.0)
    sweep.usage = Usage(gpu_s=60.0)
    assert sweep.budget(gpus=1).forbids(100) == ""
    assert "gpu_seconds" in sweep.budget(gpus=4).forbids(100)


def test_the_newest_trials_say_what_the_next_one_takes():
    sweep = Sweep(cpu_seconds=1000)
    for trial in range(150):
        sweep.train(trial, 20, 1.0)
    assert sweep.budget().forbids(20) == ""
    for trial in range(150, 250):
        sweep.train(trial, 20, 2000.0)
    assert "a trial takes about" in sweep.budget().forbids(20)


def test_what_running_trials_will_still_take_is_set_aside():
    sweep = Sweep(cpu_seconds=200)
    sweep.train(0, steps=100, seconds=60.0)
    sweep.usage = Usage(cpu_s=60.0)
    sweep.begin(1)
    assert sweep.budget().forbids(100, horizon=100) == ""
    sweep.begin(2)
    assert "20.0 s of CPU" in sweep.budget().forbids(100, horizon=100)
    assert sweep.budget().forbids(100) == ""


def test_what_was_spent_reads_like_a_bill():
    sweep = Sweep(wall_clock_s=600, money=10, price_per_gpu_hour=3.6)
    sweep.now, sweep.usage = 125.0, Usage(gpu_s=1000.0)
    assert sweep.budget(gpus=1).describe_left() == "7:55 of 10:00 left, 9.00 of 10.00 left"


def test_however_often_ray_tune_asks_the_budget_is_looked_at_a_few_times_a_second():
    sweep, looks = Sweep(wall_clock_s=10), []

    def used():
        looks.append(sweep.now)
        return Usage()

    budget = Budget(sweep.spec, sweep.history, usage=used, clock=lambda: sweep.now)
    stopper = SweepStopper(UserRequests(), budget, 1.0, clock=lambda: sweep.now)
    asked = 0
    while not stopper.stop_all():
        sweep.now += LOOK_EVERY_S / 10
        asked += 1
    assert sweep.now == pytest.approx(10, abs=LOOK_EVERY_S)
    assert len(looks) == pytest.approx(asked / 10, abs=2)
    assert stopper.stop_all()


def test_the_night_between_two_sessions_is_nobodys_pace():
    sweep = Sweep(wall_clock_s=600)
    sweep.begin(0)
    for step, pause in ((10, 10.0), (20, 10.0)):
        sweep.now += pause
        sweep.apply("report", trial=0, step=step, metrics={"eval_loss": 1.0})
    sweep.now += 8 * 3600
    sweep.apply("sweep_resumed")
    sweep.now += 30
    sweep.apply("report", trial=0, step=30, metrics={"eval_loss": 1.0})
    assert sweep.budget().forbids(100) == ""
    assert "takes about 16:40" in sweep.budget().forbids(1000)


def test_repeats_and_trials_of_the_search_set_nothing_aside_for_each_other():
    sweep = Sweep(cpu_seconds=200)
    sweep.train(0, steps=100, seconds=60.0)
    sweep.usage = Usage(cpu_s=60.0)
    for trial in (1, 2):
        sweep.apply("trial_started", trial=trial, knobs={}, spec={}, repeat_of=0)
    assert sweep.budget().forbids(100, horizon=100) == ""
    assert sweep.budget().forbids(100, horizon=100, is_finals=True) != ""
