"""What the finals found best goes to the registry once, with its evidence, and meets the gate."""

import json
import re
from dataclasses import replace

import pytest

from orchestrator.adapters.registering import Registration
from orchestrator.journal.log import read_events
from orchestrator.journal.paths import bundle_folder, evaluation_file
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.report.delivery import Delivery
from orchestrator.spec.finals_sections import FinalsSpec, RegisterSpec
from registry import (
    Registry,
    RegistryError,
    Tracker,
    TrackingError,
)
from registry.tracking.connection import artifact_location_for, connect
from tests.support.bundles import new_document, write_bundle
from tests.support.events import event
from trainables.spec import EvalSpec


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('finals') / 'mlflow.db'}"
    connect(uri)
    return uri


def register(scene, database, connect=None):
    connect = connect or (lambda: Tracker(database, "lorchestra", artifact_location_for(database)))
    storage = SweepStorage(scene.storage)
    with Delivery(scene.spec, scene.log.path, connect, scene.storage / "report") as delivery:
        delivery.flush(60)
        Registration(
            spec=scene.spec,
            record=scene.record,
            delivery=delivery,
            storage=storage,
            adapters=Registry(database),
        ).register_finalists()
    return [each for each in read_events(scene.log.path) if each.kind == "registered"]


@pytest.fixture
def evaluated(build_scene, request):
    """A scene with bundles, measured on test rows, that registers under the test's own name."""
    scene = build_scene()
    name = re.sub(r"[^a-z]+", "-", request.node.name)[:60].strip("-")
    scene.spec = replace(scene.spec, register=RegisterSpec(top=2, name=name))
    for trial, loss in scene.losses.items():
        metrics = {"eval_loss": loss, "test_loss": 2 * loss}
        write_bundle(scene.storage / bundle_folder(trial), trial, metrics)
        scene.record.add(event("final_evaluated", trial=trial, metrics={"test_loss": 2 * loss}))
    return scene


def test_finalists_become_versions_and_the_best_one_champion(evaluated, database):
    registered = register(evaluated, database)
    name = evaluated.spec.register.name
    assert [each.event.ref for each in registered] == [f"{name}/1", f"{name}/2"]
    champion = Registry(database).get(f"{name}@champion")
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

    with pytest.raises(TrackingError, match=r"trial 1: .* no run of the trial .*MLflow is away"):
        register(evaluated, database, away)
    name = evaluated.spec.register.name
    assert Registry(database).versions(name=name) == []
    assert len(register(evaluated, database)) == 2


def test_the_version_is_the_run_that_stands_for_the_best_configuration(
    evaluated,
    database,
):
    evaluated.spec = replace(evaluated.spec, finals=FinalsSpec(top=2, seeds=1))
    for number, of, loss in ((4, 1, 0.9), (5, 2, 0.1)):
        evaluated.repeat(number, of=of, outcome="completed")
        metrics = {"eval_loss": 1.5, "test_loss": loss}
        write_bundle(evaluated.storage / bundle_folder(number), number, metrics)
        evaluated.record.add(event("final_evaluated", trial=number, metrics={"test_loss": loss}))
    # trial 1: mean of 2.0 and 0.9; trial 2: mean of 4.0 and 0.1, its repeat better on validation
    register(evaluated, database)
    champion = Registry(database).get(f"{evaluated.spec.register.name}@champion")
    assert champion.tags["lorchestra.trial"] == "1"
    assert float(champion.tags["finals.mean"]) == pytest.approx(1.45)
    assert champion.tags["finals.runs"] == "2"
    assert evaluated.record.history.trials[5].ref == f"{evaluated.spec.register.name}/2"


def test_registering_again_makes_nothing_twice(evaluated, database):
    register(evaluated, database)
    assert len(register(evaluated, database)) == 2
    name = evaluated.spec.register.name
    assert Registry(database).get(name).version == 2


def score(scene, trial, losses, form="trained"):
    """Keep an evaluation of a trial's bundle, as the finals do."""
    manifest = json.loads((scene.storage / bundle_folder(trial) / "manifest.json").read_text())
    document = new_document(losses, adapter=manifest["digest"], form=form)
    content = json.dumps(document).encode()
    SweepStorage(scene.storage).send(evaluation_file(trial, form), content)
    metrics = {"loss": document["measures"]["loss"]["value"]}
    scene.record.add(
        event(
            "form_evaluated",
            trial=trial,
            form=form,
            metrics=metrics,
            error="",
            fingerprint="this one",
        )
    )


