"""Which checkpoints a running sweep removes, and what it keeps for those that go on."""

import shutil
from dataclasses import replace

import pytest

from orchestrator.checkpoints import SPARE, remove_unneeded
from orchestrator.finals.standings import finalists
from orchestrator.spec.sweep import FinalsSpec, HostsSpec, ScheduleSpec
from tests.support.ended import ENDED_SPEC, EndedSweep
from trainables.spec import OptimSpec


@pytest.fixture
def build_sweep(tmp_path):
    sweeps = []

    def build(location=tmp_path / "sweep", **changes):
        sweeps.append(EndedSweep(location, replace(ENDED_SPEC, **changes)))
        return sweeps[-1]

    yield build
    for sweep in sweeps:
        sweep.log.close()


def tidy(sweep):
    return remove_unneeded(sweep.spec, sweep.record, sweep.storage)


def states(sweep):
    return {trial for trial, what in sweep.files() if what == "state"}


def bundles(sweep):
    return {trial for trial, what in sweep.files() if what == "bundle"}


def test_losers_lose_their_checkpoints_and_keep_their_adapters(build_sweep):
    """Losses of the trials: 4, 1, 3 and 2; one finalist, so that the best two are kept."""
    sweep = build_sweep()
    assert SPARE * sweep.spec.finals.top == 2
    assert tidy(sweep) == [0, 2]
    assert states(sweep) == {1, 3}
    assert bundles(sweep) == {0, 1, 2, 3}
    assert sweep.record.history.trials[0].pruned == {"state"}
    assert tidy(sweep) == []


def test_finalists_are_the_same_before_and_after(build_sweep):
    sweep = build_sweep(finals=FinalsSpec(top=2, seeds=0, forms=()))
    before = [trial.number for trial in finalists(sweep.spec, sweep.record.history)]
    sweep.trial(4, "stopped", 5.0)
    assert tidy(sweep) == [4]
    assert [trial.number for trial in finalists(sweep.spec, sweep.record.history)] == before


def test_trials_that_may_go_on_keep_their_checkpoints(build_sweep):
    sweep = build_sweep()
    sweep.trial(4, "", 9.0, step=10)  # running
    sweep.trial(5, "cancelled", 9.0, step=10, reason="the budget is spent")
    sweep.trial(6, "stopped", 9.0, step=10)
    sweep.trial(7, "diverged", 9.0, step=10)
    sweep.trial(8, "completed", 9.0, repeat_of=1)
    assert tidy(sweep) == [0, 2, 6, 7]
    assert states(sweep) == {1, 3, 4, 5, 8}


def test_an_adapter_that_is_not_exported_yet_is_exported_from_the_checkpoint(build_sweep):
    sweep = build_sweep()
    sweep.storage.remove_bundle(0)
    assert tidy(sweep) == [2]
    shutil.copytree(sweep.storage.bundle_location(1), sweep.storage.bundle_location(0))
    assert tidy(sweep) == [0]


@pytest.mark.parametrize(
    "changes",
    [
        {"hosts": HostsSpec(checkpoints="all")},
        {"schedule": ScheduleSpec(algorithm="pbt"), "optim": OptimSpec(steps=40)},
    ],
    ids=["by the user's word", "copies may be made of them"],
)
def test_all_checkpoints_are_kept(build_sweep, changes):
    sweep = build_sweep(**changes)
    assert tidy(sweep) == []
    assert states(sweep) == {0, 1, 2, 3}


def test_a_sweep_in_a_bucket_does_the_same(build_sweep, s3_location):
    sweep = build_sweep(s3_location)
    assert tidy(sweep) == [0, 2]
    assert states(sweep) == {1, 3}


def test_a_sweep_whose_losers_have_no_checkpoints_goes_on(build_sweep):
    sweep = build_sweep()
    tidy(sweep)
    sweep.end()
    assert sweep.again().is_over()
