"""The state of a sweep as its folder tells it: running, interrupted, ended."""

import pytest

from orchestrator.journal.history import SweepHistory
from orchestrator.live.state import read_state
from orchestrator.spec.sweep import BudgetSpec, SweepSpec
from tests.support.events import entry
from trainables.spec import BaseSpec, DataSpec, OptimSpec

SPEC = SweepSpec(
    name="tiny",
    base=BaseSpec(model="owner/name"),
    data=DataSpec(train="owner/rows"),
    optim=OptimSpec(steps=20),
    space={"lora.rank": {"choice": [2, 4]}, "lora.alpha": {"tied": "2 * lora.rank"}},
    budget=BudgetSpec(trials=4, wall_clock_s=600),
)


@pytest.mark.parametrize(
    ("last", "stages", "phase"),
    [
        ("", (), "starting Ray"),
        ("starting Ray", (), "searching"),
        ("starting Ray", ("search",), "training the best again"),
        ("starting Ray", ("search", "repeats"), "evaluating"),
        ("evaluating serving forms", ("search", "repeats"), "registering"),
        ("recording", (), "recording"),
    ],
)
def test_the_phase_in_work_follows_the_last_that_ended(last, stages, phase):
    history = SweepHistory(status="running", last_phase=last)
    for stage in stages:
        history.apply(entry("stage_ended", stage=stage, reason="", under={}))
    assert read_state(history, "runs/tiny", is_driven=True).phase == phase


def test_a_completed_sweep_has_no_command_left_and_a_failed_one_has():
    assert read_state(SweepHistory(status="completed"), "runs/tiny", is_driven=False).again == ""
    failed = read_state(SweepHistory(status="failed"), "runs/tiny", is_driven=False)
    assert (failed.condition, failed.again) == ("ended", "lorchestra resume runs/tiny")
