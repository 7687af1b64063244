"""Who comes to the last round, what is measured there, and what a resume need not repeat."""

import importlib.util
import json
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from orchestrator.closing import FinalsSpec, RegisterSpec
from orchestrator.delivery import Delivery
from orchestrator.events import EventLog, read_events
from orchestrator.finals import contenders, evaluate_finalists, register_finalists
from orchestrator.history import SweepHistory
from orchestrator.layout import bundle_folder, state_folder
from orchestrator.members import group_key
from orchestrator.recording import SweepRecord
from orchestrator.spec import BudgetSpec, SweepSpec
from orchestrator.storage import SweepStorage
from registry import Tracker, TrackingError, get, list_adapters
from registry.connection import connect
from registry.tracking import artifact_location_for
from trainables.orders import TaskReport
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec

LOSSES = {0: 3.0, 1: 1.0, 2: 2.0}
FORMS = {0: "nf4", 1: "fp4", 2: "nf4"}


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


def build_spec(test_fraction=0.1, **changes):
    values = {
        "name": "tiny",
        "base": BaseSpec(model="owner/name"),
        "data": DataSpec(train="owner/rows", test_fraction=test_fraction),
        "optim": OptimSpec(steps=20),
        "eval": EvalSpec(every=10),
        "budget": BudgetSpec(trials=4),
        "space": {"lora.rank": {"choice": [2, 4, 8, 16]}},
        "finals": FinalsSpec(top=2, seeds=0),
        "register": RegisterSpec(top=2),
    }
    return SweepSpec(**(values | changes))


def trial_spec(spec, form):
    base = replace(spec.base, quantization=form)
    return TrialSpec(
        base=base, lora=LoraSpec(), optim=spec.optim, data=spec.data, eval=spec.eval
    ).to_dict()


class Scene:
    """A sweep whose search is over: three trials ended, one diverged."""

    def __init__(self, storage, spec):
        self.storage, self.spec = storage, spec
        self.log = EventLog(storage / "events.jsonl")
        self.record = SweepRecord(self.log, SweepHistory(), lambda history: None)
        add = self.record.add
        add("sweep_started", sweep_id=uuid.uuid4().hex, spec=spec.to_dict(), digest=spec.digest)
        for trial, loss in LOSSES.items():
            add("trial_started", trial=trial, knobs={}, spec=trial_spec(spec, FORMS[trial]))
            add("report", trial=trial, step=20, metrics={"eval_loss": loss})
            folder = storage / bundle_folder(trial)
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text("{}")
            self.end(trial, "completed", str(folder.relative_to(storage)))
        add("trial_started", trial=3, knobs={}, spec=trial_spec(spec, "nf4"))
        add("report", trial=3, step=10, metrics={"eval_loss": 0.1})
        self.end(3, "diverged", None)

    def repeat(self, trial, of, outcome):
        spec = self.record.history.trials[of].spec
        self.record.add("trial_started", trial=trial, knobs={}, spec=spec, repeat_of=of)
        self.record.add("report", trial=trial, step=20, metrics={"eval_loss": 1.5})
        folder = self.storage / bundle_folder(trial)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        self.end(trial, outcome, str(folder.relative_to(self.storage)))

    def end(self, trial, outcome, bundle):
        self.record.add(
            "trial_ended", trial=trial, outcome=outcome, reason="", step=20, bundle=bundle
        )

    def evaluate(self, failing=()):
        """Run the finals; gives the tasks that hosts were handed."""
        broker = ray.remote(num_cpus=0)(FakeBroker).remote(failing)
        evaluate_finalists(self.spec, self.record, broker, SweepStorage(self.storage))
        return ray.get(broker.submitted.remote())


def base_of(scene, trial):
    return group_key(TrialSpec.from_dict(scene.record.history.trials[trial].spec))


@pytest.fixture
def build_scene(tmp_path):
    scenes = []

    def build(**changes):
        scenes.append(Scene(tmp_path, build_spec(**changes)))
        return scenes[-1]

    yield build
    for scene in scenes:
        scene.log.close()


def test_repeats_that_completed_are_contenders_beside_their_finalist(build_scene):
    scene = build_scene()
    scene.repeat(4, of=1, outcome="completed")
    scene.repeat(5, of=1, outcome="failed")
    assert [run.number for run in contenders(scene.spec, scene.record.history)] == [1, 4, 2]


