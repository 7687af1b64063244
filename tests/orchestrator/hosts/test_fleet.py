"""A sweep asks a cluster for what it needs, waits for it, and follows the cluster.

The cluster is a real Ray with pretended GPUs; its nodes come and go in a process of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.errors import ClusterError
from orchestrator.hosts.fleet import Fleet
from orchestrator.hosts.members import Occupancy
from orchestrator.resources.nodes import Node
from tests.orchestrator.hosts.test_placement import RANK, build_spec

HEAD = Node(node_id="h")
CPUS = Node(node_id="c", cpus=4.0)


def run_script(name, *arguments):
    """What a script beside this file prints as its last line."""
    script = Path(__file__).with_name(name)
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def own_fleet(*nodes, **hosts):
    """A fleet on this process's own Ray, which asks nobody for anything."""
    return Fleet(build_spec(RANK, **hosts), is_own=True, look=lambda: nodes)


def test_an_own_ray_without_a_gpu_trains_on_cpus_unless_a_gpu_is_wanted():
    fleet = own_fleet(CPUS)
    fleet.await_room(pytest.fail)
    assert (fleet.on_gpus, fleet.limits.max_hosts) == (False, 1)
    with pytest.raises(ClusterError, match=r"^hosts: Ray has 0 GPUs and 4 CPUs, .* lacks 1 GPU;"):
        own_fleet(CPUS, accelerator="gpu").await_room(pytest.fail)


def test_a_gpu_is_taken_unless_cpus_are_wanted():
    gpu = Node(node_id="g", cpus=4.0, gpus=1)
    for wanted, on_gpus in (("auto", True), ("gpu", True), ("cpu", False)):
        fleet = own_fleet(gpu, accelerator=wanted)
        fleet.await_room(pytest.fail)
        assert (fleet.on_gpus, fleet.shape.gpus) == (on_gpus, float(on_gpus))


def test_a_ray_without_cpus_is_told_what_is_missing():
    with pytest.raises(ClusterError, match=r"lacks CPUs for 1 host and a trial .* Lower hosts\.c"):
        own_fleet(HEAD).await_room(pytest.fail)


def test_an_own_ray_is_not_looked_at_again():
    assert own_fleet(CPUS).look(Occupancy(hosts=0, seats=0, seated=0, waiting=3)) is False


@pytest.fixture(scope="module")
def waited(tmp_path_factory, tiny_base, tiny_data):
    """What a sweep said that waited for nodes, and one that waited in vain."""
    folder = tmp_path_factory.mktemp("waiting")
    sweep = {
        "name": "tiny",
        "base": {"model": str(tiny_base), "quantization": "none"},
        "data": {"train": str(tiny_data)},
        "optim": {"steps": 2},
        "eval": {"every": 2},
        "budget": {"trials": 1},
        "hosts": {"accelerator": "gpu", "wait_s": 0.5},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return run_script("waiting_cluster.py", folder)


@pytest.mark.ray
def test_a_command_gives_up_with_what_it_waited_for_and_trains_on_no_cpu(waited):
    assert waited["code"] == 1
    assert "waiting for 1 GPU" in waited["output"]
    assert waited["error"].startswith(
        "lorchestra: hosts.wait_s: Ray has 0 GPUs and 2 CPUs, and the"
    )
    assert "set hosts.accelerator to cpu to train on CPUs" in waited["error"]
    assert waited["trials"] == []


@pytest.mark.ray
def test_a_sweep_starts_when_its_gpu_has_come(waited):
    assert waited["asked"] == ["waiting for 1 GPU of type A100"]
    assert waited["started"] == {"hosts": 1, "on_gpus": True, "host_cpus": 1.0}


@pytest.mark.ray
def test_the_fleet_grows_and_shrinks_with_the_nodes(waited):
    assert waited["grown"] == {
        "hosts": 2,
        "trials": 5,
        "asked": "waiting for 2 more GPUs of type A100",
    }
    assert waited["noticed"] == 1
    assert waited["shrunk"] == {"hosts": 0, "nodes": 2}
    assert "lacks 1 GPU of type A100 after" in waited["overdue"]


@pytest.mark.ray
def test_a_node_that_lacks_the_files_of_the_sweep_is_named_before_a_host_trains_there(waited):
    assert waited["reached"] == ""
    said = waited["not reached"]
    assert said.startswith("data.train: /proc/self/task/")
    assert " is not on node " in said
    assert said.endswith("nodes mount at the same place, into the image, or on a hub.")
    said = waited["storage not reached"]
    assert said.startswith("--storage: /proc/self/task/")
    assert "a folder on a disk that all nodes mount, or s3://bucket/prefix" in said


@pytest.mark.ray
def test_without_an_autoscaler_auto_trains_on_the_cpus_that_are_up(waited):
    assert waited["auto"] is False


@pytest.mark.ray
@pytest.mark.slow  # four hosts start, one after the other; the test above sees the same fleet
def test_trials_follow_the_nodes_and_end_as_if_nothing_had_happened(
    tmp_path, expected_weight, fake_base
):
    seen = run_script("changing_cluster.py", tmp_path / "storage")
    assert seen["problem"] == "None"
    cpus = "CPUs for a trial (a tenth of one for each)"
    assert seen["asked"] == [f"waiting for 1 GPU and {cpus}", "waiting for 1 GPU"]
    assert seen["first"] == [1, 3]
    assert seen["steady taken"] == pytest.approx(0.003)
    assert seen["is broker with driver"]
    assert seen["both"] == [2, 4]
    assert seen["told"] == ["host h000 went with its node: its trials continue elsewhere"]
    assert 1 <= len(seen["saved"]) <= 2  # a trial is not saved again where it has just reported
    assert seen["hosts"] >= 4
    # Only the node that went without a notice cost steps: those of its two trials since a report.
    assert len(seen["steps"]) == 8
    assert seen["steps"][:6] == [40] * 6
    assert seen["groups"] == ["False"]  # one worker needs no NCCL
    assert seen["ends"] == [["completed", 40]] * 8
    weights = [expected_weight(fake_base.build_spec(trial), 40) for trial in range(8)]
    assert seen["weights"] == weights
