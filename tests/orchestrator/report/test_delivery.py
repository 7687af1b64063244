"""Every event reaches MLflow once and in order, whenever MLflow and the driver come and go."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.errors import SweepStorageError
from orchestrator.hosts.members import group_key
from orchestrator.journal.log import EventLog
from orchestrator.journal.paths import CURSOR_FILE
from orchestrator.report.delivery import Delivery
from orchestrator.spec.finals_sections import RegisterSpec
from orchestrator.spec.sweep import BudgetSpec, SweepSpec
from registry import TrackingError
from registry.tracking.connection import artifact_location_for, connect
from registry.tracking.tracker import INTERRUPTED_TAG, Tracker
from registry.tracking.views import VIEW_TAG
from tests.support import servers
from tests.support.events import event
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec


def build_spec():
    return SweepSpec(
        name="tiny",
        base=BaseSpec(model="owner/name"),
        data=DataSpec(train="owner/rows"),
        optim=OptimSpec(steps=20),
        eval=EvalSpec(every=10),
        budget=BudgetSpec(trials=2),
        space={"lora.rank": {"choice": [4, 8]}},
        register=RegisterSpec(),
    )


def trial_spec(rank, model="owner/name"):
    return TrialSpec(
        base=BaseSpec(model=model),
        lora=LoraSpec(rank=rank),
        optim=OptimSpec(steps=20),
        data=DataSpec(train="owner/rows"),
        eval=EvalSpec(every=10),
    ).to_dict()


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """Laying out a database takes seconds: one for all, with an experiment for each test."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('delivery') / 'mlflow.db'}"
    connect(uri)
    return uri


class Sweep:
    """The log of a sweep as it grows, and what MLflow has of it."""

    def __init__(self, folder: Path, database: str, experiment: str):
        self.spec = build_spec()
        self.log = EventLog(folder / "events.jsonl")
        self.report_folder = folder / "report"
        self._database, self._experiment = database, experiment

    @property
    def artifacts(self):
        return artifact_location_for(self._database)

    def connect(self):
        return Tracker(self._database, self._experiment, self.artifacts)

    def delivery(self, connect_as=None):
        return Delivery(self.spec, self.log.path, connect_as or self.connect, self.report_folder)

    def start(self, spec=None):
        values = (spec or self.spec).to_dict()
        self.log.append(
            event("sweep_started", sweep_id="s1", spec=values, digest=self.spec.digest)
        )

    def run_trial(self, trial, losses=(2.0, 1.0), model="owner/name"):
        spec = trial_spec(4 + trial, model)
        self.log.append(
            event("trial_started", trial=trial, knobs={"lora.rank": 4 + trial}, spec=spec)
        )
        for step, loss in enumerate(losses, 1):
            self.log.append(
                event("report", trial=trial, step=10 * step, metrics={"eval_loss": loss})
            )
        self.log.append(
            event(
                "trial_ended",
                trial=trial,
                outcome="completed",
                reason="trained",
                step=20,
                bundle="b",
            )
        )

    def end(self):
        self.report_folder.mkdir()
        (self.report_folder / "report.html").write_text("a report")
        self.log.append(event("sweep_ended", status="completed", reason="2 trials"))

    def experiment(self):
        return connect(self._database).get_experiment_by_name(self._experiment)

    def tracked(self):
        client = connect(self._database)
        experiment = client.get_experiment_by_name(self._experiment)
        runs = client.search_runs([experiment.experiment_id])
        losses = {
            run.info.run_name: [
                (point.step, point.value)
                for point in client.get_metric_history(run.info.run_id, "eval_loss")
            ]
            for run in runs
        }
        by_name = {run.info.run_name: run for run in runs}
        assert len(by_name) == len(runs)
        return SimpleNamespace(client=client, runs=by_name, losses=losses)


@pytest.fixture
def sweep(tmp_path, database, request):
    sweep = Sweep(tmp_path, database, request.node.name)
    yield sweep
    sweep.log.close()


def fail_first(connect_as, times):
    """MLflow is away for so many calls, then there; the calls are counted."""
    calls = []

    def connect_late():
        calls.append(1)
        if len(calls) <= times:
            raise TrackingError("it is away")
        return connect_as()

    return connect_late, calls


