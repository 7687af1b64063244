"""Runs of Ray Tune on a fake engine: trials that end by themselves, by the budget, by the user."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from orchestrator.errors import ClusterError
from orchestrator.hosts.broker import start_broker
from orchestrator.hosts.demand import HostLimits
from orchestrator.hosts.pool import HostShape
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.log import read_events
from orchestrator.journal.meter import Usage
from orchestrator.journal.recording import SweepRecord
from orchestrator.journal.requests import (
    CANCELLED_BY_USER,
    STOPPED_BY_USER,
    Request,
    UserRequests,
    post_request,
)
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.outcome import Outcome
from orchestrator.search.budget import Budget
from orchestrator.search.schedule import EarlyStopping, NoRule
from orchestrator.spec.sections import BudgetSpec, ExitSpec
from orchestrator.supervision import Supervisor
from orchestrator.tuning import SeatLimiter, Stage, StatisticsRemover
from tests.support import fake_engine
from tests.support.events import event
from tests.support.fake_base import FakeBase
from tests.support.threaded_pool import ThreadedPool

pytestmark = pytest.mark.ray


class Listed(Searcher):
    """Gives the trials it was given."""

    def __init__(self, configs):
        super().__init__(metric="eval_loss", mode="min")
        self.configs = list(configs)

    def suggest(self, trial_id):
        return self.configs.pop(0) if self.configs else Searcher.FINISHED

    def on_trial_complete(self, trial_id, result=None, error=False):
        pass


class Scene:
    """A storage with a broker, a host of two seats and a stage on them."""

    def __init__(self, storage, base, build_bench, budget=None, shape=None, seats=2):
        self.storage, self.base = SweepStorage(storage), base
        self.log = self.storage.open_log()
        self.record = SweepRecord(self.log, SweepHistory(), self.on_change)
        self.record.add(event("sweep_started", sweep_id="s", spec={}, digest="d"))
        self.broker = start_broker(self.storage.location)
        self.pool = ThreadedPool(
            self.broker,
            self.storage,
            HostLimits(max_hosts=1, seats=seats),
            shape or HostShape(build_bench=build_bench),
        )
        self.horizon, self.fleet = 40, SimpleNamespace(max_trials=2, hoped=0)
        self.requests, self.usage, self.listeners = UserRequests(), Usage(), []
        self.budget = Budget(
            budget or BudgetSpec(trials=9), self.record.history, usage=lambda: self.usage
        )

    def on_change(self, history):
        for listener in getattr(self, "listeners", ()):
            listener(history)

    def stage(self):
        return Stage(
            record=self.record, storage=self.storage, horizon=self.horizon, broker=self.broker,
            fleet=self.fleet, budget=self.budget, requests=self.requests, pool=self.pool,
        )  # fmt: skip

    def run(self, *specs, numbers=None, **options):
        numbers = range(len(specs)) if numbers is None else numbers
        configs = [
            {
                "trial": number, "knobs": {}, "spec": spec.to_dict(),
                "storage": self.storage.location, **options.pop("kin", {}),
            }
            for number, spec in zip(numbers, specs, strict=True)
        ]  # fmt: skip
        scheduler = EarlyStopping("eval_loss", ExitSpec(divergence=0), NoRule())
        with self.pool:
            return self.stage().run(Listed(configs), scheduler, scheduler.end_of, **options)

    def ends(self):
        return {
            trial.number: (trial.outcome, trial.step, trial.ended_by)
            for trial in self.record.history.ended()
        }


@pytest.fixture(autouse=True)
def without_ray_tunes_own_files():
    """As in `hosts.cluster`: Ray Tune leaves the files of a trial that it ends open."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        yield


@pytest.fixture
def build_scene(local_ray, tmp_path):
    scenes = []

    def build(**options):
        scenes.append(Scene(tmp_path, FakeBase(tmp_path), fake_engine.build_bench, **options))
        return scenes[-1]

    yield build
    for scene in scenes:
        ray.kill(scene.broker)
        scene.log.close()


def reports_of(history, trial):
    return len(history.trials[trial].reports) if trial in history.trials else 0


def test_the_user_and_the_budget_end_trials_and_keep_what_they_measured(build_scene):
    """One host serves all scenes: a stop of one trial, then a spent budget for the other."""
    scene = build_scene(budget=BudgetSpec(trials=9, cpu_seconds=100))
    long = [scene.base.build_spec(trial, steps=100_000, every=10) for trial in range(2)]

    def listen(history):
        if reports_of(history, 0) == 2:
            post_request(scene.storage, Request(kind="stop", trial=0))
        stopped = history.trials[0].outcome is not None if 0 in history.trials else False
        if stopped and reports_of(history, 1) >= 3:
            scene.usage = Usage(cpu_s=90.0)

    scene.listeners.append(listen)
    scene.horizon = 100_000
    supervisor = Supervisor(
        scene.record, scene.storage, scene.requests, scene.broker, lambda: scene.usage
    )
    with supervisor:
        reason = scene.run(*long, share=0.8)
    assert reason == ("the budget of 1:40 of CPU (cpu_seconds) is spent, less 20% for the finals")
    trials = scene.record.history.trials
    assert (trials[0].outcome, trials[0].reason) == (Outcome.CANCELLED, STOPPED_BY_USER.reason)
    assert (trials[0].ended_by, trials[1].ended_by) == ("user", "budget")
    assert (trials[1].outcome, trials[1].reason) == (Outcome.CANCELLED, reason)
    assert trials[0].bundle == "trials/t0000/bundle"
    assert scene.base.bundle(0)["step"] == trials[0].step
    usage = [each.event for each in read_events(scene.log.path) if each.kind == "usage"]
    assert usage[-1].cpu_s == scene.record.history.meter.cpu_s == 90.0


