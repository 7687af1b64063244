"""A replayed scheduler makes the same decisions as an uninterrupted one, with reasons."""

import random
import weakref
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from orchestrator.errors import SweepSpecError
from orchestrator.journal.events import LogEntry
from orchestrator.journal.history import SweepHistory
from orchestrator.outcome import Outcome
from orchestrator.search.pbt import Heir
from orchestrator.search.schedule import (
    SCHEDULERS,
    EarlyStopping,
    NoRule,
    build_scheduler,
    ladder_turns,
    replay_history,
)
from orchestrator.spec.sections import ExitSpec, ObjectiveSpec, ScheduleSpec
from orchestrator.spec.sweep import BudgetSpec, SweepSpec
from tests.support.events import entry
from trainables.hosts.orders import fault_metrics
from trainables.spec import BaseSpec, DataSpec, EvalSpec, OptimSpec

HORIZON = 80
TRIALS = 20


def build_sweep(
    algorithm: Any = "asha", exits: ExitSpec | None = None, **schedule: Any
) -> SweepSpec:
    return SweepSpec(
        name="tiny",
        base=BaseSpec(model="owner/name"),
        data=DataSpec(train="owner/rows"),
        optim=OptimSpec(steps=HORIZON),
        eval=EvalSpec(every=10),
        budget=BudgetSpec(trials=TRIALS),
        schedule=ScheduleSpec(algorithm=algorithm, **{"grace_steps": 20, **schedule}),
        exits=exits or ExitSpec(divergence=0),
        space={"optim.learning_rate": {"log_uniform": [1e-4, 1e-2]}},
    )


class Tune:
    """Calls a scheduler as Ray Tune does and logs events; each life has its own trial ids.

    Copies of the scheduler are started as trials with the next numbers, as by the searcher.
    """

    def __init__(self, spec: SweepSpec, log: list[LogEntry], life: str = "first") -> None:
        self.spec, self.log, self.life = spec, log, life
        self.scheduler = build_scheduler(spec)
        self.history = SweepHistory()
        for event in log:
            self.history.apply(event)
        self.ended = replay_history(self.scheduler, self.history, HORIZON)

    def write(self, kind: str, **fields: Any) -> None:
        self.log.append(entry(kind, 0.0, **fields))
        self.history.apply(self.log[-1])

    def trial(self, number: int) -> SimpleNamespace:
        return SimpleNamespace(trial_id=f"{self.life}-{number}", config={"trial": number})

    def start(self, number: int, **fields: Any) -> None:
        self.write("trial_started", trial=number, knobs={}, spec={}, **fields)
        self.scheduler.on_trial_add(None, self.trial(number))

    def start_heirs(self) -> list[Any]:
        heirs = []
        while (heir := self.scheduler.next_heir()) is not None:
            parent = {"trial": heir.parent, "step": heir.step, "replaces": heir.replaces}
            self.start(max(self.history.trials) + 1, parent=parent)
            heirs.append(heir)
        return heirs

    def report(self, number: int, step: int, loss: float, loses_end: bool = False) -> str:
        """The decision on a result of a trial."""
        is_through = step >= HORIZON
        result = {"step": step, "eval_loss": loss}
        result |= {"outcome": "completed"} if is_through else {}
        trial = self.trial(number)
        decision = TrialScheduler.STOP
        if not is_through:  # Ray Tune does not ask about a trial that is done
            decision = self.scheduler.on_trial_result(None, trial, result)
        self.write("report", trial=number, step=step, metrics={"eval_loss": loss})
        if decision == TrialScheduler.STOP and not loses_end:
            self.scheduler.on_trial_complete(None, trial, result)
            self.end(number, self.scheduler.end_of(number), step)
        return decision

    def end(self, number: int, end: Any, step: int) -> None:
        outcome = Outcome.COMPLETED if end is None else end.outcome
        fields = {"outcome": outcome.value, "reason": "", "step": step, "bundle": None}
        self.write("trial_ended", trial=number, **fields)


@pytest.fixture
def open_tune():
    """Tune on a log of this name; an earlier Tune on the log is lost."""
    logs: dict[str, list[LogEntry]] = {}

    def open_one(spec: SweepSpec, name: str = "events", life: str = "first") -> Tune:
        return Tune(spec, logs.setdefault(name, []), life)

    return open_one


