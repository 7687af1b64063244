"""Trials under real Tune and ASHA, on a real host with a fake engine."""

import os
import sys
from types import SimpleNamespace

import pytest
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from orchestrator.broker import start_broker
from orchestrator.demand import HostLimits
from orchestrator.hosts import HostPool, HostShape
from orchestrator.outcome import Outcome
from orchestrator.trial import SeatReleaser, TrialProxy, trial_dir

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
        marker = trial_dir(self.storage, self._trial) / "proxy-died"
        if self._trial == DYING_PROXY and self._step == 20 and not marker.exists():
            marker.touch()
            os._exit(1)
        return super().step()

    def setup(self, config):
        self.storage = config["folder"]
        super().setup(config)


@pytest.fixture(scope="module")
def sweep(local_ray, fake_engine, build_fake_base, tmp_path_factory):
    """Eight trials on two seats: one kills its host, one its proxy, one diverges, one breaks."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    storage = tmp_path_factory.mktemp("sweep")
    base = build_fake_base(storage)

    def build_spec(trial):
        faults = [FAULTS[trial]] if trial in FAULTS else []
        return base.build_spec(trial, *faults, lr=(trial + 1) * 1e-3)

    specs = [build_spec(trial).to_dict() for trial in range(TRIALS)]
    broker = start_broker(storage)
    limits = HostLimits(max_hosts=1, seats=2)
    shape = HostShape(build_bench=fake_engine.build_bench)
    with HostPool(broker, storage, limits, shape) as pool:
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
    assert (trial_dir(sweep.storage, DYING_PROXY) / "proxy-died").exists()
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
        import orchestrator.trial  # noqa: F401

        return [name for name in ("torch", "transformers", "mlflow") if name in sys.modules]

    assert ray.get(loaded.remote()) == []
