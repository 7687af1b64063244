"""What a user sees while a sweep runs."""

import io
import re
import signal
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from orchestrator.hosts.members import HostActivity
from orchestrator.interrupts import STOPPING, interrupt_on
from orchestrator.journal.history import SweepHistory
from orchestrator.live.display import ProgressDisplay
from orchestrator.search.budget import Budget
from orchestrator.spec.sections import ObjectiveSpec
from orchestrator.spec.sweep import BudgetSpec, SweepSpec
from tests.support.events import entry
from trainables.hosts.orders import WORST_METRICS
from trainables.spec import BaseSpec, DataSpec, OptimSpec

ESCAPES = re.compile(r"\x1b\[[0-9?;]*[a-zA-Z]")


class Sweep:
    """A history that grows, one second with each event."""

    def __init__(self, **history: Any) -> None:
        self.history = SweepHistory(**history)
        self.now = 0.0

    def tell(self, kind: str, **fields: Any) -> None:
        self.now += 1
        self.history.apply(entry(kind, self.now, **fields))

    def start(self, trial: int) -> None:
        knobs = {"lora.rank": 8, "lora.targets": ["q_proj", "v_proj"]}
        self.tell("trial_started", trial=trial, knobs=knobs, spec={})

    def report(self, trial: int, step: int, loss: float, accuracy: float = 0.66) -> None:
        metrics = {"eval_loss": loss, "eval_accuracy": accuracy}
        is_fault = loss == WORST_METRICS["eval_loss"]
        self.tell("report", trial=trial, step=step, metrics=metrics, is_fault=is_fault)

    def end(self, trial: int, outcome: str = "completed", reason: str = "") -> None:
        fields = {"outcome": outcome, "reason": reason, "step": 0, "bundle": None}
        self.tell("trial_ended", trial=trial, **fields)


@pytest.fixture
def sweep() -> Sweep:
    return Sweep()


@pytest.fixture
def spec() -> SweepSpec:
    return SweepSpec(
        name="wordnet-classes",
        base=BaseSpec(model="owner/name"),
        data=DataSpec(train="owner/rows"),
        optim=OptimSpec(steps=80),
        space={"lora.rank": {"choice": [4, 8, 16]}},
        budget=BudgetSpec(trials=40, wall_clock_s=600),
    )


def open_console(terminal: bool, width: int = 100) -> Console:
    return Console(
        width=width, height=40, file=io.StringIO(), force_terminal=terminal, color_system=None
    )


