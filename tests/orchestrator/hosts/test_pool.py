"""The pool on real Ray Train: hosts start, make room, refuse, and are fresh for each trial."""

import logging
import time

import pytest
import ray

from orchestrator.errors import ClusterError, SweepError
from orchestrator.hosts.broker import start_broker
from orchestrator.hosts.demand import HostLimits
from orchestrator.hosts.members import group_key
from orchestrator.hosts.pool import HostPool, HostShape
from orchestrator.hosts.proxy import TrialProxy
from orchestrator.journal.paths import trial_folder
from orchestrator.journal.sweep_storage import SweepStorage
from tests.support import fake_engine
from tests.support.fake_base import FakeBase
from trainables.hosts.orders import SeatRequest, Task

pytestmark = [
    pytest.mark.ray,
    # ray.data, which every trainer imports, trips over its own settings
    pytest.mark.filterwarnings("ignore:`use_push_based_shuffle` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`use_polars` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`use_arrow_tensor_v2` is deprecated:DeprecationWarning"),
]


class Caller:
    """Talks to the broker as a proxy would."""

    def __init__(self, base, lease_s=60.0):
        self.base = base
        self.broker = start_broker(str(base.storage), lease_s)

    def join(self, trial, spec):
        folder = self.base.storage / trial_folder(trial)
        request = SeatRequest(
            spec=spec.to_dict(), state_dir=str(folder / "state"), bundle_dir=str(folder / "bundle")
        )
        return ray.get(self.broker.join.remote(trial, "a", group_key(spec), request))

    def advance(self, trial, until, tries=20):
        for _ in range(tries):
            status = ray.get(self.broker.advance.remote(trial, "a", until, 5.0))
            if status.answers(until):
                return status
        raise TimeoutError(status)

    def settles(self):
        return ray.get(self.broker.settle.remote(5.0))

    def leave(self, trial, keep=True):
        return ray.get(self.broker.leave.remote(trial, "a", keep, 5.0))


@pytest.fixture
def pool_of(local_ray, fake_base):
    def build(caller, max_failures=5, **limits):
        shape = HostShape(max_failures=max_failures, build_bench=fake_engine.build_bench)
        return HostPool(
            caller.broker, SweepStorage(fake_base.storage), HostLimits(**limits), shape
        )

    return build


def test_one_warm_host_serves_its_group_and_gives_way_to_another(
    pool_of,
    fake_base,
):
    other = FakeBase(fake_base.storage, "other")
    (other.folder / "no-base").touch()
    caller = Caller(fake_base, lease_s=8.0)
    spec = fake_base.build_spec(0)
    with pool_of(caller, max_hosts=1, seats=1) as pool:
        # a proxy that is killed loses its seat when its lease is over
        config = {"trial": 0, "spec": spec.to_dict(), "storage": str(fake_base.storage)}
        proxy = ray.remote(num_cpus=0)(TrialProxy).remote(config)
        assert ray.get(proxy.train.remote())["step"] == 10
        ray.kill(proxy)
        caller.join(1, fake_base.build_spec(1))
        assert caller.advance(1, 10).report.step == 10
        assert caller.leave(1).phase == "left"

        # its trial goes on in other proxies: what was measured is said again, not trained again
        second = ray.remote(num_cpus=0)(TrialProxy).remote(config)
        assert [ray.get(second.train.remote())["step"] for _ in range(2)] == [10, 20]
        ray.get(second.save_checkpoint.remote(str(fake_base.storage)))
        third = ray.remote(num_cpus=0)(TrialProxy).remote(config)
        ray.get(third.load_checkpoint.remote(str(fake_base.storage)))
        assert ray.get(third.train.remote())["step"] == 30
        assert sum("t0000." in line for line in fake_base.log("step")) == 30
        with pytest.raises(SweepError, match="another process trains it"):
            ray.get(second.train.remote())
        ray.get(third.stop.remote())
        assert caller.settles()
        assert fake_base.bundle(0)["step"] == 30

        # tasks run on the same warm base
        task = Task(spec=spec.to_dict(), split="validation")
        ray.get(caller.broker.submit_task.remote("base", group_key(spec), task))
        done = ray.get(caller.broker.task_report.remote("base", 5.0))
        assert done.metrics["eval_loss"] == 9.0
        assert len(fake_base.log("build")) == 1

        # another group gets the idle host's place, and hears that its base cannot be loaded
        caller.join(2, other.build_spec(2))
        report = caller.advance(2, 10).report
        assert (report.fault, report.reason[:24]) == ("failed", "base.model: got nothing;")
        caller.leave(2)
        assert pool.close()
    assert fake_base.bundle(1)["step"] == 10


@pytest.mark.slow
def test_fresh_hosts_are_new_processes(pool_of, fake_base):
    caller = Caller(fake_base)
    with pool_of(caller, max_hosts=1, seats=4, is_fresh=True) as pool:
        for trial in (0, 1):
            caller.join(trial, fake_base.build_spec(trial))
        for trial in (0, 1):
            assert caller.advance(trial, 10).report.step == 10
            assert caller.leave(trial).phase == "left"
        assert pool.close()
    pids = [line.split()[1] for line in fake_base.log("build")]
    assert len(pids) == 2
    assert pids[0] != pids[1]


@pytest.mark.slow  # it starts four hosts, one after the other
def test_trials_of_a_host_that_is_given_up_go_on_in_the_next_one(pool_of, fake_base):
    caller = Caller(fake_base)
    with pool_of(caller, max_failures=0, max_hosts=1, seats=2) as pool:
        for trial, faults in ((0, ["exit:15"]), (1, [])):
            caller.join(trial, fake_base.build_spec(trial, *faults))
        assert [caller.advance(trial, 10).report.step for trial in (0, 1)] == [10, 10]
        caller.broker.advance.remote(1, "a", 20, 0.0)
        report = caller.advance(0, 20).report
        assert "died 2 times while training it alone" in report.reason
        assert caller.advance(1, 20).report.step == 20
        assert caller.leave(1).phase == "left"
        assert pool.close()
    assert len(fake_base.log("build")) > 2
    assert sum("t0001." in line for line in fake_base.log("step")) < 40  # from its saved state
    assert fake_base.bundle(1)["step"] == 20


def test_hosts_that_cannot_start_end_the_run_and_not_their_trials(pool_of, fake_base, caplog):
    caplog.set_level(logging.ERROR)
    (fake_base.storage / "hosts").write_text("in the way")
    caller = Caller(fake_base)
    with pool_of(caller, max_hosts=1, seats=1) as pool:
        caller.join(0, fake_base.build_spec(0))
        deadline = time.monotonic() + 60
        while pool.problem is None and time.monotonic() < deadline:
            status = ray.get(caller.broker.advance.remote(0, "a", 10, 1.0))
        assert (status.phase, status.report) == ("waiting", None)
        with pytest.raises(ClusterError, match=r"5 hosts ended before .* run the same command"):
            pool.check()