def test_a_sweep_becomes_its_runs(sweep):
    with sweep.delivery() as delivery:
        sweep.start()
        sweep.run_trial(0)
        sweep.run_trial(1, (3.0, 2.5))
        sweep.end()
        assert delivery.flush(30.0)
        found = sweep.tracked()
        assert delivery.sweep_run() == found.runs["tiny"].info.run_id
        assert delivery.trial_run(1) == found.runs["trial-0001"].info.run_id
    assert found.losses["trial-0000"] == [(10, 2.0), (20, 1.0)]
    assert found.losses["trial-0001"] == [(10, 3.0), (20, 2.5)]
    assert {run.info.status for run in found.runs.values()} == {"FINISHED"}
    files = found.client.list_artifacts(found.runs["tiny"].info.run_id)
    assert {file.path for file in files} == {"report.html", "sweep.yaml"}


def test_what_mlflow_missed_arrives_once_it_is_back(sweep):
    connect_late, calls = fail_first(sweep.connect, 2)
    sweep.start()
    sweep.run_trial(0)
    with sweep.delivery(connect_late) as delivery:
        assert any(delivery.flush(30.0) for _ in range(3))
        assert delivery.problem == ""
    assert len(calls) == 3
    assert sweep.tracked().losses == {"tiny": [], "trial-0000": [(10, 2.0), (20, 1.0)]}


def test_flush_says_when_mlflow_stays_away_and_the_next_run_delivers(sweep):
    def never():
        raise TrackingError("it is away")

    sweep.start()
    sweep.run_trial(0)
    with sweep.delivery(never) as delivery:
        assert not delivery.flush(0.3)
        assert delivery.problem == "it is away"
        assert (delivery.sweep_run(), delivery.trial_run(0)) == (None, None)
    with sweep.delivery() as delivery:
        assert delivery.flush(30.0)
    assert sweep.tracked().losses["trial-0000"] == [(10, 2.0), (20, 1.0)]


def test_flush_does_not_wait_for_an_mlflow_that_is_away(sweep):
    connect_late, _ = fail_first(sweep.connect, 1000)
    sweep.start()
    with sweep.delivery(connect_late) as delivery:
        began = time.monotonic()
        assert not any(delivery.flush(30.0) for _ in range(3))
        assert time.monotonic() - began < 5.0


def test_flush_does_not_wait_for_a_thread_that_does_not_run(sweep):
    sweep.start()
    delivery = sweep.delivery()
    began = time.monotonic()
    assert not delivery.flush(30.0)
    with delivery:
        assert delivery.flush(30.0)
    sweep.log.append(event("phase", name="searching", seconds=1.0))
    assert not delivery.flush(30.0)
    assert time.monotonic() - began < 20.0


def test_an_error_nobody_foresaw_is_a_delay(sweep, caplog):
    calls = []

    def connect_badly():
        calls.append(1)
        if len(calls) <= 2:
            raise ZeroDivisionError("a bug")
        return sweep.connect()

    sweep.start()
    sweep.run_trial(0)
    with sweep.delivery(connect_badly) as delivery:
        assert not delivery.flush(30.0)
        assert delivery.problem == "ZeroDivisionError: a bug"
        assert any(delivery.flush(30.0) for _ in range(2))
    assert caplog.text.count("ZeroDivisionError: a bug, trying") == 1
    assert sweep.tracked().losses["trial-0000"] == [(10, 2.0), (20, 1.0)]


def test_flush_waits_for_what_was_logged_last(sweep):
    sweep.start()
    sweep.run_trial(0)
    with sweep.delivery() as delivery:
        assert delivery.flush(30.0)
        for trial in range(1, 6):
            sweep.run_trial(trial)
            assert delivery.flush(30.0)
            assert sweep.tracked().losses[f"trial-{trial:04d}"] == [(10, 2.0), (20, 1.0)]


def test_leaving_delivers_what_is_left(sweep):
    with sweep.delivery():
        sweep.start()
        sweep.run_trial(0)
    assert sweep.tracked().losses["trial-0000"] == [(10, 2.0), (20, 1.0)]