def next_move(tune: Tune, rng: random.Random) -> tuple[int, int, float]:
    """A random unfinished trial, its next step, and a loss that sometimes diverges."""
    record = rng.choice(tune.history.unfinished())
    began = record.parent["step"] if record.parent else 0
    loss = 0.1 + rng.randrange(90) / 100 if rng.random() < 0.94 else 20.0
    return record.number, max(record.step, began) + 10, loss


def play(tune: Tune, rng: random.Random, moves: int) -> list[Any]:
    """Decisions on the next reports; they depend on the log only."""
    said: list[Any] = []
    for _ in range(moves):
        while len(tune.history.trials) < TRIALS and len(tune.history.unfinished()) < 8:
            heirs = tune.start_heirs()
            said += heirs
            if not heirs:
                tune.start(max(tune.history.trials, default=-1) + 1)
        if not tune.history.unfinished():
            break
        number, step, loss = next_move(tune, rng)
        said.append((number, tune.report(number, step, loss), tune.scheduler.end_of(number)))
    return said


@pytest.mark.parametrize("algorithm", sorted(SCHEDULERS))
@pytest.mark.parametrize("seed", range(3))
def test_replayed_scheduler_decides_as_the_undisturbed_one(open_tune, algorithm, seed) -> None:
    spec = build_sweep(algorithm, ExitSpec(divergence=8, overfitting=0))
    whole = play(open_tune(spec, "whole"), random.Random(seed), 200)
    ends = {each[2].outcome for each in whole if isinstance(each, tuple) and each[2]}
    assert ends == {Outcome.DIVERGED, Outcome.STOPPED if algorithm != "none" else None} - {None}
    assert any(isinstance(each, Heir) for each in whole) == (algorithm == "pbt")
    for cut in range(1, 120, 7):
        rng = random.Random(seed)
        said = play(open_tune(spec, f"cut-{cut}"), rng, cut)
        resumed = open_tune(spec, f"cut-{cut}", life="second")
        assert resumed.ended == {}
        assert said + play(resumed, rng, 200 - cut) == whole


@pytest.mark.parametrize("algorithm", ["asha", "hyperband", "median", "pbt"])
def test_reports_done_again_are_not_judged_again(open_tune, algorithm) -> None:
    spec = build_sweep(algorithm)
    decided = []
    for name in ("undisturbed", "disturbed"):
        rng = random.Random(1)
        play(open_tune(spec, name), rng, 60)
        tune = open_tune(spec, name, life="second")
        if name == "disturbed":
            say_again(tune)
        decided.append(play(tune, rng, 60))
    assert decided[0] == decided[1]


def say_again(tune: Tune) -> None:
    """A host that continues from a saved state repeats a report that may have been lost."""
    for record in tune.history.unfinished():
        for report in record.reports:
            result = {**report.metrics, "step": report.step}
            trial = tune.trial(record.number)
            assert tune.scheduler.on_trial_result(None, trial, result) == "CONTINUE"


def test_stop_that_was_decided_but_not_recorded_is_told_with_its_reason(open_tune) -> None:
    spec = build_sweep()
    tune = open_tune(spec)
    for number in range(3):
        tune.start(number)
    assert tune.report(0, 20, 1.0) == "CONTINUE"
    assert tune.report(1, 20, 9.0, loses_end=True) == "STOP"
    tune.report(0, HORIZON, 1.0, loses_end=True)
    again = open_tune(spec, life="second")
    assert again.ended.keys() == {1}
    assert again.ended[1] == tune.scheduler.end_of(1)


def test_what_ray_tune_adds_to_a_result_is_not_kept() -> None:
    class Added:
        pass

    scheduler, added = build_scheduler(build_sweep()), Added()
    scheduler.take(0, {"step": 10, "eval_loss": 1.0, "config/spec": added})
    gone = weakref.ref(added)
    del added
    assert gone() is None


def test_replay_keeps_the_order_of_the_reports(open_tune) -> None:
    tune = open_tune(build_sweep())
    tune.start(0)
    tune.start(1)
    assert tune.report(1, 20, 9.0) == "CONTINUE"
    assert tune.report(0, 20, 1.0) == "CONTINUE"
    assert open_tune(tune.spec, life="second").ended == {}