def test_what_the_finals_scored_is_kept_with_the_version(evaluated, database):
    for form in ("trained", "merged"):
        score(evaluated, 1, [1.0, 2.0, 3.0], form)
    register(evaluated, database)
    register(evaluated, database)
    name = evaluated.spec.register.name
    kept = Registry(database).evaluations(f"{name}/1")
    assert {one.form for one in kept} == {"trained", "merged"}
    assert kept[0].measures["loss"].value == 1.0
    assert Registry(database).evaluations(f"{name}/2") == []


@pytest.mark.parametrize(
    ("better_by", "is_promoted"), [(0.05, False), (0.5, True)], ids=["noise", "more"]
)
def test_the_gate_asks_for_more_than_noise(evaluated, database, better_by, is_promoted):
    rows = [1.0, 2.0, 3.0, 4.0] * 5
    score(evaluated, 1, rows)
    register(evaluated, database)
    # the next one is the best on validation rows; on test rows it depends
    number = 9 + is_promoted
    write_bundle(evaluated.storage / bundle_folder(0), number, {"eval_loss": 0.5, "test_loss": 1})
    evaluated.record.add(event("report", trial=0, step=30, metrics={"eval_loss": 0.5}))
    noise = [0.3, -0.3, 0.2, -0.2, 0.0] * 4
    losses = [row + error - better_by for row, error in zip(rows, noise, strict=True)]
    score(evaluated, 0, losses)
    register(evaluated, database)
    verdict = evaluated.record.history.promotions[-1]
    assert verdict.promoted is is_promoted
    assert "loss" in verdict.reason
    champion = Registry(database).get(f"{evaluated.spec.register.name}@champion")
    assert champion.tags["lorchestra.trial"] == ("0" if is_promoted else "1")


def test_what_was_cut_short_is_completed(evaluated, database):
    """Killed between a version and its evaluations: the log does not call it registered yet."""
    score(evaluated, 1, [1.0, 2.0, 3.0])
    broken = evaluated.storage / evaluation_file(1, "trained")
    whole = broken.read_bytes()
    broken.write_bytes(whole.replace(b"sha256:", b"sha256:0"))
    with pytest.raises(RegistryError):
        register(evaluated, database)
    assert evaluated.record.history.trials[1].ref is None
    broken.write_bytes(whole)
    register(evaluated, database)
    name = evaluated.spec.register.name
    assert len(Registry(database).evaluations(f"{name}/1")) == 1
    assert Registry(database).get(name).version == 2


def test_a_version_has_a_card(evaluated, database, tmp_path):
    section = replace(evaluated.spec.register, licenses={"data": "CC-BY-4.0"})
    evaluated.spec = replace(evaluated.spec, register=section)
    score(evaluated, 1, [1.0, 2.0, 3.0])
    register(evaluated, database)
    card = connect(database).get_model_version(section.name, "1").description
    for fact in ("tiny", "owner/name", "CC-BY-4.0", section.name, "**trained**"):
        assert fact in card
    bundle = Registry(database).pull(f"{section.name}/1", tmp_path / "pulled")
    assert (bundle / "card.md").read_text().splitlines()[-1] in card
    assert f"{section.name}/1" in card
    assert card.splitlines()[2].startswith("**Verdict:** Trial ")


def test_a_version_is_of_the_form_that_the_sweep_says(evaluated, database):
    section = replace(evaluated.spec.register, form="merged")
    evaluated.spec = replace(evaluated.spec, register=section)
    register(evaluated, database)
    found = Registry(database).get(section.name)
    assert found.tags["serving.form"] == "merged"


def test_earlier_steps_that_were_kept_go_with_the_version(evaluated, database):
    evaluated.spec = replace(evaluated.spec, eval=EvalSpec(every=10, keep_every=10))
    kept = evaluated.storage / f"{bundle_folder(1)}-step-10"
    kept.mkdir()
    write_bundle(kept, 1, {}, steps=10)
    register(evaluated, database)
    assert Registry(database).get(f"{evaluated.spec.register.name}/1").tags["checkpoints"] == "10"
    assert "checkpoints" not in Registry(database).get(evaluated.spec.register.name).tags


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
