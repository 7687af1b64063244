"""Start a Ray with a token, and call Ray with a wrong and with the right token."""

import os
import sys

TOKEN = "a" * 64
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}  # Ray reads them on import

from ray.cluster_utils import Cluster  # noqa: E402

from orchestrator.errors import ClusterError  # noqa: E402
from orchestrator.resources.reachable import check_ray  # noqa: E402


def ask(**environment: str) -> str:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    try:
        check_ray()
    except ClusterError as error:
        return str(error)
    return "joined"


cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
os.environ["RAY_ADDRESS"] = cluster.address
answers = [
    ask(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="b" * 64),
    ask(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN),
]
cluster.shutdown()
sys.stdout.write("\n".join(answers) + "\n")
