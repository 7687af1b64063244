"""A rendered RayJob on pods of one machine: scaled from zero, nodes lost, the head lost.

The pods, their addresses, environment, parameters and limits are those of the manifest; the sweep
in its ConfigMap is a tiny one. MLflow runs on PostgreSQL, and the storage is an S3 server, under
the names that the manifests give them.
"""

import copy
import json
import secrets
import time
from collections import Counter
from dataclasses import dataclass

import boto3
import pytest
import yaml

from orchestrator.journal.sweep_storage import read_history
from registry import Registry
from registry.tracking.connection import connect
from registry.tracking.search import find_runs
from tests.support import manifests
from tests.support.pods import (
    Network,
    RayCluster,
    Surroundings,
    can_make_namespaces,
    forwarded,
    unmet_demand,
)

pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not can_make_namespaces(), reason="needs root, for network namespaces: run as root"
    ),
]

TRIALS, STEPS, EVERY = 4, 240, 40


def sweep_values(inputs, name):
    return {
        "name": name,
        "seed": 3,
        "base": {"model": str(inputs / "base"), "quantization": "nf4", "compute_dtype": "float32"},
        "data": {
            "train": str(inputs / "rows.jsonl"), "validation_fraction": 0.2,
            "test_fraction": 0.2, "max_tokens": 32,
        },
        "optim": {"steps": STEPS, "batch_size": 4},
        "eval": {"every": EVERY},
        "space": {
            "lora.rank": {"choice": [2, 4, 8]},
            "optim.learning_rate": {"log_uniform": [2e-3, 2e-2]},
        },
        "search": {"algorithm": "random"},
        "schedule": {"algorithm": "none"},
        "budget": {"trials": TRIALS},
        "hosts": {"seats": 1},
        "finals": {"top": 1, "seeds": 0, "forms": ["trained"]},
        "register": {"name": name},
    }  # fmt: skip


@dataclass
class Job:
    """A RayJob whose attempts a test starts and ends."""

    name: str
    spec: dict
    around: Surroundings
    attempts: int = 0

    @property
    def storage(self):
        return self.spec["entrypoint"].rpartition(" ")[2]

    def start_cluster(self):
        """A new cluster, as KubeRay makes one for each attempt."""
        self.attempts += 1
        return RayCluster(f"{self.name}{self.attempts}", self.spec["rayClusterSpec"], self.around)

    def start_driver(self, cluster):
        """The entrypoint, on the head."""
        log = self.around.folder / f"driver-{self.attempts}.log"
        return cluster.head.start(self.spec["entrypoint"], log)

    def output(self):
        return (self.around.folder / f"driver-{self.attempts}.log").read_text(errors="replace")

    def history(self):
        return read_history(self.storage)

    def await_history(self, wanted, driver, seconds=300):
        """Wait until the sweep's log shows what is wanted, while the driver runs."""
        deadline = time.monotonic() + seconds
        while not wanted(self.history()):
            assert driver.poll() is None, self.output()[-3000:]
            assert time.monotonic() < deadline, self.output()[-3000:]
            time.sleep(0.5)


@pytest.fixture
def network():
    name = f"lo{secrets.token_hex(2)}"
    with Network(
        name=name, subnet=f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
    ) as one:
        yield one


@pytest.fixture
def start_job(
    network, shared_server, s3_server, as_admin, tiny_base, tiny_data, tmp_path, monkeypatch
):
    """Makes a job of the rendered overlay with the tiny sweep, and ends its pods."""
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="lorchestra")
    network.names |= {"mlflow": network.address, "s3": network.address}
    (job,) = (one for one in manifests.manifests("local-cpu/sweep") if one["kind"] == "RayJob")
    name = f"tiny{secrets.token_hex(2)}"
    inputs, config = tmp_path / "inputs", tmp_path / "config"
    inputs.mkdir()
    config.mkdir()
    (inputs / "base").symlink_to(tiny_base)
    (inputs / "rows.jsonl").write_bytes(tiny_data.read_bytes())
    (config / "sweep.yaml").write_text(yaml.safe_dump(sweep_values(inputs, name)))
    account = shared_server.admin
    around = Surroundings(
        network=network,
        folder=tmp_path,
        places={"/cache": tmp_path / "cache", "/etc/lorchestra": config},
        values={
            "lorchestra-s3": {**s3_server, "AWS_ENDPOINT_URL": "http://s3:9000"},
            "lorchestra-mlflow": {"username": account.name, "password": account.password},
        },
        token=secrets.token_hex(32),
    )

    def start(change=lambda spec: None):
        spec = copy.deepcopy(job["spec"])
        spec["entrypoint"] = spec["entrypoint"].replace("wordnet-classes", name)
        change(spec["rayClusterSpec"])
        return Job(name=name[-6:], spec=spec, around=around)

    s3_port = int(s3_server["AWS_ENDPOINT_URL"].rpartition(":")[2])
    with (
        forwarded(network.address, 5000, shared_server.port),
        forwarded(network.address, 9000, s3_port),
    ):
        yield start