def written(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def plain_lines(console: Console) -> list[str]:
    """The lines without their time, which each one must have."""
    lines = written(console).splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  \S", line) for line in lines)
    return [line[21:] for line in lines]


def last_frame(console: Console) -> list[str]:
    text = ESCAPES.sub("", written(console))
    return text[text.rindex("wordnet-classes") :].replace("\r", "").splitlines()


# -------------------------------------------------------------------------------- plain lines


def test_each_thing_that_happened_is_one_line(spec: SweepSpec, sweep: Sweep) -> None:
    console = open_console(terminal=False, width=40)
    with ProgressDisplay(spec, console) as display:
        display.phase("searching")
        sweep.start(3)
        sweep.report(3, 20, 0.412)
        display.update(sweep.history, "2 hosts are up")
        sweep.end(3, "completed")
        sweep.start(4)
        sweep.end(4, "failed", "host\nlost [red]\x1b[31m")
        display.update(sweep.history)
        display.phase("registering")
    assert plain_lines(console) == [
        "searching",
        "trial 3  started  rank 8, targets q_proj+v_proj",
        "trial 3  step 20/80  eval_loss 0.4120  eval_accuracy 0.6600",
        "2 hosts are up",
        "trial 3  completed  best so far: eval_loss 0.4120",
        "trial 4  started  rank 8, targets q_proj+v_proj",
        "trial 4  failed  host lost [red] [31m",
        "registering",
    ]


@pytest.mark.parametrize("terminal", [False, True], ids=["plain", "terminal"])
def test_a_damaged_state_is_said(spec: SweepSpec, sweep: Sweep, terminal: bool) -> None:
    console = open_console(terminal)
    with ProgressDisplay(spec, console) as display:
        sweep.start(3)
        sweep.tell("state_lost", trial=3, step=40, back_to=20)
        display.update(sweep.history)
        display.update(sweep.history)
    said = "trial 3: its saved state of step 40 is damaged; the trial continues from step 20"
    lines = last_frame(console) if terminal else plain_lines(console)
    assert [line.strip() for line in lines].count(said) == 1


def test_nothing_is_said_twice(spec: SweepSpec, sweep: Sweep) -> None:
    console = open_console(terminal=False)
    with ProgressDisplay(spec, console) as display:
        for trial in range(3):
            sweep.start(trial)
            sweep.report(trial, 20, 1.0)
            for _ in range(3):
                display.phase("searching")
                display.update(sweep.history, "a note")
        sweep.end(0, "stopped", "others were better")
        display.update(sweep.history)
        display.update(sweep.history)
    lines = plain_lines(console)
    assert len(lines) == len(set(lines)) == 9


def test_resumed_sweep_tells_its_past_in_one_line(spec: SweepSpec, sweep: Sweep) -> None:
    console = open_console(terminal=False)
    for trial in range(2):
        sweep.start(trial)
        sweep.report(trial, 20, 1.0)
    sweep.end(0, "stopped", "others were better")
    sweep.tell("sweep_resumed")
    with ProgressDisplay(spec, console) as display:
        display.update(sweep.history)
        sweep.report(1, 40, 0.5)
        display.update(sweep.history)
    assert plain_lines(console) == [
        "resumed: 2 trials started before, 1 of them ended",
        "trial 1  step 40/80  eval_loss 0.5000  eval_accuracy 0.6600",
    ]


def test_stand_in_of_a_fault_is_not_shown(spec: SweepSpec, sweep: Sweep) -> None:
    console = open_console(terminal=False)
    with ProgressDisplay(spec, console) as display:
        sweep.start(0)
        sweep.report(0, 20, 1e9)
        sweep.end(0, "diverged", "loss nan at step 11")
        display.update(sweep.history)
    assert plain_lines(console)[1:] == ["trial 0  diverged  loss nan at step 11"]


def test_dumb_terminal_gets_plain_lines(spec: SweepSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console = open_console(terminal=True)
    with ProgressDisplay(spec, console) as display:
        display.phase("searching")
    assert plain_lines(console) == ["searching"]


def test_only_a_trial_that_beats_the_best_is_called_so(spec: SweepSpec, sweep: Sweep) -> None:
    console = open_console(terminal=False)
    with ProgressDisplay(spec, console) as display:
        for trial, loss in enumerate([0.9, 0.4, 0.7, 0.3]):
            sweep.start(trial)
            sweep.report(trial, 80, loss)
            sweep.end(trial, "failed" if trial == 3 else "completed")
            display.update(sweep.history)
    ends = [line for line in plain_lines(console) if "completed" in line or "failed" in line]
    assert [line.split("  ")[2:] for line in ends] == [
        ["best so far: eval_loss 0.9000"], ["best so far: eval_loss 0.4000"], [], [],
    ]  # fmt: skip


def test_an_event_late_in_a_long_sweep_is_told_as_fast_as_an_early_one(
    spec: SweepSpec, sweep: Sweep
) -> None:
    def tell(trials: range) -> float:
        began = time.thread_time()
        for trial in trials:
            sweep.start(trial)
            display.update(sweep.history)
            sweep.end(trial)
            display.update(sweep.history)
        return time.thread_time() - began

    with ProgressDisplay(spec, open_console(terminal=False)) as display:
        early = tell(range(100))
        for trial in range(100, 5000):
            sweep.start(trial)
            sweep.end(trial)
        display.update(sweep.history)
        # Looking at all trials each time took 20 times as long as an early event.
        assert tell(range(5000, 5100)) < 4 * early


# --------------------------------------------------------------------------------- a terminal


def table_of(frame: list[str]) -> list[list[str]]:
    """The rows of the table, in words."""
    (rule,) = [place for place, line in enumerate(frame) if line.startswith("──")]
    rows = [line.split() for line in frame[rule + 1 :]]
    return [row for row in rows if (row and row[0].strip("*").isdigit()) or row[:1] == ["*"]]


def test_terminal_shows_running_trials_then_the_best(spec: SweepSpec, sweep: Sweep) -> None:
    console = open_console(terminal=True)
    for trial, loss in enumerate([0.9, 0.4, 0.7, 0.5, 123456.789]):
        sweep.start(trial)
        sweep.report(trial, 40, loss)
    sweep.start(5)
    sweep.end(0, "completed")
    sweep.end(1, "stopped", "others were better")
    sweep.end(4, "failed", "[red]host lost")
    budget = Budget(spec.budget, sweep.history, clock=lambda: 125.0)
    sweep.history.meter.begin(0.0)
    with ProgressDisplay(spec, console) as display:
        display.budget = budget
        display.phase("searching")
        display.update(sweep.history, "2 hosts are up")
    frame = last_frame(console)
    assert max(map(len, frame)) <= 100
    assert [line.rstrip() for line in frame[1:6]] == [
        "  searching · 0 s",
        "trials: 3 done, 2 running, 35 to come",
        "budget: 7:55 of 10:00 left",
        "2 hosts are up",
        "trial 1 leads by the lowest eval_loss: 0.4000 at step 40/80",
    ]
    rows = table_of(frame)
    assert [row[:3] for row in rows] == [
        ["2", "running", "40"], ["3", "running", "40"], ["5", "waiting", "0"],
        ["*", "1", "stopped"], ["0", "completed", "40"], ["4", "failed", "40"],
    ]  # fmt: skip
    assert rows[0][3:] == ["0.7000", "8", "0.6600"]
    assert frame[-1].rstrip() == "trial 4 failed: [red]host lost"


def test_what_hosts_do_is_shown_with_its_duration(spec: SweepSpec, sweep: Sweep) -> None:
    console = open_console(terminal=True)
    sweep.start(3)
    loading = HostActivity(host_id="h000", stage="loading", form="nf4", seats=2)
    with ProgressDisplay(spec, console) as display:
        display.phase("evaluating serving forms")
        display.step("form 3 of 8: merged, trial 0", 2, 8)
        display.show_hosts(
            [loading, replace(loading, stage="working", host_id="h001", trials=(3,))]
        )
        display.update(sweep.history)
    frame = [line.strip() for line in last_frame(console)]
    assert "form 3 of 8: merged, trial 0 · 0 s; about 0 s left" in frame
    assert "host h000: loading base nf4 · 0 s" in frame
    assert "host h001: base nf4, 1 of 2 seats: trial 3 · 0 s" in frame
    assert table_of(frame)[0][:3] == ["3", "running", "0"]  # seated, without a report so far


def test_a_log_tells_phases_steps_and_stages_of_hosts_once(spec: SweepSpec) -> None:
    console = open_console(terminal=False)
    host = HostActivity(host_id="h000", stage="starting", form="fp4", seats=2)
    with ProgressDisplay(spec, console) as display:
        for _ in range(2):
            display.phase("evaluating")
            display.step("evaluation 1 of 2: measuring the bare base fp4 on test rows")
        for stage in ("starting", "loading", "working"):
            display.show_hosts([replace(host, stage=stage)])
            display.show_hosts([replace(host, stage=stage, trials=(1,))])
        display.print("Rows: 12")
    assert plain_lines(console) == [
        "evaluating",
        "evaluation 1 of 2: measuring the bare base fp4 on test rows",
        "host h000: starting a worker for base fp4",
        "host h000: loading base fp4",
        "host h000: base fp4 is loaded, 2 seats",
        "Rows: 12",
    ]


def test_a_refused_sweep_leaves_no_picture_behind(spec: SweepSpec) -> None:
    console = open_console(terminal=True)

    def run() -> None:
        with ProgressDisplay(spec, console) as display:
            display.phase("checking")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        run()
    assert written(console).endswith("\x1b[2K")


def test_the_table_stars_the_trial_that_the_ranking_has_first(spec: SweepSpec) -> None:
    objective = ObjectiveSpec(constraints=("eval_accuracy >= 0.6",))
    spec, sweep, console = replace(spec, objective=objective), Sweep(), open_console(terminal=True)
    for trial, (loss, accuracy) in enumerate([(0.1, 0.5), (0.3, 0.7), (0.4, 0.7), (0.5, 0.7)]):
        sweep.start(trial)
        sweep.report(trial, 40, loss, accuracy)
    sweep.end(0, "completed")  # the lowest loss, and too low an accuracy
    sweep.end(1, "cancelled", "the budget is spent")
    sweep.end(2, "completed")
    with ProgressDisplay(spec, console) as display:
        display.update(sweep.history)
    frame = last_frame(console)
    best = sweep.history.best(spec.objective)
    assert best is not None
    assert best.number == 1
    assert [row[:3] for row in table_of(frame) if row[0] == "*"] == [["*", "1", "cancelled"]]
    assert "trial 1 leads by the lowest eval_loss: 0.3000 at step 40/80" in "\n".join(frame)


def test_a_running_trial_that_breaks_a_constraint_is_not_the_best(spec: SweepSpec) -> None:
    objective = ObjectiveSpec(constraints=("eval_accuracy >= 0.6",))
    spec, sweep, console = replace(spec, objective=objective), Sweep(), open_console(terminal=True)
    for trial, (loss, accuracy) in enumerate([(0.1, 0.5), (0.3, 0.7)]):
        sweep.start(trial)
        sweep.report(trial, 40, loss, accuracy)
    with ProgressDisplay(spec, console) as display:
        display.update(sweep.history)
    assert "trial 1 leads by the lowest eval_loss: 0.3000" in "\n".join(last_frame(console))


@pytest.mark.parametrize("width", [80, 100])
def test_many_trials_fit_the_terminal(spec: SweepSpec, sweep: Sweep, width: int) -> None:
    console = open_console(terminal=True, width=width)
    for trial in range(50):
        sweep.start(trial)
        sweep.report(trial, 20, 10.0 + trial)
        if trial < 48:
            sweep.end(trial, "infeasible" if trial % 2 else "completed", "too large " * 30)
    with ProgressDisplay(spec, console) as display:
        display.update(sweep.history)
    frame = last_frame(console)
    assert max(map(len, frame)) <= width
    assert len(frame) <= console.height
    rows = table_of(frame)
    assert 20 < len(rows) < 40
    assert f"and {50 - len(rows)} more trials" in "\n".join(frame)
    assert [row[0] for row in rows[:2]] == ["48", "49"]


def test_interrupt_restores_the_terminal(spec: SweepSpec, sweep: Sweep) -> None:
    console = open_console(terminal=True)

    def run() -> None:
        with ProgressDisplay(spec, console) as display:
            display.update(sweep.history)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    text = written(console)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again
    with ProgressDisplay(spec, console):  # a console can hold one Live at a time
        pass


def test_the_first_ctrl_c_is_answered_in_the_picture(spec: SweepSpec) -> None:
    console, before = open_console(terminal=True), signal.getsignal(signal.SIGINT)
    interrupt_on(signal.SIGINT)

    def run() -> None:
        with ProgressDisplay(spec, console):
            signal.raise_signal(signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            run()
    finally:
        interrupt_on()
        signal.signal(signal.SIGINT, before)
    assert STOPPING in "\n".join(last_frame(console))


def test_terminal_redraws_itself(spec: SweepSpec, sweep: Sweep) -> None:
    console = open_console(terminal=True)
    with ProgressDisplay(spec, console) as display:
        sweep.start(0)
        for step in range(1000):
            display.update(sweep.history, f"note {step}")
        deadline = time.monotonic() + 10
        while "note 999" not in written(console) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "note 999" in written(console)
    assert written(console).count("trials: ") < 60  # frames, not one per update


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "plain"])
def test_threads_may_update_at_once(spec: SweepSpec, sweep: Sweep, terminal: bool) -> None:
    console = open_console(terminal)
    with ProgressDisplay(spec, console) as display:

        def tell(trial: int) -> None:
            sweep.start(trial)
            for step in range(1, 21):
                sweep.report(trial, step, 1.0 / step)
                display.update(sweep.history)
            sweep.end(trial)
            display.update(sweep.history)

        threads = [threading.Thread(target=tell, args=(trial,)) for trial in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if terminal:
        assert "8 done, 0 running, 32 to come" in "\n".join(last_frame(console))
    else:
        lines = plain_lines(console)
        assert len(lines) == len(set(lines)) == 8 * 22
