"""The registry keeps its promises on a database file and on a real server with users alike."""

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import registry
from registry import Registry
from registry.tracking.access import check_access
from registry.tracking.connection import artifact_location_for, connect
from registry.tracking.experiments import adapters_experiment
from registry.tracking.tracker import Tracker
from registry.tracking.trial_news import End, Points, TrialNews
from tests.support.bundles import new_document


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.server)])
def uri(request: pytest.FixtureRequest) -> str:
    """Address of each kind of MLflow; credentials for the server are in the environment."""
    fixture = {"sqlite": "tracking_uri", "server": "as_admin"}[request.param]
    address: str = request.getfixturevalue(fixture)
    return address


@pytest.fixture
def adapters(uri: str) -> Registry:
    return Registry(uri)


@pytest.fixture
def experiment(name: str, uri: str) -> str:
    """An experiment of the test's own, which is not there yet."""
    return f"contract-{name}"


def new_tracker(uri: str, experiment: str) -> Tracker:
    return Tracker(uri, experiment, artifact_location_for(uri))


def test_a_bundle_registered_twice_is_one_version(
    adapters: Registry, name: str, new_bundle: Callable[..., Path]
) -> None:
    first = adapters.register(new_bundle(1), name, tags={"team": "a"})
    again = adapters.register(new_bundle(1), name, tags={"team": "b"})
    other = adapters.register(new_bundle(2), name)
    assert (first.version, again.version, other.version) == (1, 1, 2)
    assert (first.tags["team"], again.tags["team"]) == ("a", "b")
    assert other.metrics == {"eval_loss": 1.5, "test_loss": 1.25}
    found = adapters.versions(name=name)
    assert [version.digest for version in found] == [other.digest, first.digest]


def test_a_version_keeps_what_it_is_and_the_run_it_came_from(
    uri: str, adapters: Registry, name: str, experiment: str, new_bundle: Callable[..., Path]
) -> None:
    tracker = new_tracker(uri, experiment)
    tracker.start_sweep("s1", "sweep", {}, {})
    run_id = tracker.start_trial("s1", 0, "trial", {"lora.rank": 4}, 100.0)
    adapters.register(new_bundle(), name, run_id=run_id)
    version = adapters.get(f"{name}/1")
    assert version.run_id == run_id
    assert version.tags["base.model"] == "owner/name"
    assert version.tags["lora.targets"] == "q_proj,v_proj"


def test_files_come_back_as_they_were(
    adapters: Registry, name: str, new_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = new_bundle()
    adapters.register(bundle, name)
    folder = adapters.pull(f"{name}/1", tmp_path / "pulled")
    for file in bundle.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_an_alias_points_at_one_version_at_a_time(
    adapters: Registry, name: str, new_bundle: Callable[..., Path]
) -> None:
    for seed in (1, 2):
        adapters.register(new_bundle(seed), name)
        adapters.set_alias(f"{name}/{seed}", "trial-run")
    assert adapters.get(f"{name}@trial-run").version == 2
    assert adapters.get(f"{name}/1").aliases == ()


def test_what_is_not_there_is_told_with_what_is(
    adapters: Registry, name: str, new_bundle: Callable[..., Path]
) -> None:
    adapters.register(new_bundle(), name)
    with pytest.raises(registry.AdapterNotFoundError, match=rf"allowed: .*{name}/1"):
        adapters.get(f"{name}/7")
    assert adapters.versions(name=f"{name}-other") == []


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


@pytest.fixture
def add(
    adapters: Registry,
    name: str,
    new_bundle: Callable[..., Path],
) -> Callable[[int, float], str]:
    """Registers a version whose rows have losses around a mean; its reference."""

    def build(seed: int, mean: float) -> str:
        version = adapters.register(new_bundle(seed), name)
        losses = [mean + hardness for hardness in (0.0, 1.0, 2.0) * 9]
        document = new_document(losses, adapter=version.digest)
        adapters.record_evaluation(version.ref, document)
        return str(version.ref)

    return build


def test_the_better_is_promoted_by_what_was_measured_and_can_be_taken_back(
    adapters: Registry, name: str, add: Callable[[int, float], str]
) -> None:
    rule = registry.PromotionRule()
    refs = [add(1, 1.0), add(2, 0.5), add(3, 0.75)]
    decisions = [adapters.promote(ref, rule) for ref in refs]
    assert [decision.promoted for decision in decisions] == [True, True, False]
    aliases = {v.version: v.aliases for v in adapters.versions(name=name)}
    assert aliases == {1: (), 2: ("champion",), 3: ("challenger",)}
    adapters.rollback(name, why="it swears")
    adapters.retire(refs[1], "it swears")
    assert adapters.get(f"{name}@champion").version == 1
    assert adapters.get(refs[1]).retired.startswith("it swears")
    moves = [m for m in adapters.history(name) if m.alias == "champion"]
    assert [(m.source, m.target) for m in moves] == [(None, 1), (1, 2), (2, 1)]
    assert [m.why for m in moves] == [decisions[0].reason, decisions[1].reason, "it swears"]


def test_of_two_promoted_at_once_the_better_is_champion(
    adapters: Registry, name: str, add: Callable[[int, float], str]
) -> None:
    rule = registry.PromotionRule()
    refs = [add(1, 1.0), add(2, 0.75), add(3, 0.5)]
    adapters.promote(refs[0], rule)
    start, promoted = threading.Barrier(2), {}

    def race(ref: str) -> None:
        start.wait()
        promoted[ref] = adapters.promote(ref, rule).promoted

    threads = [threading.Thread(target=race, args=[ref]) for ref in refs[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert promoted[refs[2]]
    assert adapters.get(f"{name}@champion").version == 3
    moves = [m for m in adapters.history(name) if m.alias == "champion"]
    assert [m.target for m in moves] == ([1, 2, 3] if promoted[refs[1]] else [1, 3])


@pytest.mark.server
def test_a_user_with_edit_needs_no_more(
    as_admin: str,
    shared_server: Any,
    name: str,
    new_bundle: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledgers = adapters_experiment(connect(as_admin))
    user = shared_server.add_user("eve", {("experiment", ledgers): "EDIT"})
    for key, value in user.environment.items():
        monkeypatch.setenv(key, value)
    adapters = Registry(as_admin)
    check_access(as_admin, f"of-{name}", name)
    tracker = Tracker(as_admin, f"of-{name}")
    tracker.start_sweep("s1", "sweep", {}, {})
    run_id = tracker.start_trial("s1", 0, "trial", {"lora.rank": 4}, 100.0)
    version = adapters.register(new_bundle(), name, run_id=run_id)
    document = new_document([1.0] * 9, adapter=version.digest)
    adapters.record_evaluation(version.ref, document)
    assert adapters.promote(version.ref, registry.PromotionRule()).promoted
    adapters.pull(f"{name}@champion", tmp_path / "pulled")
    check_access(as_admin, f"of-{name}", name)