@pytest.mark.parametrize("kept", [0, 1, 3, 6], ids=lambda kept: f"cursor-at-{kept}")
def test_events_delivered_again_change_nothing(sweep, kept):
    sweep.start()
    sweep.run_trial(0)
    sweep.end()
    with sweep.delivery() as delivery:
        assert delivery.flush(30.0)
    before = sweep.tracked()
    # the driver was lost before it noted how far it had come
    (sweep.log.path.with_name(CURSOR_FILE)).write_text(json.dumps({"events": kept, "sweep": "s1"}))
    with sweep.delivery() as delivery:
        assert delivery.flush(30.0)
    after = sweep.tracked()
    assert after.losses == before.losses
    assert after.runs.keys() == before.runs.keys()
    for name, run in after.runs.items():
        assert run.info.status == "FINISHED"
        assert run.data.metrics == before.runs[name].data.metrics
        assert run.data.tags == before.runs[name].data.tags


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"events": "many", "sweep": "s1"}', '{"events": 9, "sweep": "other"}'],
    ids=["empty", "half", "list", "nothing", "text", "another-sweep"],
)
def test_a_cursor_that_cannot_be_read_or_is_of_another_sweep_counts_as_nothing_told(
    sweep, content
):
    sweep.log.path.with_name(CURSOR_FILE).write_text(content)
    sweep.start()
    sweep.run_trial(0)
    with sweep.delivery() as delivery:
        assert delivery.flush(30.0)
        assert delivery.problem == ""
    assert sweep.tracked().losses["trial-0000"] == [(10, 2.0), (20, 1.0)]
    assert json.loads(sweep.log.path.with_name(CURSOR_FILE).read_text())["sweep"] == "s1"


def test_a_fault_ends_a_run_without_its_stand_in_values(sweep):
    sweep.start()
    spec = trial_spec(4)
    sweep.log.append(event("trial_started", trial=0, knobs={}, spec=spec))
    sweep.log.append(event("report", trial=0, step=10, metrics={"eval_loss": 2.0}))
    sweep.log.append(event("report", trial=0, step=10, metrics={"eval_loss": 1e9}, is_fault=True))
    sweep.log.append(
        event("trial_ended", trial=0, outcome="diverged", reason="loss nan", step=10, bundle=None)
    )
    with sweep.delivery() as delivery:
        assert delivery.flush(30.0)
    found = sweep.tracked()
    assert found.losses["trial-0000"] == [(10, 2.0)]
    run = found.runs["trial-0000"]
    assert run.info.status == "FAILED"
    assert run.data.tags["lorchestra.outcome"] == "diverged"
    assert run.data.tags["lorchestra.reason"] == "loss nan"


def test_the_sweeps_totals_are_those_of_the_best_and_its_note_has_those_of_its_base(sweep):
    sweep.start()
    sweep.run_trial(0, (2.0, 1.0), model="owner/name")
    sweep.run_trial(1, (2.0, 1.5), model="owner/other")
    for model, loss in (("owner/name", 5.0), ("owner/other", 7.0)):
        base = group_key(TrialSpec.from_dict(trial_spec(4, model)))
        for split, name in (("validation", "eval_loss"), ("test", "test_loss")):
            sweep.log.append(event("base_evaluated", base=base, split=split, metrics={name: loss}))
    sweep.log.append(event("final_evaluated", trial=0, metrics={"test_loss": 1.25}))
    sweep.end()
    with sweep.delivery() as delivery:
        assert delivery.flush(30.0)
    run = sweep.tracked().runs["tiny"]
    assert run.data.metrics == {"best/eval_loss": 1.0, "best/test_loss": 1.25}
    lines = run.data.tags["mlflow.note.content"].splitlines()
    assert {"| eval_loss | 1.0000 | 5.0000 |", "| test_loss | 1.2500 | 5.0000 |"} <= set(lines)


def test_a_delivered_sweep_has_links_to_its_trials(sweep):
    sweep.start()
    with sweep.delivery() as delivery:
        assert delivery.links("http://here:1", "tiny") is None or delivery.flush(0)
        assert delivery.flush(30.0)
        found = delivery.links("http://user:secret@here:1/", "tiny")
    start = "http://here:1/#/experiments/"
    assert (found.table.startswith(start), found.charts.startswith(start)) == (True, True)
    saved = {key for key in sweep.experiment().tags if key.startswith(VIEW_TAG)}
    assert {link.partition("viewStateShareKey=")[2].partition("&")[0]
            for link in (found.table, found.charts)} == {
        key.removeprefix(VIEW_TAG) for key in saved
    }  # fmt: skip


