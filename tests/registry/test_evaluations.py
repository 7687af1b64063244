"""What was measured of a version is kept once, beside what trained it, and read back whole."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from registry.adapters import AdapterVersion
from registry.errors import IntegrityError
from registry.evaluations import list_evaluations, record_evaluation
from registry.registration import register
from registry.tracking import Tracker

Build = Callable[..., Path]
NewDocument = Callable[..., dict[str, Any]]


@pytest.fixture
def version(tracking_uri: str, new_bundle: Build, name: str) -> AdapterVersion:
    return register(new_bundle(), name, tracking_uri=tracking_uri)


@pytest.fixture
def measured(new_document: NewDocument, version: AdapterVersion) -> NewDocument:
    """Documents about the version."""

    def build(*losses: float, **more: Any) -> dict[str, Any]:
        return new_document(losses or (1.0, 2.0, 0.5), adapter=version.digest, **more)

    return build


def test_evaluation_comes_back_as_it_was_measured(
    tracking_uri: str, version: AdapterVersion, measured: NewDocument
) -> None:
    document = measured(1.0, 3.0)
    run_id = record_evaluation(version.ref, document, tracking_uri=tracking_uri)
    (found,) = list_evaluations(version.ref, tracking_uri=tracking_uri)
    assert found.run_id == run_id
    assert {key: list(column) for key, column in found.examples.items()} == document["examples"]
    assert found.measures["loss"].value == document["measures"]["loss"]["value"]
    assert found.packages == {"torch": "2.13.0"}
    (brief,) = list_evaluations(version.ref, tracking_uri=tracking_uri, with_examples=False)
    assert brief.examples == {}
    assert (brief.measures, brief.data, brief.at) == (found.measures, found.data, found.at)


def test_run_shows_what_was_measured(
    tracking_uri: str, client: MlflowClient, version: AdapterVersion, measured: NewDocument
) -> None:
    run_id = record_evaluation(version.ref, measured(form="merged"), tracking_uri=tracking_uri)
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
    tracking_uri: str, client: MlflowClient, version: AdapterVersion, measured: NewDocument
) -> None:
    run_id = record_evaluation(version.ref, measured(), tracking_uri=tracking_uri)
    assert version.model_id is not None
    metrics = client.get_logged_model(version.model_id).metrics
    found = {metric.key: metric for metric in metrics if metric.run_id == run_id}
    assert found["loss"].value == pytest.approx(3.5 / 6)
    assert (found["loss"].dataset_name, found["loss"].dataset_digest) == ("test", "cc")


def test_evaluation_lies_below_the_run_that_trained_the_version(
    tracking_uri: str, artifact_location: str, client: MlflowClient, new_bundle: Build,
    new_document: NewDocument, name: str,
) -> None:  # fmt: skip
    tracker = Tracker(tracking_uri, name, artifact_location)
    tracker.start_sweep("s", "sweep", {}, {})
    trial = tracker.start_trial("s", 0, "trial", {}, 1.0)
    version = register(new_bundle(), name, tracking_uri=tracking_uri, run_id=trial)
    document = new_document(adapter=version.digest)
    run = client.get_run(record_evaluation(name, document, tracking_uri=tracking_uri))
    assert run.data.tags["mlflow.parentRunId"] == trial
    assert run.info.experiment_id == client.get_run(trial).info.experiment_id
    assert len(list_evaluations(name, tracking_uri=tracking_uri)) == 1


def test_recorded_twice_is_one_run_and_one_cut_short_is_completed(
    tracking_uri: str, client: MlflowClient, version: AdapterVersion, measured: NewDocument
) -> None:
    first = record_evaluation(version.ref, measured(), tracking_uri=tracking_uri)
    slower = {**measured(), "seconds": 9.0}
    assert record_evaluation(version.ref, slower, tracking_uri=tracking_uri) == first
    client.update_run(first, status="RUNNING")  # killed before the end
    assert list_evaluations(version.ref, tracking_uri=tracking_uri) == []
    assert record_evaluation(version.ref, measured(), tracking_uri=tracking_uri) == first
    assert len(list_evaluations(version.ref, tracking_uri=tracking_uri)) == 1
    table = json.loads(Path(client.download_artifacts(first, "examples.json")).read_text())
    assert len(table["data"]) == 3
    assert len(client.get_metric_history(first, "loss")) == 1


def test_list_is_newest_first_and_of_one_kind_if_wanted(
    tracking_uri: str, version: AdapterVersion, measured: NewDocument
) -> None:
    for document in (measured(), measured(form="merged"), measured(data={"digest": "sha256:o"})):
        record_evaluation(version.ref, document, tracking_uri=tracking_uri)
    listed = list_evaluations(version.ref, tracking_uri=tracking_uri)
    assert [(one.form, one.data.digest) for one in listed] == [
        ("trained", "sha256:o"), ("merged", "sha256:cc"), ("trained", "sha256:cc"),
    ]  # fmt: skip
    merged = list_evaluations(version.ref, tracking_uri=tracking_uri, form="merged")
    other = list_evaluations(version.ref, tracking_uri=tracking_uri, data="sha256:o")
    assert [one.form for one in merged] == ["merged"]
    assert [one.data.digest for one in other] == ["sha256:o"]


def test_evaluation_of_another_adapter_is_refused(
    tracking_uri: str, version: AdapterVersion, new_document: NewDocument
) -> None:
    with pytest.raises(IntegrityError, match=f"allowed: {version.digest}"):
        record_evaluation(version.ref, new_document(), tracking_uri=tracking_uri)
    assert list_evaluations(version.ref, tracking_uri=tracking_uri) == []


def test_measure_without_a_number_is_kept_as_such(
    tracking_uri: str, client: MlflowClient, version: AdapterVersion, measured: NewDocument
) -> None:
    document = measured(1.0, math.nan)
    record_evaluation(version.ref, document, tracking_uri=tracking_uri)
    (found,) = list_evaluations(version.ref, tracking_uri=tracking_uri)
    assert math.isnan(found.measures["loss"].value)
    assert found.examples["loss_sum"] == (1.0, None)
    models = {one.key for one in client.get_logged_model(version.model_id).metrics}
    assert "loss" not in models  # MLflow would show 0
    assert "exact_match" in models


def test_summary_too_long_for_a_tag_is_read_from_the_file(
    tracking_uri: str, client: MlflowClient, version: AdapterVersion, measured: NewDocument
) -> None:
    document = {**measured(), "packages": {f"package-{n}": "1.0" for n in range(800)}}
    run_id = record_evaluation(version.ref, document, tracking_uri=tracking_uri)
    assert "lorchestra.summary" not in client.get_run(run_id).data.tags
    (brief,) = list_evaluations(version.ref, tracking_uri=tracking_uri, with_examples=False)
    assert (brief.examples, brief.measures["loss"].value) == ({}, pytest.approx(3.5 / 6))


@pytest.mark.parametrize("how", ["other", "broken", "lost"])
def test_changed_file_is_noticed(
    tracking_uri: str, client: MlflowClient, version: AdapterVersion, measured: NewDocument,
    how: str,
) -> None:  # fmt: skip
    run_id = record_evaluation(version.ref, measured(), tracking_uri=tracking_uri)
    folder = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    file = folder / "evaluation.json"
    if how == "other":
        file.write_text(json.dumps(measured(form="merged")))
    elif how == "broken":
        file.write_text("[")
    else:
        file.unlink()
    with pytest.raises(IntegrityError, match=f"evaluation run {run_id}"):
        list_evaluations(version.ref, tracking_uri=tracking_uri)
