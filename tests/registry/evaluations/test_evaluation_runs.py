"""What was measured of a version is kept once, beside what trained it, and read back whole."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from registry import Registry
from registry.errors import IntegrityError
from registry.tracking.experiments import ADAPTERS_EXPERIMENT
from registry.tracking.tracker import Tracker
from registry.versions.versions import AdapterVersion
from tests.support.bundles import new_document

Build = Callable[..., Path]
NewDocument = Callable[..., dict[str, Any]]


@pytest.fixture
def version(adapters: Registry, new_bundle: Build, name: str) -> AdapterVersion:
    return adapters.register(new_bundle(), name)


@pytest.fixture
def measured(version: AdapterVersion) -> NewDocument:
    """Documents about the version."""

    def build(*losses: float, **more: Any) -> dict[str, Any]:
        return new_document(losses or (1.0, 2.0, 0.5), adapter=version.digest, **more)

    return build


def test_evaluation_comes_back_as_it_was_measured(
    adapters: Registry, version: AdapterVersion, measured: NewDocument
) -> None:
    document = measured(1.0, 3.0)
    run_id = adapters.record_evaluation(version.ref, document)
    (found,) = adapters.evaluations(version.ref)
    assert found.run_id == run_id
    assert {key: list(column) for key, column in found.examples.items()} == document["examples"]
    assert found.measures["loss"].value == document["measures"]["loss"]["value"]
    assert found.packages == {"torch": "2.13.0"}
    (brief,) = adapters.evaluations(version.ref, with_examples=False)
    assert brief.examples == {}
    assert (brief.measures, brief.data, brief.at) == (found.measures, found.data, found.at)


def test_run_shows_what_was_measured(
    adapters: Registry, client: MlflowClient, version: AdapterVersion, measured: NewDocument
) -> None:
    run_id = adapters.record_evaluation(version.ref, measured(form="merged"))
    run = client.get_run(run_id)
    assert run.info.run_name == f"evaluate {version.ref} merged test"
    assert run.info.status == "FINISHED"
    expected = {"lorchestra.kind": "evaluation", "lorchestra.adapter": version.name,
                "lorchestra.version": "1", "lorchestra.form": "merged",
                "lorchestra.data": "sha256:cc"}  # fmt: skip
    assert expected.items() <= run.data.tags.items()
    assert run.data.params["form"] == "merged"
    assert run.data.params["rows"] == "3"
    assert run.data.params["generation.max_new_tokens"] == "64"
    assert run.data.metrics["loss"] == pytest.approx(3.5 / 6)
    assert run.data.metrics["peak_memory_gib"] == 0.5
    assert run.data.metrics["rows_per_s"] == 2.0
    table = Path(client.download_artifacts(run_id, "examples.json"))
    assert {"prediction", "reference", "loss_sum"} <= set(json.loads(table.read_text())["columns"])


def test_model_page_has_the_measures_and_the_rows_they_are_of(
    adapters: Registry, client: MlflowClient, version: AdapterVersion, measured: NewDocument
) -> None:
    run_id = adapters.record_evaluation(version.ref, measured())
    assert version.model_id is not None
    metrics = client.get_logged_model(version.model_id).metrics
    found = {metric.key: metric for metric in metrics if metric.run_id == run_id}
    assert found["loss"].value == pytest.approx(3.5 / 6)
    assert (found["loss"].dataset_name, found["loss"].dataset_digest) == ("test", "cc")


def test_evaluation_names_the_run_that_trained_the_version_and_lies_in_another_experiment(
    tracking_uri: str, adapters: Registry, artifact_location: str, client: MlflowClient,
    new_bundle: Build,
    name: str,
) -> None:  # fmt: skip
    tracker = Tracker(tracking_uri, name, artifact_location)
    tracker.start_sweep("s", "sweep", {}, {})
    trial = tracker.start_trial("s", 0, "trial", {}, 1.0)
    version = adapters.register(new_bundle(), name, run_id=trial)
    document = new_document(adapter=version.digest)
    run = client.get_run(adapters.record_evaluation(name, document))
    assert run.data.tags["mlflow.parentRunId"] == trial
    assert client.get_experiment(run.info.experiment_id).name == ADAPTERS_EXPERIMENT
    assert len(adapters.evaluations(name)) == 1


def test_evaluations_that_an_earlier_release_kept_beside_the_trial_are_found(
    tracking_uri: str, adapters: Registry, artifact_location: str, client: MlflowClient,
    new_bundle: Build,
    name: str,
) -> None:  # fmt: skip
    tracker = Tracker(tracking_uri, name, artifact_location)
    tracker.start_sweep("s", "sweep", {}, {})
    trial = tracker.start_trial("s", 0, "trial", {}, 1.0)
    version = adapters.register(new_bundle(), name, run_id=trial)
    document = new_document(adapter=version.digest)
    new = client.get_run(adapters.record_evaluation(name, document))
    kept = Path(client.download_artifacts(new.info.run_id, "evaluation.json")).read_text()
    old = client.create_run(client.get_run(trial).info.experiment_id, tags=new.data.tags)
    client.log_text(old.info.run_id, kept, "evaluation.json")
    client.set_terminated(old.info.run_id)
    client.delete_run(new.info.run_id)
    (found,) = adapters.evaluations(name)
    assert found.run_id == old.info.run_id
    assert adapters.record_evaluation(name, document) == old.info.run_id


def test_recorded_twice_is_one_run_and_one_cut_short_is_completed(
    adapters: Registry, client: MlflowClient, version: AdapterVersion, measured: NewDocument
) -> None:
    first = adapters.record_evaluation(version.ref, measured())
    slower = {**measured(), "seconds": 9.0}
    assert adapters.record_evaluation(version.ref, slower) == first
    client.update_run(first, status="RUNNING")  # killed before the end
    assert adapters.evaluations(version.ref) == []
    assert adapters.record_evaluation(version.ref, measured()) == first
    assert len(adapters.evaluations(version.ref)) == 1
    table = json.loads(Path(client.download_artifacts(first, "examples.json")).read_text())
    assert len(table["data"]) == 3
    assert len(client.get_metric_history(first, "loss")) == 1


def test_list_is_newest_first_and_of_one_kind_if_wanted(
    adapters: Registry, version: AdapterVersion, measured: NewDocument
) -> None:
    for document in (measured(), measured(form="merged"), measured(data={"digest": "sha256:o"})):
        adapters.record_evaluation(version.ref, document)
    listed = adapters.evaluations(version.ref)
    assert [(one.form, one.data.digest) for one in listed] == [
        ("trained", "sha256:o"), ("merged", "sha256:cc"), ("trained", "sha256:cc"),
    ]  # fmt: skip
    merged = adapters.evaluations(version.ref, form="merged")
    other = adapters.evaluations(version.ref, data="sha256:o")
    assert [one.form for one in merged] == ["merged"]
    assert [one.data.digest for one in other] == ["sha256:o"]


def test_evaluation_of_another_adapter_is_refused(
    adapters: Registry,
    version: AdapterVersion,
) -> None:
    with pytest.raises(IntegrityError, match=f"allowed: {version.digest}"):
        adapters.record_evaluation(version.ref, new_document())
    assert adapters.evaluations(version.ref) == []


def test_measure_without_a_number_is_kept_as_such(
    adapters: Registry, client: MlflowClient, version: AdapterVersion, measured: NewDocument
) -> None:
    document = measured(1.0, math.nan)
    adapters.record_evaluation(version.ref, document)
    (found,) = adapters.evaluations(version.ref)
    assert math.isnan(found.measures["loss"].value)
    assert found.examples["loss_sum"] == (1.0, None)
    models = {one.key for one in client.get_logged_model(version.model_id).metrics}
    assert "loss" not in models  # MLflow would show 0
    assert "exact_match" in models


def test_summary_too_long_for_a_tag_is_read_from_the_file(
    adapters: Registry, client: MlflowClient, version: AdapterVersion, measured: NewDocument
) -> None:
    document = {**measured(), "packages": {f"package-{n}": "1.0" for n in range(800)}}
    run_id = adapters.record_evaluation(version.ref, document)
    assert "lorchestra.summary" not in client.get_run(run_id).data.tags
    (brief,) = adapters.evaluations(version.ref, with_examples=False)
    assert (brief.examples, brief.measures["loss"].value) == ({}, pytest.approx(3.5 / 6))


@pytest.mark.parametrize("how", ["other", "broken", "lost"])
def test_changed_file_is_noticed(
    adapters: Registry, client: MlflowClient, version: AdapterVersion, measured: NewDocument,
    how: str,
) -> None:  # fmt: skip
    run_id = adapters.record_evaluation(version.ref, measured())
    folder = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    file = folder / "evaluation.json"
    if how == "other":
        file.write_text(json.dumps(measured(form="merged")))
    elif how == "broken":
        file.write_text("[")
    else:
        file.unlink()
    with pytest.raises(IntegrityError, match=f"evaluation run {run_id}"):
        adapters.evaluations(version.ref)
