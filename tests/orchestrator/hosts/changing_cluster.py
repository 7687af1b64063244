"""Train on a Ray that gets and loses nodes with pretended GPUs, and say what came of it.

The Ray has three nodes at most; the engine is a fake one on the CPU. Prints JSON.
"""

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

os.environ |= {"RAY_AUTH_MODE": "disabled", "LORCHESTRA_DEVICE": "cpu"}
os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1", "RAY_DEDUP_LOGS": "0"}

import ray
import torch
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from orchestrator.hosts.broker import start_broker
from orchestrator.hosts.cluster import ray_cluster
from orchestrator.hosts.pool import HostPool
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.recording import SweepRecord
from orchestrator.journal.requests import UserRequests
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.search.budget import Budget
from orchestrator.spec.hosts_section import HostsSpec
from orchestrator.spec.sections import BudgetSpec
from orchestrator.spec.sweep import SweepSpec
from orchestrator.tuning import Stage
from tests.support import fake_engine
from tests.support.events import event
from tests.support.fake_base import FakeBase
from trainables.spec import BaseSpec, DataSpec, EvalSpec, OptimSpec

ray.cloudpickle.register_pickle_by_value(fake_engine)

TRIALS, STEPS = 8, 40
SLOW = "0.4"
"""Seconds of a step, until all changes of the cluster are made."""
SMALL = {"object_store_memory": 80 * 2**20}
STORAGE = Path(sys.argv[1])
PACE = STORAGE / "pace.txt"
STARTED = time.monotonic()


def build_slow_bench(base):
    """A bench whose steps take a while, and which notes the node that it is on."""
    bench = fake_engine.build_bench(base)
    engine, step, pace = bench.engine, bench.engine.step, PACE

    def step_slowly(seats):
        time.sleep(float(pace.read_text()))
        return step(seats)

    engine.step = step_slowly
    engine.log("group", torch.distributed.is_initialized())
    engine.log("node", ray.get_runtime_context().get_node_id(), os.getpid())
    return bench


class Listed(Searcher):
    """Gives a list of trials."""

    def __init__(self, configs):
        super().__init__(metric="eval_loss", mode="min")
        self.configs = list(configs)

    def suggest(self, trial_id):
        return self.configs.pop(0) if self.configs else Searcher.FINISHED

    def on_trial_complete(self, trial_id, result=None, error=False):
        pass


def note(*words):
    """Say on standard error what happens, and when."""
    line = " ".join(map(str, (f"{time.monotonic() - STARTED:6.1f}", *words)))
    sys.stderr.write(f"{line}\n")


class Sweep(threading.Thread):
    """A search for trials on the cluster, in a thread: nodes are started in the main thread."""

    def __init__(self, spec, base):
        super().__init__(daemon=True)
        self.spec, self.base = spec, base
        self.said, self.told, self.fleet, self.problem = [], [], None, None
        self.facts = {}

    def run(self):
        try:
            with ExitStack() as stack:
                self.search(stack)
        except Exception as error:
            self.problem = error
            raise

    def search(self, stack):
        self.fleet = fleet = stack.enter_context(ray_cluster(self.spec, self.said.append))
        note("room", fleet.placement)
        storage = SweepStorage(STORAGE)
        log = stack.enter_context(storage.open_log())
        record = SweepRecord(log, SweepHistory(), lambda history: None)
        record.add(event("sweep_started", sweep_id="s", spec={}, digest="d"))
        broker = start_broker(storage.location)
        ray.get(broker.ping.remote())
        (row,) = ray._private.state.actors().values()
        self.is_broker_here = row["Address"]["NodeID"] == ray.get_runtime_context().get_node_id()
        pool = HostPool(
            broker, storage, fleet.limits, replace(fleet.shape, build_bench=build_slow_bench),
            self.told.append, lambda hosts: None, fleet, self.said.append,
        )  # fmt: skip
        stack.enter_context(pool)
        stage = Stage(
            record=record, storage=storage, horizon=STEPS, broker=broker, fleet=fleet,
            budget=Budget(self.spec.budget, record.history), requests=UserRequests(), pool=pool,
        )  # fmt: skip
        configs = [
            {
                "trial": number, "knobs": {}, "spec": self.base.build_spec(number).to_dict(),
                "storage": str(STORAGE),
            }
            for number in range(TRIALS)
        ]  # fmt: skip
        scheduler = FIFOScheduler()
        scheduler.set_search_properties("eval_loss", "min")
        cut = stage.run(Listed(configs), scheduler, lambda trial: None)
        note("ended", cut)
        self.facts = {
            "cut": cut,
            "ends": [[trial.outcome, trial.step] for trial in record.history.ended()],
            "weights": [self.base.bundle(number)["weight"] for number in range(TRIALS)],
        }

    def await_true(self, what, claim, timeout_s=120.0):
        """Wait for something; an error of the search ends the wait."""
        until = time.monotonic() + timeout_s
        while not claim():
            if time.monotonic() > until or not self.is_alive():
                raise TimeoutError(f"{what}: {self.problem!r}")
            time.sleep(0.1)
        note(what)


