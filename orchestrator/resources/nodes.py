"""The nodes of a Ray cluster as they are now: CPUs, GPUs by type, notices of an end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import state

from orchestrator.resources.cores import available_cores

STEADY = "lorchestra_steady"
"""Resource of nodes that are not taken away, where a cluster names such nodes."""

_TYPE_RESOURCE, _TYPE_LABEL = "accelerator_type:", "ray.io/accelerator-type"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that is up.

    Attributes:
        address: IP address, for people.
        cpus: Logical CPUs.
        gpus: GPUs.
        gpu_type: Type of the GPUs, as Ray names it; empty if Ray does not know it.
        steady: Amount of the resource `STEADY`.
        has_type_resource: Whether the type is a resource of the node, and not only a label.
        is_leaving: The node has a notice that it will be taken away; Ray places nothing there.
    """

    node_id: str
    address: str = ""
    cpus: float = 0.0
    gpus: int = 0
    gpu_type: str = ""
    steady: float = 0.0
    has_type_resource: bool = False
    is_leaving: bool = False


def look_at_nodes() -> tuple[Node, ...]:
    """The nodes that are up."""
    leaving = leaving_nodes()
    return tuple(read_node(one, one["NodeID"] in leaving) for one in ray.nodes() if one["Alive"])


def leaving_nodes() -> Mapping[str, int]:
    """Nodes with a notice that they will be taken away.

    Returns:
        The time of the end by node, in milliseconds since the epoch; 0 if it is not known.
    """
    # Ray Train reads notices here, too; its public call is one for the main thread of a worker.
    draining: dict[str, int] = state.get_draining_nodes()
    return draining


def read_node(row: Mapping[str, Any], is_leaving: bool = False) -> Node:
    """A node from a row of `ray.nodes()`."""
    resources: Mapping[str, float] = row["Resources"]
    types = [name for name in resources if name.startswith(_TYPE_RESOURCE)]
    gpus = int(resources.get("GPU", 0))
    label = row.get("Labels", {}).get(_TYPE_LABEL, "")
    gpu_type = types[0].removeprefix(_TYPE_RESOURCE) if types else label
    return Node(
        node_id=row["NodeID"],
        address=row.get("NodeManagerAddress", ""),
        cpus=resources.get("CPU", 0.0),
        gpus=gpus,
        gpu_type=gpu_type if gpus else "",
        steady=resources.get(STEADY, 0.0),
        has_type_resource=bool(types),
        is_leaving=is_leaving,
    )


def count_gpus(nodes: Iterable[Node], gpu_type: str | None = None) -> Counter[str]:
    """GPUs by type, without those of nodes that will be taken away.

    Args:
        nodes: The nodes.
        gpu_type: The only type to count, in upper or lower case; `None` counts every type.
    """
    gpus: Counter[str] = Counter()
    for node in nodes:
        if not node.is_leaving and is_of_type(node, gpu_type):
            gpus[node.gpu_type] += node.gpus
    return +gpus


def is_of_type(node: Node, gpu_type: str | None) -> bool:
    """Whether a node has GPUs of a type; any GPUs, if the type is `None`."""
    return node.gpus > 0 and (gpu_type is None or node.gpu_type.lower() == gpu_type.lower())


def type_constraint(
    gpu_type: str | None, nodes: Iterable[Node]
) -> tuple[dict[str, float], dict[str, str]]:
    """Resources and labels by which Ray finds GPUs of a type.

    The resource is asked for if a node has it. An autoscaler that starts from nothing knows its
    node groups by labels.

    Args:
        gpu_type: The type; `None` or empty for any.
        nodes: The nodes that are up.
    """
    if not gpu_type:
        return {}, {}
    known = [node for node in nodes if is_of_type(node, gpu_type)]
    name = known[0].gpu_type if known else gpu_type
    if known and all(node.has_type_resource for node in known):
        return {f"{_TYPE_RESOURCE}{name}": 0.001}, {}
    return {}, {_TYPE_LABEL: name}


def threads_here(hosts: int, has_gpu: bool) -> int:
    """Threads of torch for a host in this process.

    The cores are those of this container. Ray's number is the smaller one where CPUs are what
    hosts share; beside GPUs it is no number of cores.

    Args:
        hosts: Number of hosts on CPUs that share this node; for GPUs, each has its share.
        has_gpu: Whether hosts are placed by GPUs.
    """
    cores = available_cores()
    own_id = ray.get_runtime_context().get_node_id()
    own = next((read_node(one) for one in ray.nodes() if one["NodeID"] == own_id), None)
    if own is None:
        return 1
    if has_gpu:
        return max(1, cores // max(1, own.gpus))
    return max(1, min(cores, int(own.cpus)) // max(1, hosts))
