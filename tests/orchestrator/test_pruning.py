"""What is removed of a sweep that is over, what stays, and how the sweep goes on without it."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator import run_sweep
from orchestrator.errors import SweepInUseError, SweepSpecError, SweepStorageError
from orchestrator.finals.standings import finalists
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.log import read_events
from orchestrator.journal.paths import bundle_folder, state_folder
from orchestrator.journal.recording import SweepRecord
from orchestrator.journal.sweep_storage import SweepStorage, read_history
from orchestrator.pruning import plan_pruning, prune, spec_at_end
from orchestrator.report.report import build_report
from orchestrator.resuming import SweepProgress
from orchestrator.spec.sweep import (
    BudgetSpec,
    FinalsSpec,
    RegisterSpec,
    ScheduleSpec,
    parse_sweep,
)
from tests.support.ended import BUNDLE, ENDED_SPEC, STATE, EndedSweep
from tests.support.events import event
from trainables.spec import OptimSpec


@pytest.fixture
def scene(location):
    scene = EndedSweep(location)
    yield scene
    scene.log.close()


@pytest.fixture
def local(tmp_path):
    scene = EndedSweep(tmp_path / "sweep")
    yield scene
    scene.log.close()


def whats(folders):
    return {(folder.trial, folder.what) for folder in folders}


def whys(folders):
    return {folder.trial: folder.why for folder in folders}


# --------------------------------------------------------------------------------- the plan


def test_states_of_losers_go_and_a_plan_touches_nothing(scene):
    before = scene.end().files()
    plan = scene.plan()
    assert whats(plan.items) == {(0, "state"), (2, "state"), (3, "state")}
    assert scene.files() == before
    assert read_history(scene.storage.location).trials[0].pruned == frozenset()


def test_sizes_are_those_of_the_files(local):
    plan = local.end().plan(bundles=True)
    assert {(item.what, item.bytes) for item in plan.items} == {
        ("state", STATE), ("bundle", BUNDLE)
    }  # fmt: skip
    assert plan.bytes == 3 * (STATE + BUNDLE)
    assert {item.path for item in plan.items if item.trial == 3} == {
        f"{local.storage.location}/{folder(3)}" for folder in (state_folder, bundle_folder)
    }


def test_everything_has_a_reason(local):
    plan = local.end().plan(keep=2)
    assert whys(plan.items) == dict.fromkeys((0, 2), "completed, and not among the best")
    kept = {(one.trial, one.what): one.why for one in plan.kept}
    assert kept[1, "state"] == kept[1, "bundle"] == "finalist 1"
    assert kept[3, "state"] == "number 2 of the search"
    assert kept[0, "bundle"] == "adapters are kept"


def test_the_best_trials_stay_whole(local):
    assert whats(local.end().plan(keep=3, bundles=True).items) == {(0, "state"), (0, "bundle")}
    with pytest.raises(SweepSpecError, match="keep: got -1; allowed: 0 or more trials"):
        local.plan(keep=-1)


def test_repeats_of_finalists_stay_and_those_of_others_go(local):
    local.trial(4, "completed", 1.1, repeat_of=1)
    local.trial(5, "completed", 1.2, repeat_of=3)
    plan = local.end().plan()
    assert whys(plan.kept)[4] == "repeats finalist 1"
    assert whys(plan.items)[5] == "repeats trial 3, which is no finalist"


def test_what_was_registered_stays(local):
    local.record.add(event("registered", trial=0, ref="tiny/1", digest="sha256:00"))
    plan = local.end().plan(bundles=True)
    assert whys(plan.kept)[0] == "registered as tiny/1"
    assert {item.trial for item in plan.items} == {2, 3}


def test_a_trial_that_a_larger_budget_goes_on_with_stays_with_its_parent(local):
    parent = {"trial": 2, "step": 10, "replaces": 0}
    local.trial(4, "cancelled", 9.0, step=10, reason="the budget is spent", parent=parent)
    local.trial(5, "cancelled", 9.0, step=10, reason="stopped by the user")
    plan = local.end().plan(bundles=True)
    assert whys(plan.kept)[4] == "a larger budget continues it"
    assert whys(plan.kept)[2] == "trial 4 continues from it"
    assert {item.trial for item in plan.items} == {0, 3, 5}


def test_a_parent_stays_whose_copy_was_not_started_yet(tmp_path):
    schedule = ScheduleSpec(algorithm="pbt", grace_steps=10, population=4, quantile=0.5)
    spec = replace(ENDED_SPEC, optim=OptimSpec(steps=40), schedule=schedule)
    scene = EndedSweep(tmp_path / "sweep", spec)
    for number, loss in ((4, 5.5), (5, 5.6), (6, 5.7), (7, 9.0)):
        # 7 is the worst at the rung: a copy of one of the two best there is due
        scene.trial(number, "stopped", loss, step=10)
    plan = scene.end().plan()
    due = [number for number, why in whys(plan.kept).items() if "copy" in why]
    assert len(due) == 1
    assert due[0] in (4, 5)
    assert (due[0], "state") in whats(plan.kept)
    assert whys(plan.items).keys() == {0, 2, 3, 4, 5, 6, 7} - set(due)


def test_a_state_stays_while_an_adapter_can_be_made_of_it_only(local):
    (Path(local.storage.bundle_location(0)) / "manifest.json").unlink()
    local.end()
    assert whys(local.plan().kept)[0] == "its adapter was not exported yet"
    items = {(item.trial, item.what): item.bytes for item in local.plan(bundles=True).items}
    assert items[0, "state"] == STATE
    assert items[0, "bundle"] == 0  # nobody is to export it from what is gone


def test_adapters_of_earlier_steps_go_with_the_adapter(scene):
    scene.leave(0, part="-step-10")
    scene.leave(1, part="-step-10")
    scene.end()
    assert (0, "bundle-step-10") in scene.files()
    scene.prune(scene.plan(bundles=True))
    assert (0, "bundle-step-10") not in scene.files()
    assert (1, "bundle-step-10") in scene.files()


def test_a_diverged_trial_is_a_loser_like_any_other(local):
    local.trial(4, "diverged", 0.1)
    assert (4, "state") in whats(local.end().plan(keep=9).items)


# ----------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("status", ["running", "cancelled"])
def test_a_sweep_that_is_not_over_is_refused(local, status):
    local.progress.end("search", "")
    if status == "cancelled":
        local.record.add(event("sweep_ended", status=status, reason=""))
    said = f"sweep: the sweep is {status}, with work left; allowed: a sweep that has ended"
    with pytest.raises(SweepStorageError, match=said):
        local.plan()


def test_a_storage_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(SweepStorageError, match="the sweep is not started"):
        plan_pruning(SweepStorage(tmp_path), SweepHistory(), ENDED_SPEC, keep=0, bundles=False)
    with pytest.raises(SweepStorageError, match="got a folder without a sweep"):
        spec_at_end(SweepHistory())


def test_a_sweep_that_ended_under_other_settings_is_refused(local):
    local.end()
    larger = replace(ENDED_SPEC, finals=FinalsSpec(top=2, seeds=0, forms=()))
    with pytest.raises(SweepStorageError, match="ended under other settings of finals; allowed"):
        local.plan(spec=larger)


def test_a_sweep_in_use_is_refused(scene):
    scene.end()
    plan = scene.plan()
    before = scene.files()
    with scene.open_log(), pytest.raises(SweepInUseError, match="in use by process"):
        scene.prune(plan)
    assert scene.files() == before


def test_a_plan_of_what_has_changed_since_is_refused(local):
    local.end()
    plan = local.plan()
    with local.open_log() as log:
        log.append(event("registered", trial=0, ref="tiny/1", digest="sha256:00"))
    before = local.files()
    with pytest.raises(SweepStorageError, match="has changed since the plan was made"):
        local.prune(plan)
    assert local.files() == before


# ------------------------------------------------------------------------- what it leaves behind


def test_pruning_removes_what_the_plan_says_and_records_it(scene):
    scene.end()
    scene.prune(scene.plan(bundles=True))
    assert scene.files() == {(1, "state"), (1, "bundle")}
    trials = read_history(scene.storage.location).trials
    assert {number: trial.pruned for number, trial in trials.items()} == {
        1: frozenset(), **dict.fromkeys((0, 2, 3), frozenset({"state", "bundle"})),
    }  # fmt: skip
    assert [trials[number].bundle for number in range(4)] == [None, bundle_folder(1), None, None]
    assert scene.plan(bundles=True).items == ()


def test_adapters_can_go_after_the_states(scene):
    scene.end()
    scene.prune(scene.plan())
    assert {what for _, what in whats(scene.plan(bundles=True).items)} == {"bundle"}
    scene.prune(scene.plan(bundles=True))
    assert scene.files() == {(1, "state"), (1, "bundle")}


def test_what_a_killed_pruning_left_is_found_again(local):
    local.end()
    with local.open_log() as log:
        log.append(event("pruned", what="state", trials=[0, 2, 3]))
    local.prune(local.plan())
    assert {number for number, what in local.files() if what == "state"} == {1}


def test_the_mirror_of_a_bucket_forgets_what_was_pruned(s3_location):
    scene = EndedSweep(s3_location)
    fetched = scene.storage.fetch_bundle(0)
    scene.end().prune(scene.plan(bundles=True))
    assert not fetched.exists()
    with pytest.raises(SweepStorageError, match="no such bundle"):
        scene.storage.fetch_bundle(0)


def test_a_pruned_sweep_says_what_it_said_before(scene):
    def say():
        history = read_history(scene.storage.location)
        report = build_report(spec_at_end(history), history, scene.storage.folder)
        return report.leaderboard.to_csv(), report.best, report.status, dict(report.spent)

    scene.end()
    before = say()
    scene.prune(scene.plan(bundles=True))
    assert say() == before


def test_run_again_a_pruned_sweep_has_nothing_to_do(scene):
    scene.end()
    scene.prune(scene.plan(bundles=True))
    progress = scene.again()
    assert progress.is_over()
    assert progress.record.history.resumes == 0


def test_a_larger_budget_goes_on_with_what_was_cut_short_alone(scene):
    scene.trial(4, "cancelled", 9.0, step=10, reason="the budget is spent")
    scene.end()
    scene.prune(scene.plan(bundles=True))
    history = scene.again(replace(ENDED_SPEC, budget=BudgetSpec(trials=12))).record.history
    assert [trial.number for trial in history.unfinished()] == [4]
    assert (4, "state") in scene.files()


def test_more_finalists_than_were_kept_are_refused(local):
    local.end()
    local.prune(local.plan(keep=2))
    local.again(replace(ENDED_SPEC, finals=FinalsSpec(top=2, seeds=3, forms=())))
    said = r"finals\.top: got 4; allowed: up to 2, because the state of trial 2, .*, was pruned"
    with pytest.raises(SweepSpecError, match=said):
        local.again(replace(ENDED_SPEC, finals=FinalsSpec(top=4, seeds=0, forms=())))


def test_a_trial_without_a_state_does_not_move_up_into_the_finals(local):
    local.trial(4, "cancelled", 0.5, step=10, reason="the budget is spent")
    local.end()
    local.prune(local.plan())  # trial 4 alone is a finalist
    larger = replace(ENDED_SPEC, budget=BudgetSpec(trials=12))
    history = local.again(larger).record.history
    with local.open_log() as log:
        end = {"outcome": "diverged", "reason": "", "step": 20, "bundle": None}
        log.append(event("trial_ended", trial=4, **end))
    history = read_history(local.storage.location)
    assert [trial.number for trial in history.ranking(ENDED_SPEC.objective)] == [1, 3, 2, 0]
    assert finalists(larger, history) == []


def test_the_settings_at_the_end_are_those_of_the_last_run(local):
    local.end()
    larger = replace(
        ENDED_SPEC, budget=BudgetSpec(trials=12), register=RegisterSpec(top=1, promote=False)
    )
    with local.open_log() as log:
        record = SweepRecord(log, SweepHistory.read(log.path), lambda history: None)
        progress = SweepProgress(spec=larger, storage=local.storage, record=record)
        progress.start_or_resume()
        for stage in ("search", "repeats"):
            progress.end(stage, "")
        record.add(event("sweep_ended", status="completed", reason=""))
    found = spec_at_end(read_history(local.storage.location))
    assert (found.budget, found.register) == (larger.budget, larger.register)
    assert local.plan(spec=found).paths == local.plan(spec=larger).paths


# --------------------------------------------------------------------------------- for real


def run_quietly(spec, storage):
    console = Console(file=io.StringIO(), width=100)
    report = run_sweep(spec, storage, console=console)
    return report, console.file.getvalue()


@pytest.mark.slow
@pytest.mark.ray
def test_a_pruned_sweep_runs_again_and_on(local_ray, tiny_base, tiny_data, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    spec = parse_sweep(
        {
            "name": "tiny",
            "base": {"model": str(tiny_base), "compute_dtype": "float32"},
            "data": {
                "train": str(tiny_data), "validation_fraction": 0.2, "test_fraction": 0.2,
                "max_tokens": 32,
            },
            "optim": {"steps": 4, "batch_size": 4},
            "eval": {"every": 2},
            "space": {"optim.learning_rate": {"log_uniform": [2e-3, 2e-2]}},
            "schedule": {"algorithm": "none"},
            "budget": {"trials": 3},
            "hosts": {"seats": 2},
            "finals": {"top": 1, "seeds": 0, "forms": []},
        },
        tmp_path,
    )  # fmt: skip
    storage = SweepStorage(tmp_path / "runs" / "tiny")
    first, _ = run_quietly(spec, storage.location)
    history = read_history(storage.location)
    at_end = spec_at_end(history)
    prune(plan_pruning(storage, history, at_end, keep=1, bundles=True), storage, at_end)
    assert len([trial for trial in range(3) if storage.has_bundle(trial)]) == 1

    again, said = run_quietly(spec, storage.location)
    assert "searching" not in said
    assert again.leaderboard.equals(first.leaderboard)
    assert again.best == first.best

    more, _ = run_quietly(replace(spec, budget=BudgetSpec(trials=4)), storage.location)
    assert sorted(more.leaderboard["trial"]) == [0, 1, 2, 3]
    assert more.status == "completed"
    events = [one.kind for one in read_events(storage.folder / "events.jsonl")]
    assert events.count("trial_started") == 4
    assert len([trial for trial in range(3) if storage.has_bundle(trial)]) == 1
    with pytest.raises(SweepSpecError, match=r"finals\.top: got 4; allowed: up to [12], because"):
        run_quietly(replace(spec, finals=FinalsSpec(top=4, seeds=0, forms=())), storage.location)
