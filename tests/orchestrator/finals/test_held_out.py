"""Who comes to the last round, what is measured there, and what a resume need not repeat."""

from dataclasses import replace

import pytest
import ray

from orchestrator.finals.held_out import (
    are_finalists_evaluated,
    contenders,
    evaluate_finalists,
)
from orchestrator.hosts.members import group_key
from orchestrator.journal.paths import bundle_folder, state_folder
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.spec.finals_sections import FinalsSpec
from tests.support.damage import empty
from tests.support.events import event
from trainables.hosts.orders import TaskReport
from trainables.spec import TrialSpec


class FakeBroker:
    """Hosts that measure at once: the loss of a task is how many were measured before it."""

    def __init__(self, failing=()):
        self.tasks, self.failing = {}, failing

    def submit_task(self, task_id, group, task):
        self.tasks[task_id] = (group, task)

    def task_report(self, task_id, wait_s):
        name = task_id.partition("-")[2]
        if any(word in name for word in self.failing):
            return TaskReport(task_id=task_id, error="out of memory")
        prefix = "eval" if self.tasks[task_id][1].split == "validation" else "test"
        return TaskReport(task_id=task_id, metrics={f"{prefix}_loss": float(len(self.tasks))})

    def settle(self, wait_s):
        return True

    def submitted(self):
        return {
            task_id.partition("-")[2]: (group, task)
            for task_id, (group, task) in self.tasks.items()
        }


def evaluate(scene, failing=()):
    """Run the finals; gives the tasks that hosts were handed."""
    broker = ray.remote(num_cpus=0)(FakeBroker).remote(failing)
    evaluate_finalists(scene.spec, scene.record, broker, SweepStorage(scene.storage))
    return ray.get(broker.submitted.remote())


def base_of(scene, trial):
    return group_key(TrialSpec.from_dict(scene.record.history.trials[trial].spec))


def test_repeats_that_completed_are_contenders_beside_their_finalist(build_scene):
    scene = build_scene()
    scene.repeat(4, of=1, outcome="completed")
    scene.repeat(5, of=1, outcome="failed")
    assert [run.number for run in contenders(scene.spec, scene.record.history)] == [1, 4, 2]


@pytest.mark.ray
def test_finalists_and_their_bare_bases_are_measured(local_ray, build_scene):
    scene = build_scene()
    tasks = evaluate(scene)
    assert sorted(tasks) == [
        "base-of-1-test", "base-of-1-validation", "base-of-2-test", "base-of-2-validation",
        "trial-1", "trial-2",
    ]  # fmt: skip
    assert tasks["trial-1"][0] == tasks["base-of-1-test"][0] != tasks["trial-2"][0]
    task = tasks["trial-1"][1]
    assert task.split == "test"
    assert task.state_dir == str(scene.storage / state_folder(1))
    assert task.bundle_dir == str(scene.storage / bundle_folder(1))
    assert tasks["base-of-2-test"][1].state_dir is None
    history = scene.record.history
    assert history.trials[1].final_metrics.keys() == {"test_loss"}
    assert history.trials[0].final_metrics is None
    assert history.base_metrics.keys() == {base_of(scene, 1), base_of(scene, 2)}
    assert history.base_metrics[base_of(scene, 2)].keys() == {"validation", "test"}


@pytest.mark.ray
def test_finalists_on_bases_that_share_only_a_quantization_have_a_base_each(
    local_ray, build_scene
):
    scene = build_scene(finals=FinalsSpec(top=3, seeds=0))
    scene.record.history.trials[0].spec["base"]["model"] = "owner/other"
    evaluate(scene)
    assert scene.record.history.base_metrics.keys() == {
        base_of(scene, trial) for trial in (0, 1, 2)
    }
    assert base_of(scene, 0) != base_of(scene, 2)


@pytest.mark.ray
def test_the_best_finalist_stands_for_a_base_that_others_share(local_ray, build_scene):
    scene = build_scene(finals=FinalsSpec(top=3, seeds=0))
    assert "base-of-0-test" not in evaluate(scene)


@pytest.mark.ray
def test_what_was_measured_before_is_not_measured_again(local_ray, build_scene):
    scene = build_scene()
    evaluate(scene)
    assert evaluate(scene) == {}
    scene.spec = replace(scene.spec, finals=FinalsSpec(top=3, seeds=0))
    assert sorted(evaluate(scene)) == ["trial-0"]


@pytest.mark.ray
def test_repeats_are_measured_too(local_ray, build_scene):
    scene = build_scene()
    scene.repeat(4, of=1, outcome="completed")
    assert "trial-4" in evaluate(scene)
    assert scene.record.history.trials[4].final_metrics.keys() == {"test_loss"}


@pytest.mark.ray
def test_a_lost_bundle_is_exported_again(local_ray, build_scene):
    scene = build_scene()
    evaluate(scene)
    (scene.storage / bundle_folder(1) / "manifest.json").unlink()
    assert sorted(evaluate(scene)) == ["trial-1"]


@pytest.mark.ray
def test_a_bundle_that_a_killed_driver_did_not_wait_for_is_exported_after_all(
    local_ray, build_scene
):
    scene = build_scene()
    (scene.storage / bundle_folder(0) / "manifest.json").unlink()
    task = evaluate(scene)["bundle-of-0"][1]
    assert (task.split, task.state_dir, task.bundle_dir) == (
        "validation",
        str(scene.storage / state_folder(0)),
        str(scene.storage / bundle_folder(0)),
    )
    assert scene.record.history.trials[0].final_metrics is None


@pytest.mark.ray
def test_without_test_rows_only_the_bases_are_measured(local_ray, build_scene):
    scene = build_scene(test_fraction=0.0)
    assert sorted(evaluate(scene)) == ["base-of-1-validation", "base-of-2-validation"]
    assert scene.record.history.trials[1].final_metrics is None


@pytest.mark.ray
def test_a_measurement_that_fails_is_left_out_and_tried_again(local_ray, build_scene, caplog):
    scene = build_scene()
    evaluate(scene, failing=("trial-1", "of-2-test"))
    history = scene.record.history
    assert history.trials[1].final_metrics is None
    assert history.base_metrics[base_of(scene, 2)].keys() == {"validation"}
    assert caplog.text.count("out of memory") == 2
    assert sorted(evaluate(scene)) == ["base-of-2-test", "trial-1"]


@pytest.mark.ray
def test_a_sweep_without_an_adapter_measures_nothing(local_ray, build_scene):
    scene = build_scene()
    for trial in scene.losses:
        scene.record.history.trials[trial].outcome = None
    assert evaluate(scene) == {}


@pytest.mark.ray
def test_a_damaged_bundle_is_exported_again_where_the_state_is_kept(local_ray, build_scene):
    scene = build_scene()
    evaluate(scene)
    storage = SweepStorage(scene.storage)
    assert are_finalists_evaluated(scene.spec, scene.record, storage)
    for trial in (0, 1):
        empty(scene.storage / bundle_folder(trial) / "manifest.json")
    assert not are_finalists_evaluated(scene.spec, scene.record, storage)
    assert sorted(evaluate(scene)) == ["bundle-of-0", "trial-1"]
    scene.record.add(event("pruned", what="state", trials=[0, 1]))
    assert are_finalists_evaluated(scene.spec, scene.record, storage)
    assert evaluate(scene) == {}