@pytest.mark.ray
def test_finalists_and_their_bare_bases_are_measured(local_ray, build_scene):
    scene = build_scene()
    tasks = scene.evaluate()
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
    scene.evaluate()
    assert scene.record.history.base_metrics.keys() == {
        base_of(scene, trial) for trial in (0, 1, 2)
    }
    assert base_of(scene, 0) != base_of(scene, 2)


@pytest.mark.ray
def test_the_best_finalist_stands_for_a_base_that_others_share(local_ray, build_scene):
    scene = build_scene(finals=FinalsSpec(top=3, seeds=0))
    assert "base-of-0-test" not in scene.evaluate()


@pytest.mark.ray
def test_what_was_measured_before_is_not_measured_again(local_ray, build_scene):
    scene = build_scene()
    scene.evaluate()
    assert scene.evaluate() == {}
    scene.spec = replace(scene.spec, finals=FinalsSpec(top=3, seeds=0))
    assert sorted(scene.evaluate()) == ["trial-0"]


@pytest.mark.ray
def test_repeats_are_measured_too(local_ray, build_scene):
    scene = build_scene()
    scene.repeat(4, of=1, outcome="completed")
    assert "trial-4" in scene.evaluate()
    assert scene.record.history.trials[4].final_metrics.keys() == {"test_loss"}


@pytest.mark.ray
def test_a_lost_bundle_is_exported_again(local_ray, build_scene):
    scene = build_scene()
    scene.evaluate()
    (scene.storage / bundle_folder(1) / "manifest.json").unlink()
    assert sorted(scene.evaluate()) == ["trial-1"]


@pytest.mark.ray
def test_a_bundle_that_a_killed_driver_did_not_wait_for_is_exported_after_all(
    local_ray, build_scene
):
    scene = build_scene()
    (scene.storage / bundle_folder(0) / "manifest.json").unlink()
    task = scene.evaluate()["bundle-of-0"][1]
    assert (task.split, task.state_dir, task.bundle_dir) == (
        "validation",
        str(scene.storage / state_folder(0)),
        str(scene.storage / bundle_folder(0)),
    )
    assert scene.record.history.trials[0].final_metrics is None


@pytest.mark.ray
def test_without_test_rows_only_the_bases_are_measured(local_ray, build_scene):
    scene = build_scene(test_fraction=0.0)
    assert sorted(scene.evaluate()) == ["base-of-1-validation", "base-of-2-validation"]
    assert scene.record.history.trials[1].final_metrics is None


@pytest.mark.ray
def test_a_measurement_that_fails_is_left_out_and_tried_again(local_ray, build_scene, caplog):
    scene = build_scene()
    scene.evaluate(failing=("trial-1", "of-2-test"))
    history = scene.record.history
    assert history.trials[1].final_metrics is None
    assert history.base_metrics[base_of(scene, 2)].keys() == {"validation"}
    assert caplog.text.count("out of memory") == 2
    assert sorted(scene.evaluate()) == ["base-of-2-test", "trial-1"]


@pytest.mark.ray
def test_a_sweep_without_an_adapter_measures_nothing(local_ray, build_scene):
    scene = build_scene()
    for trial in LOSSES:
        scene.record.history.trials[trial].outcome = None
    assert scene.evaluate() == {}


# --------------------------------------------------------------------------------- registry


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('finals') / 'mlflow.db'}"
    connect(uri)
    return uri


@pytest.fixture(scope="session")
def write_bundle():
    """Writes a registrable bundle of meaningless weights, as the registry's tests do."""
    path = Path(__file__).parents[1] / "registry" / "conftest.py"
    spec = importlib.util.spec_from_file_location("registry_fixtures", path)
    fixtures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fixtures)

    def write(folder, seed, metrics):
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        weights = fixtures.np.full((4, 4), seed, dtype="float32")
        fixtures.save_file({"w": weights}, folder / "adapter_model.safetensors")
        fixtures._write_manifest(folder, seed=seed, metrics=metrics)

    return write


def register(scene, database, connect=None):
    connect = connect or (lambda: Tracker(database, "lorchestra", artifact_location_for(database)))
    storage = SweepStorage(scene.storage)
    with Delivery(scene.spec, scene.log.path, connect, scene.storage / "report") as delivery:
        delivery.flush(60)
        register_finalists(scene.spec, scene.record, delivery, storage, database)
    return [event for event in read_events(scene.log.path) if event.kind == "registered"]


