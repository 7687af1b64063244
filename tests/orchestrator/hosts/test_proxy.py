"""Trials under real Tune and ASHA, on a real host with a fake engine."""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from orchestrator.hosts.broker import start_broker
from orchestrator.hosts.demand import HostLimits
from orchestrator.hosts.pool import HostPool, HostShape
from orchestrator.hosts.proxy import SeatReleaser, TrialProxy
from orchestrator.journal.paths import trial_folder
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.outcome import Outcome
from orchestrator.search.pbt import Pbt, explore
from orchestrator.search.schedule import EarlyStopping
from orchestrator.spec.distributions import Range
from orchestrator.spec.sections import ExitSpec, ScheduleSpec
from orchestrator.spec.space import SearchSpace
from tests.support import fake_engine
from tests.support.fake_base import FakeBase
from tests.support.threaded_pool import ThreadedPool

pytestmark = [
    pytest.mark.ray,
    # ray.data, which every trainer imports, trips over its own settings
    pytest.mark.filterwarnings("ignore:`use_push_based_shuffle` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`use_polars` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`use_arrow_tensor_v2` is deprecated:DeprecationWarning"),
]

FAULTS = {0: "exit-once:15", 3: "nan:5", 5: "raise:5"}
DYING_PROXY = 0  # the best trial: no rung stops it before
TRIALS = 8


class MortalProxy(TrialProxy):
    """A proxy whose process dies once, in the middle of a trial."""

    def step(self):
        marker = self.storage / trial_folder(self._trial) / "proxy-died"
        if self._trial == DYING_PROXY and self._step == 20 and not marker.exists():
            marker.touch()
            os._exit(1)
        return super().step()

    def setup(self, config):
        self.storage = config["folder"]
        super().setup(config)


