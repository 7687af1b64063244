"""What no version needs is found and deleted; everything else stays."""

import time
from pathlib import Path

import mlflow
import pytest
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from registry import Registry
from registry.errors import TrackingError
from registry.tracking.experiments import find_experiment
from registry.versions.garbage import find_models
from registry.versions.versions import DIGEST_TAG


@pytest.fixture
def experiment_id(client, name, artifact_location):
    return find_experiment(client, name, artifact_location)


def leave(client, experiment_id, tmp_path, digest="sha256:00", model_name="adapter", **params):
    """What a process leaves that is killed on the way to a version."""
    params = params or {DIGEST_TAG: digest}
    logged = client.create_logged_model(experiment_id, name=model_name, params=params)
    (tmp_path / "model" / "below").mkdir(parents=True, exist_ok=True)
    (tmp_path / "model" / "MLmodel").write_bytes(b"x" * 10)
    (tmp_path / "model" / "below" / "weights").write_bytes(b"x" * 100)
    client.log_model_artifacts(logged.model_id, str(tmp_path / "model"))
    return logged


def files_of(logged):
    folder = Path(logged.artifact_location.removeprefix("file://"))
    return [path for path in folder.rglob("*") if path.is_file()]


def found_ids(adapters, **options):
    return [one.model_id for one in adapters.find_garbage(**{"older_than_s": 0, **options})]


def test_what_a_killed_registration_left_is_found_and_deleted(
    client, adapters, experiment_id, tmp_path
):
    logged = leave(client, experiment_id, tmp_path)
    (garbage,) = [
        one for one in adapters.find_garbage(older_than_s=0)
        if one.model_id == logged.model_id
    ]  # fmt: skip
    assert (garbage.digest, garbage.bytes, garbage.run_id) == ("sha256:00", 110, None)
    assert garbage.location == logged.artifact_location
    assert garbage.changed_at.timestamp() == pytest.approx(time.time(), abs=60)
    assert adapters.collect_garbage([garbage]) == [garbage]
    assert files_of(logged) == []
    assert logged.model_id not in found_ids(adapters)
    assert adapters.collect_garbage([garbage]) == []


def test_what_may_be_on_its_way_is_left_alone(client, adapters, experiment_id, tmp_path):
    logged = leave(client, experiment_id, tmp_path)
    assert logged.model_id not in found_ids(adapters, older_than_s=60)
    assert logged.model_id not in [one.model_id for one in adapters.find_garbage()]
    assert logged.model_id in found_ids(adapters, older_than_s=0)


def test_a_version_keeps_its_files_and_a_deleted_one_does_not(client, adapters, name, new_bundle):
    before = set(found_ids(adapters))
    for seed in (1, 2):
        adapters.register(new_bundle(seed), name)
    assert set(found_ids(adapters)) == before
    client.delete_model_version(name, "1")
    (garbage,) = [
        one for one in adapters.find_garbage(older_than_s=0) if one.model_id not in before
    ]
    assert garbage.bytes > 0
    assert adapters.collect_garbage([garbage]) == [garbage]
    assert set(found_ids(adapters)) == before


def test_a_version_with_an_alias_can_be_pulled_after_a_collection(
    adapters, name, new_bundle, tmp_path
):
    adapters.register(new_bundle(1), name)
    adapters.set_alias(f"{name}/1", "champion")
    adapters.collect_garbage(adapters.find_garbage(older_than_s=0))
    assert (adapters.pull(f"{name}@champion", tmp_path / "out")).is_dir()


def test_a_version_of_a_trained_run_keeps_its_files(
    client, adapters, name, experiment_id, new_bundle
):
    run_id = client.create_run(experiment_id).info.run_id
    adapters.register(new_bundle(1), name, run_id=run_id)
    (logged,) = client.search_logged_models([experiment_id])
    assert logged.model_id not in found_ids(adapters)
    client.delete_model_version(name, "1")
    (garbage,) = [
        one for one in adapters.find_garbage(older_than_s=0)
        if one.model_id == logged.model_id
    ]  # fmt: skip
    assert garbage.run_id == run_id
    adapters.collect_garbage([garbage])
    assert files_of(logged) == []
    assert client.get_run(run_id).info.status == "RUNNING"  # runs are not ours to delete