def test_more_trials_start_as_soon_as_there_are_more_seats(build_scene):
    scene = build_scene()
    scene.fleet.max_trials = 1

    def widen(history):
        if reports_of(history, 0) >= 1:
            scene.fleet.max_trials = 2
            if not reports_of(history, 1):
                time.sleep(0.1)  # while the process of trial 1 starts

    scene.listeners.append(widen)
    scene.run(*(scene.base.build_spec(trial, steps=400, every=10) for trial in range(2)))
    assert scene.ends().keys() == {0, 1}
    together = {len(line.split()) - 1 for line in scene.base.log("step")[10:]}
    assert {len(line.split()) - 1 for line in scene.base.log("step")[:10]} == {1}
    assert together == {1, 2}


def test_a_cancelled_sweep_ends_its_trials_and_leaves_repeats_alone(build_scene, monkeypatch):
    """It also leaves no secret in a log of Ray, and no pickle of Ray Tune."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "PLANTED")
    scene = build_scene()
    waiting = scene.base.build_spec(7).to_dict()
    scene.record.add(event("trial_started", trial=7, knobs={}, spec=waiting, repeat_of=0))

    def listen(history):
        if reports_of(history, 0) == 2:
            scene.requests.add(Request(kind="cancel"))

    scene.listeners.append(listen)
    scene.horizon = 100_000
    assert scene.run(scene.base.build_spec(0, steps=100_000)) == CANCELLED_BY_USER
    (end,) = scene.ends().items()
    assert (end[0], end[1][0], end[1][2]) == (0, Outcome.CANCELLED, "user")
    assert list(scene.storage.folder.rglob("*.pkl")) == []
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    assert [path for path in logs.rglob("*.log") if b"PLANTED" in path.read_bytes()] == []
    assert [trial.number for trial in scene.record.history.unfinished()] == [7]


def test_a_supervisor_hears_requests_and_writes_usage_once_more_when_it_leaves(
    build_scene, tmp_path, monkeypatch
):
    """From the storage, and from a folder that only others write."""
    monkeypatch.setenv("LORCHESTRA_REQUESTS", str(tmp_path))
    (tmp_path / "stop-5.json").write_text('{"kind": "stop", "trial": 5}')
    scene = build_scene()
    heard = threading.Event()
    with Supervisor(
        scene.record, scene.storage, scene.requests, scene.broker, lambda: Usage(3.0, 1.0)
    ):
        post_request(scene.storage, Request(kind="stop", trial=4))
        deadline = time.monotonic() + 30
        while not all(map(scene.requests.is_stopped, (4, 5))) and time.monotonic() < deadline:
            heard.wait(0.1)
    assert scene.requests.is_stopped(4)
    assert scene.requests.is_stopped(5)
    assert not scene.requests.is_cancelled
    meter = scene.record.history.meter
    assert (meter.cpu_s, meter.gpu_s) == (3.0, 1.0)


def test_no_more_trials_start_than_there_are_seats_at_the_moment():
    places = [1]
    limiter = SeatLimiter(Listed([{"trial": n} for n in range(9)]), lambda: places[0])
    started = []

    def ask():
        suggestion = limiter.suggest(f"t{len(started)}")
        if suggestion is not None:
            started.append(suggestion)
        return len(started)

    assert [ask(), ask()] == [1, 1]
    places[0] = 2
    assert [ask(), ask()] == [2, 2]
    places[0] = 9
    assert [ask(), ask()] == [3, 4]
    limiter.on_trial_complete("t0", {})
    assert ask() == 5
    places[0] = 0
    for trial in ("t1", "t2", "t3", "t4"):
        limiter.on_trial_complete(trial, {})
    assert ask() == 6  # one at least, or nothing would ever start


def test_hosts_that_find_their_seats_train_every_trial_and_tell_how_many(build_scene):
    scene = build_scene(
        shape=HostShape(build_bench=fake_engine.build_bench, finds_seats=True), seats=1
    )
    specs = [scene.base.build_spec(number) for number in range(4)]
    supervisor = Supervisor(scene.record, scene.storage, scene.requests, scene.broker, Usage)
    with supervisor:
        scene.run(*specs)
        supervisor.note_gauges()
    assert set(scene.ends().values()) == {(Outcome.COMPLETED, 40, "")}
    ((_, decided),) = scene.record.history.seats_decided
    assert 1 <= decided.seats == decided.by_knee <= 10
    assert (decided.host, decided.reason) == ("h000", "knee")
    assert len(decided.speeds) >= decided.seats


def test_a_broker_that_dies_ends_the_run_and_no_trial(build_scene):
    scene = build_scene()

    def listen(history):
        if reports_of(history, 0) == 2:
            ray.kill(scene.broker)

    scene.listeners.append(listen)
    scene.horizon = 100_000
    with pytest.raises(ClusterError, match=r"died .* run the same command again"):
        scene.run(*(scene.base.build_spec(trial, steps=100_000) for trial in range(3)))
    assert scene.ends() == {}
    assert scene.record.history.trials[0].step >= 20


def test_an_ended_trial_keeps_its_last_result_and_no_statistics():
    trial = Trial("proxy", stub=True)
    trial.update_last_result({"step": 1, "eval_loss": 2.0, "config": {}})
    assert "last-10-avg" in trial.get_json_state()[1]
    StatisticsRemover().on_trial_complete(iteration=1, trials=[trial], trial=trial)
    assert "last-10-avg" not in trial.get_json_state()[1]
    assert trial.last_result["eval_loss"] == 2.0