def test_a_sweep_whose_data_moved_goes_on_in_the_same_run(sweep, tmp_path):
    rows = [tmp_path / "here.jsonl", tmp_path / "there.jsonl"]
    for path in rows:
        path.write_text('{"prompt": "a", "completion": "b"}\n')
    specs = [
        SweepSpec(
            name="tiny",
            base=sweep.spec.base,
            data=DataSpec(train=str(path)),
            optim=sweep.spec.optim,
            eval=sweep.spec.eval,
            budget=sweep.spec.budget,
            space=sweep.spec.space,
        )
        for path in rows
    ]
    assert specs[0].digest == specs[1].digest
    sweep.start(specs[0])
    with sweep.delivery() as delivery:
        assert delivery.flush(30.0)
    sweep.spec = specs[1]
    sweep.log.append(event("sweep_resumed"))
    sweep.run_trial(0)
    with sweep.delivery() as delivery:
        assert delivery.flush(10.0), delivery.problem
    found = sweep.tracked()
    assert found.runs["tiny"].data.params["data"] == str(rows[0])
    assert found.losses["trial-0000"] == [(10, 2.0), (20, 1.0)]


def test_a_file_that_cannot_be_stored_is_a_delay(sweep, tmp_path):
    sweep.start()
    sweep.end()
    in_the_way = sweep.report_folder / "broken.html"
    in_the_way.symlink_to(tmp_path / "nowhere")
    with sweep.delivery() as delivery:
        assert not delivery.flush(2.0)
        assert "broken.html" in delivery.problem
        in_the_way.unlink()
        assert delivery.flush(30.0)
    assert sweep.tracked().runs["tiny"].info.status == "FINISHED"


def test_what_could_not_be_told_waits_in_its_order(sweep):
    connect_late, _ = fail_first(sweep.connect, 1)
    sweep.start()
    sweep.run_trial(0)
    with sweep.delivery(connect_late) as delivery:
        assert not delivery.flush(30.0)
        sweep.run_trial(1)
        assert any(delivery.flush(30.0) for _ in range(3))
    found = sweep.tracked().losses
    assert found["trial-0000"] == found["trial-0001"] == [(10, 2.0), (20, 1.0)]


def test_a_busy_sweep_is_told_in_few_batches(sweep):
    told = []

    class Counting(Tracker):
        def record_trial(self, sweep_id, news):
            told.append(news)
            return super().record_trial(sweep_id, news)

    def connect_counting():
        return Counting(sweep._database, sweep._experiment, sweep.artifacts)

    sweep.start()
    with sweep.delivery(connect_counting) as delivery:
        for trial in range(10):
            sweep.run_trial(trial, [1.0 / step for step in range(1, 11)])
            delivery.nudge()
        assert delivery.flush(30.0)
    assert len(told) <= 20  # of 120 events
    assert {len(points) for points in sweep.tracked().losses.values()} == {0, 10}


def test_a_sweep_left_unfinished_is_closed_until_it_goes_on(sweep):
    sweep.start()
    sweep.log.append(event("trial_started", trial=0, knobs={}, spec=trial_spec(4)))
    with pytest.raises(KeyboardInterrupt), sweep.delivery():
        raise KeyboardInterrupt
    left = sweep.tracked().runs
    assert {run.info.status for run in left.values()} == {"KILLED"}
    assert all(INTERRUPTED_TAG in run.data.tags for run in left.values())
    sweep.log.append(event("sweep_resumed"))
    sweep.log.append(event("trial_resumed", trial=0, step=0))
    sweep.log.append(event("report", trial=0, step=10, metrics={"eval_loss": 2.0}))
    with sweep.delivery() as delivery:
        assert delivery.flush(30.0)
        found = sweep.tracked()
        assert {run.info.status for run in found.runs.values()} == {"RUNNING"}
        assert not any(INTERRUPTED_TAG in run.data.tags for run in found.runs.values())
        sweep.end()
    assert found.losses["trial-0000"] == [(10, 2.0)]
    assert sweep.tracked().runs["tiny"].info.status == "FINISHED"


def test_a_sweep_that_another_driver_took_over_is_left_to_it(sweep):
    sweep.start()
    with pytest.raises(SweepStorageError), sweep.delivery():
        raise SweepStorageError("another driver has it")
    assert sweep.tracked().runs["tiny"].info.status == "RUNNING"


# ------------------------------------------------------------- a real server that fails as told


@pytest.fixture
def proxy(shared_server, as_admin):
    with servers.proxy(shared_server.port) as proxy:
        yield proxy


@pytest.fixture
def remote(tmp_path, proxy, request):
    """A sweep told to a real server through a proxy that can fail."""
    sweep = Sweep(tmp_path, proxy.address, request.node.name)
    yield sweep
    sweep.log.close()


