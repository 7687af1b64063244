"""Let sweeps wait for nodes of a real Ray with pretended GPUs, and say what they said.

The argument is a folder with a `sweep.yaml` that waits for a GPU for half a second. Prints JSON.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

os.environ |= {"RAY_AUTH_MODE": "disabled", "MLFLOW_TRACKING_URI": ""}

import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from orchestrator.errors import ClusterError
from orchestrator.hosts.cluster import ray_cluster
from orchestrator.hosts.fleet import POLL_S, Fleet
from orchestrator.hosts.members import Occupancy
from orchestrator.resources.reach import Reach
from tests.orchestrator.hosts.test_placement import RANK, build_spec

FOLDER = Path(sys.argv[1])
SMALL = {"object_store_memory": 80 * 2**20}
GPU = {"num_cpus": 1, "num_gpus": 1, "resources": {"accelerator_type:A100": 1}, **SMALL}
WAITING = Occupancy(hosts=1, seats=2, seated=2, waiting=1, placed=1)

cluster = Cluster(
    initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL}
)
cluster.add_node(num_cpus=2, resources={"lorchestra_steady": 1000}, **SMALL)
os.environ["RAY_ADDRESS"] = cluster.address
facts = {}

command = [sys.executable, "-m", "orchestrator.cli", "run", str(FOLDER / "sweep.yaml"), "--plain"]
giving_up = subprocess.Popen(
    command, cwd=FOLDER, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
)

ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
auto = Fleet(build_spec(RANK), is_own=False)
auto.await_room(lambda waiting: None)
facts["auto"] = auto.on_gpus


def told_about(**places):
    """What is wrong with places, seen from the other nodes."""
    reach, until = Reach(places), time.monotonic() + 30.0
    try:
        reach.check(auto.nodes)
        while reach.is_asking and time.monotonic() < until:
            time.sleep(0.1)
            reach.check(auto.nodes)
    except ClusterError as error:
        return str(error)
    return "a node did not answer" if reach.is_asking else ""


own = f"/proc/self/task/{os.getpid()}/comm"  # a file that no other process has
facts["reached"] = told_about(**{"data.train": str(FOLDER / "*.yaml"), "--storage": str(FOLDER)})
facts["not reached"] = told_about(**{"data.train": own})
facts["storage not reached"] = told_about(**{"--storage": own})

output, errors = giving_up.communicate(timeout=240)  # before there is a GPU

said, fleets = [], []
spec = build_spec(
    RANK, accelerator="gpu", gpu_type="A100", count={"min": 1, "max": 4}, seats=2, wait_s=30.0
)


def wait_for_room():
    with ray_cluster(spec, said.append) as fleet:
        fleets.append(fleet)
        ended.wait()


def look(occupancy):
    """Look at the nodes as soon as a look is due."""
    time.sleep(POLL_S)
    return fleet.look(occupancy)


ended = threading.Event()
waiting = threading.Thread(target=wait_for_room, daemon=True)
waiting.start()
while not said:
    time.sleep(0.1)
first = cluster.add_node(**GPU)
while not fleets:
    time.sleep(0.1)
(fleet,) = fleets
facts["asked"] = list(said)
facts["started"] = {
    "hosts": fleet.limits.max_hosts,
    "on_gpus": fleet.on_gpus,
    "host_cpus": fleet.shape.cpus,
}

second = cluster.add_node(**GPU)
ray.get_runtime_context()
look(WAITING)
facts["grown"] = {
    "hosts": fleet.limits.max_hosts, "trials": fleet.max_trials, "asked": fleet.waits_for,
}  # fmt: skip
gcs = ray._raylet.GcsClient(address=cluster.address)
reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
gcs.drain_node(second.node_id, reason, "taken away", int(1000 * (time.time() + 60)))
for _ in range(20):  # until the notice is heard; a node without work may be gone by then
    look(WAITING)
    if fleet.limits.max_hosts < 2:
        break
facts["noticed"] = fleet.limits.max_hosts
cluster.remove_node(first)
cluster.remove_node(second)
look(WAITING)
facts["shrunk"] = {"hosts": fleet.limits.max_hosts, "nodes": len(fleet.nodes)}
object.__setattr__(spec.hosts, "wait_s", 2 * POLL_S)
try:
    for _ in range(9):
        look(Occupancy(hosts=0, seats=0, seated=0, waiting=1))
except ClusterError as error:
    facts["overdue"] = str(error)
ended.set()
waiting.join()

facts["code"], facts["output"] = giving_up.returncode, output
facts["error"] = errors.splitlines()[-1] if errors else ""
facts["trials"] = [str(path) for path in FOLDER.glob("runs/tiny/trials/*")]
ray.shutdown()
cluster.shutdown()
sys.stdout.write(json.dumps(facts) + "\n")