def assert_complete(job, tracking_uri):
    """The sweep ended with each trial once, in the log, in MLflow and in the registry."""
    history = job.history()
    trials = history.searched()
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert {trial.outcome.value for trial in trials} == {"completed"}
    steps = list(range(EVERY, STEPS + 1, EVERY))
    assert all([report.step for report in trial.reports] == steps for trial in trials)
    client = connect(tracking_uri)
    experiment = client.get_experiment_by_name("lorchestra")
    runs = find_runs(client, [experiment.experiment_id], {"lorchestra.sweep": history.sweep_id})
    kinds = Counter(run.data.tags["lorchestra.kind"] for run in runs)
    assert kinds == {"sweep": 1, "trial": TRIALS}
    model = yaml.safe_load((job.around.folder / "config" / "sweep.yaml").read_text())["name"]
    registry = Registry(tracking_uri)
    (version,) = registry.versions(model)
    assert "champion" in version.aliases
    assert registry.load(f"{model}@champion").predict([{"prompt": "aaa ->"}])


def with_trainers(spec):
    """A second group, of nodes that may go: the steady one without its resource."""
    trainer = copy.deepcopy(spec["workerGroupSpecs"][0])
    trainer |= {"groupName": "trainer", "minReplicas": 0, "replicas": 0}
    del trainer["resources"]
    spec["workerGroupSpecs"].append(trainer)


def from_zero(spec):
    spec["workerGroupSpecs"][0] |= {"minReplicas": 0, "replicas": 0}


def await_demand(cluster, job, driver):
    """Resources that Ray wants and no node has."""
    deadline = time.monotonic() + 120
    while not (found := unmet_demand(cluster.head, job.around)):
        assert driver.poll() is None, job.output()[-3000:]
        assert time.monotonic() < deadline, job.output()[-3000:]
        time.sleep(1.0)
    return found


def reported(history, trials=1):
    return sum(1 for trial in history.searched() if trial.reports) >= trials


def test_a_sweep_waits_for_its_first_node_and_ends_although_nodes_are_lost(start_job, as_admin):
    def change(spec):
        from_zero(spec)
        with_trainers(spec)

    job = start_job(change)
    cluster = job.start_cluster()
    try:
        driver = job.start_driver(cluster)
        assert await_demand(cluster, job, driver)
        assert job.history().trials == {}
        cluster.add_worker("steady")
        trainer = cluster.add_worker("trainer")
        job.await_history(reported, driver)
        trainer.kill()
        cluster.add_worker("trainer")
        assert driver.wait(600) == 0, job.output()[-3000:]
    finally:
        cluster.kill()
    assert_complete(job, as_admin)


@pytest.mark.slow
@pytest.mark.parametrize("is_old_alive", [False, True])
def test_a_new_cluster_continues_what_a_lost_head_began(start_job, as_admin, is_old_alive):
    job = start_job(with_trainers)
    first = job.start_cluster()
    first.add_worker("trainer")
    second = None
    try:
        driver = job.start_driver(first)
        job.await_history(lambda history: reported(history, 2), driver)
        before = job.history()
        first.head.kill()
        driver.wait(30)
        if not is_old_alive:
            first.kill()
        second = job.start_cluster()
        second.add_worker("trainer")
        driver = job.start_driver(second)
        assert driver.wait(600) == 0, job.output()[-3000:]
    finally:
        first.kill()
        if second is not None:
            second.kill()
    assert job.history().resumes >= 1
    for number, trial in before.trials.items():
        kept = [(report.step, report.metrics) for report in trial.reports]
        again = [(report.step, report.metrics) for report in job.history().trials[number].reports]
        assert json.dumps(again[: len(kept)]) == json.dumps(kept)
    assert_complete(job, as_admin)