def deliver_all(delivery):
    """However often the server fails on the way."""
    assert any(delivery.flush(60.0) for _ in range(60)), delivery.problem


def is_told_whole_and_once(sweep, trials):
    found = sweep.tracked()  # which asserts that no run is there twice
    expected = {f"trial-{trial:04d}": [(10, 2.0), (20, 1.0)] for trial in range(trials)}
    assert found.losses == {"tiny": [], **expected}  # the best is not repeated there
    assert {run.info.status for run in found.runs.values()} == {"FINISHED"}
    assert {run.data.params.get("lora.rank") for run in found.runs.values()} == {
        None, *(str(4 + trial) for trial in range(trials))
    }  # fmt: skip
    return found


@pytest.mark.server
@pytest.mark.parametrize("kind", ["refuse", "error", "drop"])
def test_a_server_that_fails_now_and_then_is_told_all_once(remote, proxy, kind):
    proxy.weather.kind, proxy.weather.every = kind, 6
    remote.start()
    for trial in range(3):
        remote.run_trial(trial)
    remote.end()
    with remote.delivery() as delivery:
        deliver_all(delivery)
        assert len(proxy.weather.seen) > 18
    proxy.weather.kind = "fair"
    is_told_whole_and_once(remote, 3)


WRITES = ("runs/create", "log-batch", "runs/update", "artifacts", "experiments/create")


@pytest.mark.server
@pytest.mark.parametrize("path", WRITES)
def test_work_whose_answer_is_lost_is_not_done_twice(remote, proxy, path):
    proxy.weather.kind, proxy.weather.only, proxy.weather.left = "drop", path, 3
    remote.start()
    remote.run_trial(0)
    remote.run_trial(1)
    remote.end()
    with remote.delivery() as delivery:
        deliver_all(delivery)
    assert proxy.weather.left == (2 if path == "experiments/create" else 0)
    is_told_whole_and_once(remote, 2)


@pytest.mark.server
def test_a_server_that_went_away_and_came_back_is_told_in_order(remote, proxy):
    remote.start()
    with remote.delivery() as delivery:
        assert delivery.flush(60.0)
        proxy.weather.kind = "refuse"
        held = []
        for trial in range(3):
            began = time.monotonic()
            remote.run_trial(trial)
            delivery.nudge()
            held.append(time.monotonic() - began)
        assert not delivery.flush(60.0)
        cursor = json.loads(remote.log.path.with_name(CURSOR_FILE).read_text())
        assert cursor["events"] == 1  # what is not told is not said to be
        proxy.weather.kind = "fair"
        remote.end()
        deliver_all(delivery)
        assert delivery.problem == ""
    assert max(held) < 1.0  # four events on disk each; no wait for the server
    is_told_whole_and_once(remote, 3)


@pytest.mark.server
def test_a_slow_server_holds_up_nobody(remote, proxy):
    proxy.weather.delay_s = 1.0
    remote.start()
    with remote.delivery() as delivery:
        began = time.monotonic()
        for trial in range(3):
            remote.run_trial(trial)
            delivery.nudge()
        assert not delivery.flush(0.1)
        assert time.monotonic() - began < 1.0
        proxy.weather.delay_s = 0.0
        remote.end()
        deliver_all(delivery)
    is_told_whole_and_once(remote, 3)


@pytest.mark.server
def test_a_server_that_hangs_is_given_up(remote, proxy, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    proxy.weather.delay_s = 600.0
    remote.start()
    with remote.delivery() as delivery:
        began = time.monotonic()
        assert not delivery.flush(30.0)
        assert time.monotonic() - began < 10.0
        assert "timeout" in delivery.problem
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        proxy.weather.delay_s = 0.0
        deliver_all(delivery)
    assert sweep_names(remote) == {"tiny"}


@pytest.mark.server
def test_secrets_are_nowhere(remote, proxy, shared_server, monkeypatch, caplog):
    secret = "a-password-nobody-has"
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", secret)
    remote.start()
    with remote.delivery() as delivery:
        assert not delivery.flush(60.0)
        assert "401" in delivery.problem
        for text in (delivery.problem, caplog.text, remote.log.path.read_text()):
            assert secret not in text
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", shared_server.admin.password)
        deliver_all(delivery)
    assert sweep_names(remote) == {"tiny"}


def sweep_names(sweep):
    return set(sweep.tracked().runs)