def test_repeats_of_the_finals_are_compared_with_nobody(open_tune) -> None:
    tune = open_tune(build_sweep())
    tune.start(0)
    assert tune.report(0, 20, 1.0) == "CONTINUE"
    tune.write("trial_started", trial=1, knobs={}, spec={}, repeat_of=0)
    tune.write("report", trial=1, step=20, metrics={"eval_loss": 9.0})
    tune.write("report", trial=1, step=20, metrics={"eval_loss": 0.1})
    again = open_tune(tune.spec, life="second")
    assert again.ended == {}
    again.start(2)
    assert again.report(2, 20, 0.9) == "CONTINUE"


@pytest.mark.parametrize("algorithm", sorted(SCHEDULERS))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_value_ends_its_trial_and_counts_for_nobody(
    open_tune, algorithm, value
) -> None:
    tune = open_tune(build_sweep(algorithm))
    for number in range(7):
        tune.start(number)
    for number in range(5):
        assert tune.scheduler.on_trial_result(
            None, tune.trial(number), {"step": 20, "eval_loss": value}
        ) == ("STOP")
        end = tune.scheduler.end_of(number)
        assert (end.outcome, end.reason) == (Outcome.DIVERGED, f"eval_loss is {value} at step 20")
    assert tune.report(5, 20, 9.0) == "CONTINUE"


def test_another_metric_that_is_not_finite_ends_a_trial_too() -> None:
    spec = build_sweep("none")
    objective = ObjectiveSpec(metric="eval_accuracy")
    scheduler = build_scheduler(replace(spec, objective=objective))
    scheduler.take(0, {"step": 20, "eval_loss": 1.0, "eval_accuracy": float("nan")})
    assert scheduler.end_of(0).reason == "eval_accuracy is nan at step 20"


@pytest.mark.parametrize("algorithm", sorted(SCHEDULERS))
def test_a_trial_that_broke_counts_for_nobody_and_was_not_stopped(open_tune, algorithm) -> None:
    tune = open_tune(build_sweep(algorithm))
    for number in range(6):
        tune.start(number)
        broken = {**fault_metrics({"step": 27}), "outcome": "failed", "reason": "a bug"}
        if number < 5:
            tune.scheduler.on_trial_complete(None, tune.trial(number), broken)
            assert tune.scheduler.end_of(number) is None
    assert tune.report(5, 30, 2e9) == "CONTINUE"


@pytest.mark.parametrize("algorithm", sorted(SCHEDULERS))
def test_exits_come_first_whatever_the_schedule(algorithm) -> None:
    scheduler = build_scheduler(build_sweep(algorithm, ExitSpec(divergence=3)))
    scheduler.take(0, {"step": 10, "eval_loss": 1.0})
    scheduler.take(0, {"step": 20, "eval_loss": 3.5})
    assert scheduler.end_of(0).outcome is Outcome.DIVERGED
    scheduler.take(0, {"step": 30, "eval_loss": 0.5})
    assert scheduler.end_of(0).outcome is Outcome.DIVERGED


def test_no_schedule_stops_nothing(open_tune) -> None:
    tune = open_tune(build_sweep("none"))
    for number in range(4):
        tune.start(number)
        for step in range(10, HORIZON, 10):
            assert tune.report(number, step, float(1 + number)) == "CONTINUE"
    assert tune.scheduler.next_heir() is None
    assert tune.scheduler.may_start_fresh(1000)


# ------------------------------------------------------------------------------------ ladders


def test_a_trial_below_the_cut_off_of_its_rung_is_stopped(open_tune) -> None:
    tune = open_tune(build_sweep())
    for number, loss in enumerate([0.4, 0.2]):
        tune.start(number)
        assert tune.report(number, 20, loss) == "CONTINUE"
    tune.start(2)
    assert tune.report(2, 10, 9.0) == "CONTINUE"
    assert tune.report(2, 20, 0.5) == "STOP"
    assert tune.scheduler.end_of(2).reason == (
        "others were better at step 20 (rung 1: 0.3000 < 0.5000)"
    )


def test_an_accuracy_is_better_the_higher_it_is() -> None:
    spec = build_sweep()
    objective = ObjectiveSpec(metric="eval_accuracy")
    scheduler = build_scheduler(replace(spec, objective=objective))
    scheduler.take(0, {"step": 20, "eval_accuracy": 0.5})
    scheduler.take(1, {"step": 20, "eval_accuracy": 0.75})
    scheduler.take(2, {"step": 20, "eval_accuracy": 0.25})
    assert scheduler.end_of(1) is None
    assert scheduler.end_of(2).reason == (
        "others were better at step 20 (rung 1: 0.6250 > 0.2500)"
    )


