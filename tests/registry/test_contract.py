"""The registry keeps its promises on a database file and on a real server with users alike."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

import registry
from registry.connection import connect
from registry.news import End, Points, TrialNews
from registry.tracking import Tracker, artifact_location_for


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.server)])
def uri(request: pytest.FixtureRequest) -> str:
    """Address of each kind of MLflow; credentials for the server are in the environment."""
    fixture = {"sqlite": "tracking_uri", "server": "as_admin"}[request.param]
    address: str = request.getfixturevalue(fixture)
    return address


@pytest.fixture
def experiment(name: str, uri: str) -> str:
    """An experiment of the test's own, which is not there yet."""
    return f"contract-{name}"


def new_tracker(uri: str, experiment: str) -> Tracker:
    return Tracker(uri, experiment, artifact_location_for(uri))


def test_a_bundle_registered_twice_is_one_version(
    uri: str, name: str, new_bundle: Callable[..., Path]
) -> None:
    first = registry.register(new_bundle(1), name, tracking_uri=uri, tags={"team": "a"})
    again = registry.register(new_bundle(1), name, tracking_uri=uri, tags={"team": "b"})
    other = registry.register(new_bundle(2), name, tracking_uri=uri)
    assert (first.version, again.version, other.version) == (1, 1, 2)
    assert (first.tags["team"], again.tags["team"]) == ("a", "b")
    assert other.metrics == {"eval_loss": 1.5, "test_loss": 1.25}
    found = registry.list_adapters(tracking_uri=uri, name=name)
    assert [version.digest for version in found] == [other.digest, first.digest]


def test_a_version_keeps_what_it_is_and_the_run_it_came_from(
    uri: str, name: str, experiment: str, new_bundle: Callable[..., Path]
) -> None:
    tracker = new_tracker(uri, experiment)
    tracker.start_sweep("s1", "sweep", {}, {})
    run_id = tracker.start_trial("s1", 0, "trial", {"lora.rank": 4}, 100.0)
    registry.register(new_bundle(), name, tracking_uri=uri, run_id=run_id)
    version = registry.get(f"{name}/1", tracking_uri=uri)
    assert version.run_id == run_id
    assert version.tags["base.model"] == "owner/name"
    assert version.tags["lora.targets"] == "q_proj,v_proj"


def test_files_come_back_as_they_were(
    uri: str, name: str, new_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = new_bundle()
    registry.register(bundle, name, tracking_uri=uri)
    folder = registry.pull(f"{name}/1", tmp_path / "pulled", tracking_uri=uri)
    for file in bundle.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_an_alias_points_at_one_version_at_a_time(
    uri: str, name: str, new_bundle: Callable[..., Path]
) -> None:
    for seed in (1, 2):
        registry.register(new_bundle(seed), name, tracking_uri=uri)
        registry.set_alias(f"{name}/{seed}", "trial-run", tracking_uri=uri)
    assert registry.get(f"{name}@trial-run", tracking_uri=uri).version == 2
    assert registry.get(f"{name}/1", tracking_uri=uri).aliases == ()


def test_what_is_not_there_is_told_with_what_is(
    uri: str, name: str, new_bundle: Callable[..., Path]
) -> None:
    registry.register(new_bundle(), name, tracking_uri=uri)
    with pytest.raises(registry.AdapterNotFoundError, match=rf"allowed: .*{name}/1"):
        registry.get(f"{name}/7", tracking_uri=uri)
    assert registry.list_adapters(tracking_uri=uri, name=f"{name}-other") == []


def test_recording_twice_from_two_drivers_makes_nothing_twice(uri: str, experiment: str) -> None:
    ids = []
    for _ in range(2):
        tracker = new_tracker(uri, experiment)
        sweep = tracker.start_sweep("s1", "sweep", {"steps": 20}, {"team": "a"})
        trial = tracker.start_trial("s1", 3, "trial", {"lora.rank": 8}, 100.0)
        news = TrialNews(
            trial=3,
            name="trial",
            params={"lora.rank": 8},
            started_at_s=100.0,
            points=[
                Points(metrics={"eval_loss": 1 / n, "nan": math.nan}, step=n, at_s=100.0 + n)
                for n in (10, 20)
            ],
            end=End(outcome="stopped", reason="behind its rung", at_s=130.0),
        )
        assert tracker.record_trial("s1", news) == trial
        tracker.end_sweep(sweep, "completed", {"eval_loss": 0.05}, 140.0)
        ids.append((sweep, trial))
    assert ids[0] == ids[1]
    client = connect(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert {run.info.run_id for run in runs} == set(ids[0])
    points = client.get_metric_history(ids[0][1], "eval_loss")
    assert [(point.step, point.value) for point in points] == [(10, 0.1), (20, 0.05)]
    assert len(client.get_metric_history(ids[0][0], "eval_loss")) == 1
    trial = next(run for run in runs if run.info.run_id == ids[0][1])
    assert trial.data.tags["mlflow.parentRunId"] == ids[0][0]
    assert (trial.info.status, trial.data.tags["lorchestra.outcome"]) == ("FINISHED", "stopped")


def test_files_of_a_run_are_kept(uri: str, experiment: str, tmp_path: Path) -> None:
    tracker = new_tracker(uri, experiment)
    run_id = tracker.start_sweep("s1", "sweep", {}, {})
    (tmp_path / "plot.html").write_text("<p>")
    for text in ("a: 1\n", "a: 2\n"):
        tracker.log_text(run_id, text, "spec.yaml")
    tracker.log_artifact(run_id, tmp_path / "plot.html")
    client = connect(uri)
    assert {file.path for file in client.list_artifacts(run_id)} == {"plot.html", "spec.yaml"}
    arrived = client.download_artifacts(run_id, "spec.yaml", str(tmp_path))
    assert Path(arrived).read_text() == "a: 2\n"
