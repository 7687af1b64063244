"""`lorchestra status`: the state of a sweep as its folder tells it."""

import json
import threading
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.journal.log import EventLog
from orchestrator.spec.sweep import BudgetSpec, SweepSpec, build_trial
from tests.support.events import event
from trainables.spec import BaseSpec, DataSpec, OptimSpec

SPEC = SweepSpec(
    name="tiny",
    base=BaseSpec(model="owner/name"),
    data=DataSpec(train="owner/rows"),
    optim=OptimSpec(steps=20),
    space={"lora.rank": {"choice": [2, 4]}, "lora.alpha": {"tied": "2 * lora.rank"}},
    budget=BudgetSpec(trials=4, wall_clock_s=600),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a sweep that was interrupted in its second trial."""
    monkeypatch.chdir(tmp_path)
    with EventLog(Path("runs/tiny/events.jsonl")) as log:
        write(log, "sweep_started", sweep_id="s1", spec=SPEC.to_dict(), digest=SPEC.digest)
        write(log, "phase", name="starting Ray", seconds=3.0)
        for trial, rank in enumerate([2, 4]):
            spec = build_trial(SPEC, {"lora.rank": rank}).to_dict()
            write(log, "trial_started", trial=trial, knobs={"lora.rank": rank}, spec=spec)
            write(log, "report", trial=trial, step=10, metrics={"eval_loss": 1.25 - trial})
        end(log, 0, "completed")
    return Path("runs/tiny")


def write(log, kind, **fields):
    log.append(event(kind, **fields))


def end(log, trial, outcome):
    write(log, "trial_ended", trial=trial, outcome=outcome, reason="", step=10, bundle=None)


def status(capsys, *options):
    code = main(["status", "runs/tiny", *options])
    return code, capsys.readouterr().out


def test_an_interrupted_sweep_tells_since_when_how_far_and_how_to_go_on(capsys, folder):
    code, shown = status(capsys)
    assert code == 0
    lines = [line.strip() for line in shown.splitlines()]
    assert lines[1].startswith("interrupted at 20")
    assert lines[1].endswith(" ago, while searching")
    assert lines[2:5] == [
        "go on with: lorchestra resume runs/tiny",
        "trials: 1 done, 1 unfinished, 2 to come",
        "trial 1 leads by the lowest eval_loss: 0.2500 at step 10/20",
    ]
    assert [line.split() for line in lines if line.startswith("* 1")] == [
        ["*", "1", "unfinished", "10", "0.2500", "4", "8"]
    ]


def test_a_sweep_with_a_driver_is_running_and_reading_it_takes_no_lock(capsys, folder):
    with EventLog(folder / "events.jsonl") as log:
        write(log, "sweep_resumed")
        _, shown = status(capsys)
        assert "running since" in shown
        assert "budget:" in shown
        assert "left" in shown
    assert "interrupted at" in status(capsys)[1]


@pytest.mark.parametrize(("outcome", "code"), [("completed", 0), ("cancelled", 1)])
def test_following_ends_with_the_sweep(capsys, folder, outcome, code):
    is_followed = threading.Event()

    def drive():
        with EventLog(folder / "events.jsonl") as log:
            write(log, "sweep_resumed")
            is_open.set()
            is_followed.wait(1.5)
            end(log, 1, "stopped")
            write(log, "sweep_ended", status=outcome, reason="as told")

    is_open = threading.Event()
    driver = threading.Thread(target=drive)
    driver.start()
    is_open.wait()
    found, shown = status(capsys, "--follow")
    driver.join()
    assert found == code
    assert "resumed: 2 trials started before, 1 of them ended" in shown
    assert "  trial 1  stopped" in shown
    assert f"tiny  {outcome}: as told" in shown


def test_json_has_the_state_and_every_trial(capsys, folder):
    code, shown = status(capsys, "--json")
    found = json.loads(shown)
    assert code == 0
    assert {name: found[name] for name in ("name", "state", "phase", "continue_with")} == {
        "name": "tiny",
        "state": "interrupted",
        "phase": "searching",
        "continue_with": "lorchestra resume runs/tiny",
    }
    assert found["hosts"] == {"memory": [], "seats": []}
    assert found["trials"] == {"done": 1, "unfinished": 1, "to_come": 2}
    assert found["leaderboard"][1]["settings"] == {"lora.rank": 4, "lora.alpha": 8.0}
    assert found["leaderboard"][1]["metrics"] == {"eval_loss": 0.25}