class Nodes:
    """The nodes of the cluster, which come and go."""

    def __init__(self):
        head = {"num_cpus": 0, "include_dashboard": False, **SMALL}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.gpus = {}

    def add_steady(self):
        self.cluster.add_node(num_cpus=2, resources={"lorchestra_steady": 1000}, **SMALL)

    def add_gpu(self, kind):
        resources = {f"accelerator_type:{kind}": 1}
        node = self.cluster.add_node(num_cpus=1, num_gpus=1, resources=resources, **SMALL)
        self.gpus[kind] = node

    def notify(self, kind, grace_s):
        """Tell Ray that a node will be taken away, as a spot instance is."""
        gcs = ray._raylet.GcsClient(address=self.cluster.address)
        reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
        end = int(1000 * (time.time() + grace_s))
        assert gcs.drain_node(self.gpus[kind].node_id, reason, "taken away", end)[0]

    def has_host(self, kind, base):
        return any(self.gpus[kind].node_id in line for line in base.log("node"))

    def remove(self, kind):
        self.cluster.remove_node(self.gpus.pop(kind), allow_graceful=False)


def saved():
    """States that were saved after a notice."""
    return sorted(STORAGE.rglob("between-*/seal.json"))


def take_away(sweep, nodes):
    """Give notices of both kinds to hosts; returns what was saved."""
    note("the L4 gets a notice")
    nodes.notify("L4", 90)
    sweep.await_true("its trials are saved", saved, 60)
    time.sleep(1.0)
    nodes.remove("L4")
    before = saved()
    time.sleep(1.0)
    note("the host on the H100 gets SIGTERM")
    log = sweep.base.log("node")
    (process,) = (line.split()[2] for line in log if nodes.gpus["H100"].node_id in line)
    os.kill(int(process), signal.SIGTERM)
    sweep.await_true("it has another host", lambda: len(sweep.base.log("node")) > 3)
    return [one.parent.name for one in before]


def main():
    STORAGE.mkdir()
    base = FakeBase(STORAGE)
    (base.folder / "log.txt").touch()
    PACE.write_text(SLOW)
    nodes = Nodes()
    os.environ["RAY_ADDRESS"] = nodes.cluster.address
    spec = SweepSpec(
        name="tiny", base=BaseSpec(model="owner/name"), data=DataSpec(train="owner/rows"),
        optim=OptimSpec(steps=STEPS), eval=EvalSpec(every=10), budget=BudgetSpec(trials=TRIALS),
        space={"lora.rank": {"choice": [2, 4]}},
        hosts=HostsSpec(accelerator="gpu", count={"min": 1, "max": 2}, seats=2, wait_s=120.0),
    )  # fmt: skip
    facts = {}

    sweep = Sweep(spec, base)
    sweep.start()
    sweep.await_true("it waits", lambda: sweep.said)
    nodes.add_steady()
    time.sleep(1.5)
    facts["asked"] = list(sweep.said)
    nodes.add_gpu("A100")
    sweep.await_true("it trains on the A100", lambda: base.log("step"))
    facts["first"] = [sweep.fleet.limits.max_hosts, sweep.fleet.max_trials]
    free = ray.available_resources()
    facts["steady taken"] = round(1000 - free["lorchestra_steady"], 6)
    nodes.add_gpu("L4")
    sweep.await_true("the L4 has a host", lambda: nodes.has_host("L4", base))
    facts["both"] = [sweep.fleet.limits.max_hosts, sweep.fleet.max_trials]
    time.sleep(1.0)
    note("the A100 goes without a notice")
    nodes.remove("A100")
    sweep.await_true("that is noticed", lambda: sweep.told)
    nodes.add_gpu("H100")
    sweep.await_true("the H100 has a host", lambda: nodes.has_host("H100", base))
    time.sleep(0.5)
    facts["saved"] = take_away(sweep, nodes)
    facts["hosts"] = len(base.log("node"))
    facts["groups"] = sorted({line.split()[1] for line in base.log("group")})
    PACE.write_text("0.01")
    sweep.join(90)
    words = Counter(word.split(".")[0] for line in base.log("step") for word in line.split()[1:])
    facts["steps"] = sorted(words.values())
    facts |= sweep.facts | {"is broker with driver": sweep.is_broker_here}
    facts |= {"said": sweep.said, "told": sweep.told, "problem": repr(sweep.problem)}
    nodes.cluster.shutdown()
    sys.stdout.write(json.dumps(facts) + "\n")


main()