@pytest.fixture(scope="module")
def sweep(local_ray, tmp_path_factory):
    """Eight trials on two seats: a host dies, a proxy dies, a trial diverges, a trial breaks."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    storage = tmp_path_factory.mktemp("sweep")
    base = FakeBase(storage)

    def build_spec(trial):
        faults = [FAULTS[trial]] if trial in FAULTS else []
        return base.build_spec(trial, *faults, lr=(trial + 1) * 1e-3)

    specs = [build_spec(trial).to_dict() for trial in range(TRIALS)]
    broker = start_broker(str(storage))
    limits = HostLimits(max_hosts=1, seats=2)
    shape = HostShape(build_bench=fake_engine.build_bench)
    with HostPool(broker, SweepStorage(storage), limits, shape) as pool:
        results = tune.Tuner(
            tune.with_resources(MortalProxy, {"cpu": 0.1}),
            param_space={
                "trial": tune.grid_search(list(range(TRIALS))),
                "spec": tune.sample_from(lambda config: specs[config["trial"]]),
                "storage": str(storage),
                "folder": storage,
            },
            tune_config=tune.TuneConfig(
                metric="eval_loss",
                mode="min",
                max_concurrent_trials=4,
                reuse_actors=True,
                scheduler=ASHAScheduler(
                    time_attr="step", max_t=40, grace_period=10, reduction_factor=2
                ),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(storage),
                verbose=0,
                callbacks=[SeatReleaser(broker)],
                failure_config=tune.FailureConfig(max_failures=1),
            ),
        ).fit()
        is_closed = pool.close()
    last = {result.config["trial"]: result.metrics for result in results}
    return SimpleNamespace(
        base=base, storage=storage, last=last, build_spec=build_spec, is_closed=is_closed,
        results=results,
    )  # fmt: skip


def whole_trials(sweep):
    """Trials without a fault of their own."""
    return [trial for trial in range(TRIALS) if trial not in (3, 5)]


def test_every_trial_ends_without_an_error(sweep):
    assert not sweep.results.errors
    assert sorted(sweep.last) == list(range(TRIALS))
    assert sweep.is_closed


def test_trials_train_to_a_rung_and_not_a_step_further(sweep):
    for trial in whole_trials(sweep):
        assert sweep.last[trial]["step"] in (10, 20, 30, 40)
        assert sweep.base.furthest_step(trial) == sweep.last[trial]["step"]
    assert any(sweep.last[trial]["step"] < 40 for trial in whole_trials(sweep))


def test_killing_a_host_and_a_proxy_changes_no_result(sweep, expected_weight):
    assert (sweep.storage / trial_folder(DYING_PROXY) / "proxy-died").exists()
    assert sweep.last[DYING_PROXY]["step"] == 40
    for trial in whole_trials(sweep):
        last = sweep.last[trial]
        expected = expected_weight(sweep.build_spec(trial), last["step"])
        assert last["eval_accuracy"] == expected


def test_the_base_is_loaded_once_and_once_more_after_the_crash(sweep):
    assert (sweep.base.folder / "exited-0").exists()
    assert len(sweep.base.log("build")) == 2


def test_every_stopped_and_completed_trial_leaves_a_bundle_of_its_last_report(sweep):
    for trial in whole_trials(sweep):
        assert sweep.base.bundle(trial)["step"] == sweep.last[trial]["step"]
        assert sweep.base.bundle(trial)["weight"] == sweep.last[trial]["eval_accuracy"]


def test_outcomes_come_with_their_reason(sweep):
    broken = sweep.last[5]
    assert (broken["outcome"], broken["reason"]) == (
        Outcome.FAILED,
        "RuntimeError: a broken kernel",
    )
    assert broken["eval_loss"] == 1e9
    for trial in whole_trials(sweep):
        reached_horizon = sweep.last[trial]["step"] == 40
        assert (sweep.last[trial].get("outcome") == Outcome.COMPLETED) is reached_horizon
    assert sweep.last[3]["outcome"] == Outcome.DIVERGED


def test_a_proxy_imports_no_torch(local_ray):
    @ray.remote(num_cpus=0)
    def loaded():
        import orchestrator.hosts.proxy  # noqa: F401

        return [name for name in ("torch", "transformers", "mlflow") if name in sys.modules]

    assert ray.get(loaded.remote()) == []


# ------------------------------------------------------------------------------- going on


@pytest.fixture(scope="module")
def hosted(local_ray, tmp_path_factory):
    """Proxies in this process, on a real host with a fake engine."""
    storage = tmp_path_factory.mktemp("hosted")
    broker = start_broker(str(storage))
    base = FakeBase(storage)
    opened = []

    def open_proxy(trial, lr, parent=None):
        spec = base.build_spec(trial, lr=lr).to_dict()
        config = {"trial": trial, "spec": spec, "storage": str(storage)}
        opened.append(TrialProxy(config=config | ({"parent": parent} if parent else {})))
        return opened[-1]

    limits = HostLimits(max_hosts=1, seats=3)
    shape = HostShape(build_bench=fake_engine.build_bench)
    with ThreadedPool(broker, SweepStorage(storage), limits, shape):
        yield SimpleNamespace(base=base, open_proxy=open_proxy)
        for proxy in opened:
            proxy.stop()


def train(proxy, reports):
    """Steps and weights of the next reports."""
    results = [proxy.train() for _ in range(reports)]
    return [(result["step"], result["eval_accuracy"]) for result in results]


def weights_of(folder, parent, child, switch, steps):
    """Weights of a seat with the parent's settings, and the child's from `switch` on."""
    engine = fake_engine.FakeEngine(folder)
    engine.join("seat", parent)
    weights = {}
    for step in range(1, max(steps) + 1):
        engine.step_one("seat")
        if step == switch:
            engine.seats["seat"] = (child, engine.snapshot("seat"))
        weights[step] = engine.snapshot("seat").weight
    return [(step, weights[step]) for step in steps]


def test_a_child_goes_on_from_its_parents_step_with_its_own_settings(hosted, tmp_path_factory):
    parent = hosted.open_proxy(0, lr=1e-3)
    train(parent, 2)
    place = {"trial": 0, "step": 20, "replaces": 5}
    child = hosted.open_proxy(1, lr=3e-3, parent=place)
    solo = tmp_path_factory.mktemp("solo")
    specs = [hosted.base.build_spec(0, lr=1e-3), hosted.base.build_spec(1, lr=3e-3)]
    expected = weights_of(solo, *specs, switch=20, steps=(30, 40))
    assert train(child, 1) == expected[:1]

    train(parent, 1)
    again = hosted.open_proxy(1, lr=3e-3, parent=place)  # as after a resume
    assert train(again, 2) == expected
    assert hosted.base.furthest_step(1) == 40


def test_a_child_of_a_parent_without_a_state_starts_from_nothing(hosted, expected_weight):
    child = hosted.open_proxy(2, lr=3e-3, parent={"trial": 9, "step": 20, "replaces": 5})
    expected = expected_weight(hosted.base.build_spec(2, lr=3e-3), 10)
    assert train(child, 1) == [(10, expected)]


class Population(Searcher):
    """Starts a population, then the replacements."""

    def __init__(self, scheduler, space, trials, build_config, storage):
        super().__init__(metric="eval_loss", mode="min")
        self.storage = storage
        self.scheduler, self.space, self.trials = scheduler, space, trials
        self.build_config = build_config
        self.knobs = []
        self.parents = {}
        self.numbers = {}
        self.running = set()

    def suggest(self, trial_id):
        heir = self.scheduler.next_heir() if len(self.knobs) < self.trials else None
        if heir is None and not self.scheduler.may_start_fresh(len(self.knobs)):
            return None if self.running else self.FINISHED
        number = len(self.knobs)
        knobs = {"optim.learning_rate": (number + 1) * 1e-3}
        if heir is not None:
            knobs = explore(self.space, self.knobs[heir.parent], number)
            self.parents[number] = heir
        self.knobs.append(knobs)
        self.numbers[trial_id] = number
        self.running.add(trial_id)
        return self.build_config(number, knobs["optim.learning_rate"], heir)

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.running.discard(trial_id)
        (self.storage / f"over-{self.numbers[trial_id]}").touch()

    def save(self, checkpoint_path):
        pass

    def restore(self, checkpoint_path):
        raise NotImplementedError


class TurnProxy(TrialProxy):
    """Six trials report in turn at each rung, the best one first.

    A trial is compared with those that reported before it, and a finished trial cannot be copied:
    in another order it can happen that no trial gives way.
    """

    def step(self):
        turns, number, begun = Path(self.config["storage"]), self.config["trial"], self._step
        if number < 6:
            deadline = time.monotonic() + 240  # six processes import Ray Tune on two busy cores
            while not all(
                self._has_reported(turns, other, begun + (10 if other < number else 0))
                for other in range(6)
                if other != number
            ):
                assert time.monotonic() < deadline, "the others did not report"
                time.sleep(0.02)
        result = super().step()
        (turns / f"turn-{number}-{result['step']}").touch()
        return result

    def _has_reported(self, turns, trial, step):
        reported, over = turns / f"turn-{trial}-{step}", turns / f"over-{trial}"
        return step == 0 or reported.exists() or over.exists()


@pytest.fixture(scope="module")
def population(local_ray, tmp_path_factory):
    """Six trials train at once; up to four copies of the best take the places of the worst."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    storage = tmp_path_factory.mktemp("population")
    base = FakeBase(storage)
    broker = start_broker(str(storage))
    schedule = ScheduleSpec(algorithm="pbt", grace_steps=10, quantile=0.5)
    rule = Pbt(schedule, "min", seed=0, population=6)
    scheduler = EarlyStopping("eval_loss", ExitSpec(), rule)
    rate = Range(low=1e-4, high=1e-1, is_log=True, is_whole=False, is_float=True)

    def build_config(number, lr, heir):
        spec = base.build_spec(number, lr=lr, steps=60)
        place = heir and {"trial": heir.parent, "step": heir.step, "replaces": heir.replaces}
        config = {"trial": number, "spec": spec.to_dict(), "storage": str(storage)}
        return config | ({"parent": place} if heir else {})

    searcher = Population(
        scheduler,
        SearchSpace(knobs={"optim.learning_rate": rate}, fixed=base.build_spec(0)),
        trials=10,
        build_config=build_config,
        storage=storage,
    )
    limits = HostLimits(max_hosts=1, seats=6)
    shape = HostShape(build_bench=fake_engine.build_bench)
    with ThreadedPool(broker, SweepStorage(storage), limits, shape) as pool:
        results = tune.Tuner(
            tune.with_resources(TurnProxy, {"cpu": 0.1}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=6,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(storage),
                verbose=0,
                callbacks=[SeatReleaser(broker)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
        pool.close()
    last = {result.config["trial"]: result.metrics for result in results}
    return SimpleNamespace(base=base, storage=storage, last=last, searcher=searcher)


def test_the_worst_of_a_population_give_way_to_copies_of_better_ones(population):
    searcher, last = population.searcher, population.last
    assert searcher.parents
    assert sorted(last) == list(range(len(searcher.knobs)))
    for number, heir in searcher.parents.items():
        assert last[heir.replaces]["step"] == heir.step
        end = searcher.scheduler.end_of(heir.replaces)
        assert end.reason.startswith(f"trial {heir.parent} is better at step {heir.step} (")
        assert searcher.knobs[number] != searcher.knobs[heir.parent]


def test_a_copy_trains_on_from_where_its_parent_was(population):
    joined = [line.split() for line in population.base.log("join")]
    began = {}
    for _, seat, step in joined:
        began.setdefault(int(seat[1:].split(".")[0]), int(step))
    for number, heir in population.searcher.parents.items():
        assert began[number] >= heir.step or began[number] == 0
    assert any(began[number] for number in population.searcher.parents)
    assert {began[number] for number in range(6)} == {0}
