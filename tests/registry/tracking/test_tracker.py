"""Runs are written once, whatever is sent again, and say truthfully how they ended."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from mlflow import MlflowClient

from registry.errors import TrackingError
from registry.tracking.connection import tracking_uri_for
from registry.tracking.tracker import INTERRUPTED_TAG, NOTE_TAG, Tracker
from registry.tracking.trial_news import End, Points, TrialNews


@pytest.fixture
def tracker(tracking_uri: str, artifact_location: str, request: pytest.FixtureRequest) -> Tracker:
    return Tracker(tracking_uri, request.node.name, artifact_location)


def again(tracker: Tracker, experiment: str) -> Tracker:
    """A tracker as a restarted driver has it: nothing in memory."""
    return Tracker(tracker.tracking_uri, experiment)


def start(tracker: Tracker, rank: int = 8) -> str:
    tracker.start_sweep("s1", "sweep one", {"max_trials": 4}, {"team": "a"})
    return tracker.start_trial("s1", 3, "trial 3", {"lora.rank": rank}, 100.0)


def news(
    points: Sequence[tuple[int, float, float]] = (),
    end: End | None = None,
    *,
    is_begun: bool = False,
    trial: int = 3,
) -> TrialNews:
    """What is new of a trial; points are (step, eval_loss, time)."""
    return TrialNews(
        trial=trial,
        name=f"trial {trial}",
        params={"lora.rank": 8},
        started_at_s=100.0 + trial,
        is_begun=is_begun,
        points=[Points(metrics={"eval_loss": v}, step=n, at_s=at) for n, v, at in points],
        end=end,
    )


def test_recording_twice_makes_nothing_twice(
    tracker: Tracker, client: MlflowClient, request: pytest.FixtureRequest
) -> None:
    first = start(tracker)
    assert start(tracker) == first
    assert start(again(tracker, request.node.name)) == first
    experiment = client.get_experiment_by_name(request.node.name)
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_trial_is_a_child_of_its_sweep(tracker: Tracker, client: MlflowClient) -> None:
    sweep = tracker.start_sweep("s1", "sweep one", {"max_trials": 4}, {"team": "a"})
    trial = client.get_run(start(tracker))
    assert trial.data.tags["mlflow.parentRunId"] == sweep
    assert trial.data.tags["lorchestra.sweep"] == "s1"
    assert trial.data.tags["lorchestra.trial"] == "3"
    assert trial.data.params == {"lora.rank": "8"}
    assert trial.info.start_time == 100_000
    assert client.get_run(sweep).data.tags["team"] == "a"


def test_trial_of_an_unknown_sweep_is_refused(tracker: Tracker) -> None:
    with pytest.raises(TrackingError, match="start_sweep first"):
        tracker.start_trial("nowhere", 0, "trial", {}, 1.0)


def test_point_sent_again_stays_one(tracker: Tracker, client: MlflowClient) -> None:
    run_id = start(tracker)
    same = news([(20, 1.5, 101.25)])
    same.points.append(Points(metrics={"train_loss": math.nan}, step=20, at_s=101.25))
    for _ in range(2):
        tracker.record_trial("s1", same)
    tracker.record_trial("s1", news([(20, 1.5, 101.25), (40, 1.25, 102.5)]))
    points = client.get_metric_history(run_id, "eval_loss")
    assert [(p.value, p.step, p.timestamp) for p in points] == [
        (1.5, 20, 101_250),
        (1.25, 40, 102_500),
    ]
    assert [math.isnan(p.value) for p in client.get_metric_history(run_id, "train_loss")] == [True]


def test_many_metrics_and_params_fit(tracker: Tracker, client: MlflowClient) -> None:
    tracker.start_sweep("s1", "sweep", {f"p{i}": i for i in range(150)}, {})
    run_id = tracker.record_trial(
        "s1",
        TrialNews(
            trial=0,
            name="t",
            params={"prompt": "x" * 9000},
            started_at_s=1.0,
            points=[Points(metrics={f"m{i}": i for i in range(1200)}, step=1, at_s=2.0)],
        ),
    )
    run = client.get_run(run_id)
    assert len(run.data.metrics) == 1200
    assert len(run.data.params["prompt"]) == 6000


def test_param_with_another_value_is_refused(tracker: Tracker) -> None:
    start(tracker, rank=8)
    with pytest.raises(TrackingError, match=r"'lora.rank' .* got '16'; allowed: '8'"):
        start(tracker, rank=16)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ("completed", "FINISHED"),
        ("stopped", "FINISHED"),
        ("infeasible", "FAILED"),
        ("diverged", "FAILED"),
        ("failed", "FAILED"),
        ("cancelled", "KILLED"),
    ],
)
def test_outcome_is_told_truthfully(
    tracker: Tracker, client: MlflowClient, outcome: str, status: str
) -> None:
    run_id = start(tracker)
    end = End(outcome=outcome, reason="because " + "x" * 9000, at_s=200.0)  # type: ignore[arg-type]
    tracker.record_trial("s1", news(end=end))
    run = client.get_run(run_id)
    assert (run.info.status, run.info.end_time) == (status, 200_000)
    assert run.data.tags["lorchestra.outcome"] == outcome
    assert run.data.tags["lorchestra.reason"].startswith("because")


def test_resumed_run_runs_again(
    tracker: Tracker, client: MlflowClient, request: pytest.FixtureRequest
) -> None:
    run_id = start(tracker)
    end = End(outcome="cancelled", reason="node lost", at_s=200.0)
    tracker.record_trial("s1", news(end=end))
    assert start(again(tracker, request.node.name)) == run_id
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert "lorchestra.outcome" not in run.data.tags


def test_finding_a_run_changes_nothing(
    tracker: Tracker, client: MlflowClient, request: pytest.FixtureRequest
) -> None:
    assert tracker.find_sweep("s1") is None
    run_id = start(tracker)
    end = End(outcome="stopped", reason="behind its rung", at_s=200.0)
    tracker.record_trial("s1", news(end=end))
    fresh = again(tracker, request.node.name)
    assert fresh.find_trial("s1", 3) == run_id
    assert fresh.find_trial("s1", 4) is None
    assert fresh.find_sweep("s1") == tracker.find_sweep("s1")
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_whole_trial_told_at_once_is_as_if_told_bit_by_bit(
    tracker: Tracker, client: MlflowClient
) -> None:
    tracker.start_sweep("s1", "sweep one", {}, {})
    end = End(outcome="stopped", reason="behind", at_s=130.0)
    told = [
        tracker.record_trial("s1", news([(10, 2.0, 110.0), (20, 1.0, 120.0)], end, is_begun=True))
    ]
    for each in (
        news(is_begun=True, trial=4),
        news([(10, 2.0, 110.0)], trial=4),
        news([(20, 1.0, 120.0)], trial=4),
        news(end=end, trial=4),
    ):
        last = tracker.record_trial("s1", each)
    runs = [client.get_run(run_id) for run_id in (*told, last)]
    assert runs[0].data.metrics == runs[1].data.metrics == {"eval_loss": 1.0}
    assert [run.info.end_time for run in runs] == [130_000, 130_000]
    assert [run.data.tags["lorchestra.outcome"] for run in runs] == ["stopped", "stopped"]


def test_a_trial_that_an_earlier_driver_began_is_found_among_later_ones(
    tracker: Tracker, client: MlflowClient, request: pytest.FixtureRequest
) -> None:
    tracker.start_sweep("s1", "sweep one", {}, {})
    ids = {n: tracker.record_trial("s1", news(is_begun=True, trial=n)) for n in range(4)}
    late = again(tracker, request.node.name)
    for trial in (3, 1, 0, 2):  # a resume goes on with them in any order
        assert late.record_trial("s1", news([(10, 1.0, 110.0)], trial=trial)) == ids[trial]
    late.record_trial("s1", news(is_begun=True, trial=4))
    experiment = client.get_experiment_by_name(request.node.name)
    assert len(client.search_runs([experiment.experiment_id])) == 6


def test_an_end_replaces_an_earlier_one(tracker: Tracker, client: MlflowClient) -> None:
    run_id = start(tracker)
    tracker.record_trial("s1", news(end=End(outcome="failed", reason="a host died", at_s=200.0)))
    again_ended = End(outcome="completed", reason="", at_s=300.0)
    tracker.record_trial("s1", news(end=again_ended, is_begun=True))
    run = client.get_run(run_id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", 300_000)
    assert run.data.tags["lorchestra.outcome"] == "completed"
    assert "lorchestra.reason" not in run.data.tags


def test_what_is_interrupted_is_closed_and_goes_on(
    tracker: Tracker, client: MlflowClient, request: pytest.FixtureRequest
) -> None:
    trial = start(tracker)
    ended = tracker.record_trial(
        "s1", news(end=End(outcome="completed", reason="", at_s=150.0), trial=4)
    )
    sweep = tracker.find_sweep("s1")
    assert sweep is not None
    tracker.interrupt("s1", 200.0)
    for run_id in (sweep, trial):
        run = client.get_run(run_id)
        assert (run.info.status, run.info.end_time) == ("KILLED", 200_000)
        assert run.data.tags[INTERRUPTED_TAG] == "1970-01-01T00:03:20+00:00"
    assert client.get_run(ended).info.status == "FINISHED"
    later = again(tracker, request.node.name)
    assert start(later) == trial
    for run_id in (sweep, trial):
        run = client.get_run(run_id)
        assert run.info.status == "RUNNING"
        assert INTERRUPTED_TAG not in run.data.tags


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("f1@3", "f1_3"), ("a//b", "a__b"), ("../up", "___up"), ("loss/de 1", "loss/de 1"),
    ],
)  # fmt: skip
def test_a_metric_that_mlflow_cannot_name_is_kept_under_another(
    tracker: Tracker, client: MlflowClient, name: str, kept: str
) -> None:
    run_id = start(tracker)
    odd = news()
    odd.points.append(Points(metrics={name: 1.0}, step=1, at_s=1.0))
    tracker.record_trial("s1", odd)
    assert client.get_run(run_id).data.metrics == {kept: 1.0}


def test_sweep_ends_once_with_its_totals(tracker: Tracker, client: MlflowClient) -> None:
    run_id = tracker.start_sweep("s1", "sweep", {}, {})
    for at_s in (300.0, 301.0):
        tracker.end_sweep(run_id, "completed", {"gpu_s": 12.0, "best": math.nan}, at_s, "Won.")
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(client.get_metric_history(run_id, "gpu_s")) == 1
    assert len(client.get_metric_history(run_id, "best")) == 1
    assert client.get_run(run_id).data.tags[NOTE_TAG] == "Won."


def test_texts_and_files_are_kept(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    run_id = start(tracker)
    (tmp_path / "plot.html").write_text("<p>")
    tracker.log_text(run_id, "a: 1\n", "spec.yaml")
    tracker.log_artifact(run_id, tmp_path / "plot.html", "plots")
    assert sorted(file.path for file in client.list_artifacts(run_id)) == ["plots", "spec.yaml"]


def test_silent_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9.*MLFLOW_TRACKING_URI") as caught:
        Tracker("http://user:hunter2@127.0.0.1:9", "e")
    assert "hunter2" not in str(caught.value)


def test_deleted_experiment_is_refused(tracker: Tracker, client: MlflowClient) -> None:
    client.create_experiment("gone")
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    with pytest.raises(TrackingError, match="mlflow experiments restore"):
        again(tracker, "gone")


def test_runs_go_to_a_file_unless_a_server_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri, artifacts = tracking_uri_for(tmp_path)
    assert uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert artifacts == f"file://{tmp_path}/mlartifacts"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri_for(tmp_path) == ("http://mlflow:5000", None)
    # MLflow itself would put artifacts below whatever folder the sweep is started in.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////srv/mlflow.db")
    assert tracking_uri_for(tmp_path) == ("sqlite:////srv/mlflow.db", "file:///srv/mlartifacts")


def test_new_database_is_laid_out_silently(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = Tracker(f"sqlite:///{tmp_path}/new.db", "e", (tmp_path / "artifacts").as_uri())
    tracker.log_text(tracker.start_sweep("s", "sweep", {}, {}), "x", "x.txt")
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "new.db"]