def test_ladders_of_hyperband_have_the_shares_of_the_paper() -> None:
    turns = ladder_turns(3, 2.0)
    assert Counter(turns) == {0: 4, 1: 3, 2: 3}
    assert ladder_turns(1, 2.0) == (0,)
    assert set(turns[:3]) == {0, 1, 2}


def test_a_later_ladder_judges_later(open_tune) -> None:
    tune = open_tune(build_sweep("hyperband"))
    turns = ladder_turns(3, 2.0)
    first_stops = {}
    for number in range(40):
        tune.start(number)
        for step in range(10, HORIZON, 10):
            if tune.report(number, step, float(number)) == "STOP":
                first_stops.setdefault(turns[number % len(turns)], step)
                break
    assert first_stops == {0: 20, 1: 40}  # the third one begins at the horizon: nothing to stop


@pytest.mark.parametrize(
    ("grace", "brackets", "built"), [(20, 9, 3), (80, 3, 1), (20, 2, 2), (40, 9, 2)]
)
def test_no_ladder_begins_beyond_the_horizon(grace, brackets, built) -> None:
    spec = build_sweep("hyperband", grace_steps=grace, brackets=brackets)
    rule = SCHEDULERS["hyperband"](spec)
    assert len(rule._ladders) == built


# ------------------------------------------------------------------------------------- median


def reach(tune: Tune, number: int, losses: list[float]) -> list[str]:
    tune.start(number)
    return [tune.report(number, 10 * (i + 1), loss) for i, loss in enumerate(losses)]


def test_a_trial_worse_than_the_median_of_running_means_is_stopped(open_tune) -> None:
    tune = open_tune(build_sweep("median", min_trials=3))
    for number, loss in enumerate([0.1, 0.2, 0.3]):
        assert reach(tune, number, [9.0, loss, loss]) == ["CONTINUE"] * 3
    assert reach(tune, 3, [9.0, 0.2, 0.9]) == ["CONTINUE"] * 3  # its best is as good
    assert reach(tune, 4, [9.0, 0.8]) == ["CONTINUE", "STOP"]
    assert tune.scheduler.end_of(4).reason == (
        "the median of 4 others is better at step 20 (0.2000 < 0.8000)"
    )


def test_the_median_waits_for_enough_trials_at_the_step(open_tune) -> None:
    tune = open_tune(build_sweep("median", min_trials=3))
    reach(tune, 0, [0.1, 0.1])
    reach(tune, 1, [0.1, 0.1, 0.1])
    reach(tune, 2, [0.1, 0.1, 0.1])
    assert reach(tune, 3, [9.0]) == ["CONTINUE"]  # within the grace
    assert reach(tune, 4, [0.1, 0.1, 9.0]) == ["CONTINUE"] * 3
    assert reach(tune, 5, [8.0, 8.0]) == ["CONTINUE", "STOP"]


# ---------------------------------------------------------------------------------------- pbt


def test_a_schedule_that_cannot_work_is_refused_before_a_trial_starts() -> None:
    with pytest.raises(SweepSpecError, match=r"schedule\.grace_steps: got 40"):
        build_scheduler(build_sweep("pbt", grace_steps=40))


def test_heirs_that_were_started_are_not_started_again(open_tune) -> None:
    tune = open_tune(build_sweep("pbt"))
    for number in range(5):
        tune.start(number)
        tune.report(number, 20, float(number))
    assert [heir.replaces for heir in tune.start_heirs()] == [3, 4]
    for number in range(7, 9):
        tune.start(number)
        assert tune.report(number, 20, 9.0) == "STOP"
    again = open_tune(tune.spec, life="second")
    assert [heir.replaces for heir in again.start_heirs()] == [7, 8]
    assert open_tune(tune.spec, life="third").start_heirs() == []


@pytest.mark.parametrize(("last", "outcome"), [(9.5, Outcome.DIVERGED), (1.0, None)])
def test_a_trial_can_run_away_with_its_last_steps(last, outcome):
    scheduler = EarlyStopping("eval_loss", ExitSpec(divergence=3.0), NoRule())
    scheduler.take(0, {"step": 10, "eval_loss": 3.0})
    scheduler.take(0, {"step": 20, "eval_loss": last, "outcome": "completed"}, is_through=True)
    end = scheduler.end_of(0)
    assert (end.outcome if end else None) == outcome