@pytest.fixture
def evaluated(build_scene, write_bundle, request):
    """A scene with bundles, measured on test rows, that registers under the test's own name."""
    scene = build_scene()
    name = request.node.name.replace("_", "-")[:60]
    scene.spec = replace(scene.spec, register=RegisterSpec(top=2, name=name))
    for trial, loss in LOSSES.items():
        metrics = {"eval_loss": loss, "test_loss": 2 * loss}
        write_bundle(scene.storage / bundle_folder(trial), trial, metrics)
        scene.record.add("final_evaluated", trial=trial, metrics={"test_loss": 2 * loss})
    return scene


def test_finalists_become_versions_and_the_best_one_champion(evaluated, database):
    registered = register(evaluated, database)
    name = evaluated.spec.register.name
    assert [event.fields["ref"] for event in registered] == [f"{name}/1", f"{name}/2"]
    champion = get(f"{name}@champion", tracking_uri=database)
    assert champion.version == 1
    assert champion.tags["lorchestra.trial"] == "1"
    assert champion.tags["lorchestra.rank"] == "1"
    assert champion.metrics["test_loss"] == 2.0
    assert connect(database).get_run(champion.run_id).data.tags["lorchestra.trial"] == "1"
    assert evaluated.record.history.trials[2].ref == f"{name}/2"


def test_while_mlflow_lacks_its_run_an_adapter_is_not_registered(evaluated, database):
    """MLflow can be back just when delivery has given up: the version would be nobody's."""

    def away():
        raise TrackingError("MLflow is away")

    with pytest.raises(TrackingError, match=r"trial 1: .* no run of it .*MLflow is away"):
        register(evaluated, database, away)
    name = evaluated.spec.register.name
    assert list_adapters(tracking_uri=database, name=name) == []
    assert len(register(evaluated, database)) == 2


def test_the_version_is_the_run_that_stands_for_the_best_configuration(
    evaluated, database, write_bundle
):
    evaluated.spec = replace(evaluated.spec, finals=FinalsSpec(top=2, seeds=1))
    for number, of, loss in ((4, 1, 0.9), (5, 2, 0.1)):
        evaluated.repeat(number, of=of, outcome="completed")
        metrics = {"eval_loss": 1.5, "test_loss": loss}
        write_bundle(evaluated.storage / bundle_folder(number), number, metrics)
        evaluated.record.add("final_evaluated", trial=number, metrics={"test_loss": loss})
    # trial 1: mean of 2.0 and 0.9; trial 2: mean of 4.0 and 0.1, its repeat better on validation
    register(evaluated, database)
    champion = get(f"{evaluated.spec.register.name}@champion", tracking_uri=database)
    assert champion.tags["lorchestra.trial"] == "1"
    assert float(champion.tags["finals.mean"]) == pytest.approx(1.45)
    assert champion.tags["finals.runs"] == "2"
    assert evaluated.record.history.trials[5].ref == f"{evaluated.spec.register.name}/2"


def test_registering_again_makes_nothing_twice(evaluated, database):
    register(evaluated, database)
    assert len(register(evaluated, database)) == 2
    name = evaluated.spec.register.name
    assert get(name, tracking_uri=database).version == 2


def test_the_gate_compares_what_was_measured_on_test_rows(evaluated, database, write_bundle):
    register(evaluated, database)
    # better on validation rows and worse on test rows than the champion
    write_bundle(evaluated.storage / bundle_folder(0), 9, {"eval_loss": 0.5, "test_loss": 8.0})
    evaluated.record.add("report", trial=0, step=30, metrics={"eval_loss": 0.5})
    register(evaluated, database)
    verdict = evaluated.record.history.promotions[-1]
    assert verdict["promoted"] is False
    assert verdict["reason"].startswith("test_loss 8 of ")
    assert get(f"{evaluated.spec.register.name}@champion", tracking_uri=database).version == 1


def test_promotion_can_be_switched_off(evaluated, database):
    off = replace(evaluated.spec.register, promote=False)
    evaluated.spec = replace(evaluated.spec, register=off)
    assert len(register(evaluated, database)) == 2
    assert evaluated.record.history.promotions == []


def test_a_sweep_that_registers_nothing_needs_no_mlflow(build_scene):
    scene = build_scene(register=None)
    assert register(scene, "http://127.0.0.1:9") == []


def test_a_changed_bundle_is_not_registered(evaluated, database):
    manifest = evaluated.storage / bundle_folder(1) / "manifest.json"
    changed = json.loads(manifest.read_text()) | {"seed": 99}
    manifest.write_text(json.dumps(changed))
    with pytest.raises(Exception, match="digest") as failure:
        register(evaluated, database)
    assert type(failure.value).__name__ == "IntegrityError"