@pytest.mark.parametrize("source", ["models:/{id}", "{location}"], ids=["id", "place"])
def test_what_somebody_else_registered_meanwhile_stays(
    client, tracking_uri, adapters, name, experiment_id, tmp_path, source
):
    """By hand, under any name: only where the version points counts."""
    logged = leave(client, experiment_id, tmp_path)
    found = adapters.find_garbage(older_than_s=0)
    assert logged.model_id in [one.model_id for one in found]
    client.create_registered_model(name)
    where = source.format(id=logged.model_id, location=logged.artifact_location)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking_uri)  # where MLflow looks the id up
        mlflow.set_tracking_uri(tracking_uri)
        client.create_model_version(name, source=where, await_creation_for=0)
        mlflow.set_tracking_uri(None)
    deleted = adapters.collect_garbage(found)
    assert logged.model_id not in [one.model_id for one in deleted]
    assert len(files_of(logged)) == 2
    assert logged.model_id not in found_ids(adapters)


def test_what_was_touched_meanwhile_stays(client, adapters, experiment_id, tmp_path):
    logged = leave(client, experiment_id, tmp_path)
    found = adapters.find_garbage(older_than_s=0)
    time.sleep(0.01)
    client.finalize_logged_model(logged.model_id, "READY")
    deleted = adapters.collect_garbage(found)
    assert logged.model_id not in [one.model_id for one in deleted]
    assert len(files_of(logged)) == 2


@pytest.mark.parametrize(
    ("model_name", "params"),
    [("adapter", {"lora.rank": "4"}), ("model", {DIGEST_TAG: "sha256:00"})],
    ids=["params", "name"],
)
def test_models_of_others_are_never_touched(
    client, adapters, experiment_id, tmp_path, model_name, params
):
    logged = leave(client, experiment_id, tmp_path, model_name=model_name, **params)
    ours = leave(client, experiment_id, tmp_path)
    found = adapters.find_garbage(older_than_s=0)
    assert logged.model_id not in [one.model_id for one in found]
    (garbage,) = [one for one in found if one.model_id == ours.model_id]
    forged = type(garbage)(**{**vars(garbage), "model_id": logged.model_id})
    assert adapters.collect_garbage([forged]) == []
    assert len(files_of(logged)) == 2


def test_more_models_than_a_page_holds_are_found(client, adapters, experiment_id):
    params = {DIGEST_TAG: "sha256:00"}
    made = {
        client.create_logged_model(experiment_id, name="adapter", params=params).model_id
        for _ in range(5)
    }
    assert made <= {model.model_id for model in find_models(client, page_size=2)}
    found = [one for one in adapters.find_garbage(older_than_s=0) if one.model_id in made]
    assert len(adapters.collect_garbage(found[:2])) == 2
    left = {model.model_id for model in find_models(client, page_size=2)}
    assert made & left == {one.model_id for one in found[2:]}


def test_a_collection_that_was_cut_short_is_taken_up_again(
    client, tracking_uri, adapters, experiment_id, tmp_path
):
    logged = leave(client, experiment_id, tmp_path)
    get_artifact_repository(logged.artifact_location, tracking_uri).delete_artifacts()
    (garbage,) = [
        one for one in adapters.find_garbage(older_than_s=0)
        if one.model_id == logged.model_id
    ]  # fmt: skip
    assert garbage.bytes == 0
    assert adapters.collect_garbage([garbage]) == [garbage]


def test_files_that_cannot_be_deleted_are_told_and_found_again(
    client, adapters, experiment_id, tmp_path
):
    logged = leave(client, experiment_id, tmp_path)
    folder = Path(logged.artifact_location.removeprefix("file://"))
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")  # which MLflow does not remove
    found = adapters.find_garbage(older_than_s=0)
    (garbage,) = [one for one in found if one.model_id == logged.model_id]
    with pytest.raises(TrackingError, match=f"{logged.model_id}: its files at .* cannot be del"):
        adapters.collect_garbage([garbage])
    assert logged.model_id in found_ids(adapters)
    assert len(files_of(logged)) == 2


def test_a_server_that_is_away_is_told():
    with pytest.raises(TrackingError, match=r"http://127\.0\.0\.1:9"):
        Registry("http://127.0.0.1:9").find_garbage()
