"""Whether every node on which hosts may train reaches the files of the sweep.

Hosts read rows and bases themselves, and write into the sweep's storage. A path means another file
on another machine, or none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import ClusterError
from orchestrator.resources.nodes import Node
from trainables.files.sources import files_of

logger = logging.getLogger(__name__)

STORAGE = "--storage"
"""Name of the storage folder beside the fields: there, only the existence counts."""


class Reach:
    """Asks each node once, without waiting for the answer.

    Args:
        places: Files, folders and globs of this machine by the field that names them.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._here = look(places)
        self._places = dict(places)
        self._asked: set[str] = set()
        self._answers: dict[ray.ObjectRef, str] = {}

    @property
    def is_asking(self) -> bool:
        """Whether a node has yet to answer."""
        return bool(self._answers)

    def check(self, nodes: Iterable[Node]) -> None:
        """Ask nodes that were not asked yet, and take in the answers that have come.

        Raises:
            ClusterError: A node lacks a file, or has another one in its place.
        """
        own_id = ray.get_runtime_context().get_node_id()
        for node in nodes:
            if node.node_id not in self._asked | {own_id} and not node.is_leaving:
                self._asked.add(node.node_id)
                where = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
                task = ray.remote(num_cpus=0, max_retries=0)(look)
                answer = task.options(scheduling_strategy=where).remote(self._places)
                self._answers[answer] = node.address
        if not self._answers:
            return
        ready, _ = ray.wait(list(self._answers), num_returns=len(self._answers), timeout=0)
        for answer in ready:
            address = self._answers.pop(answer)
            try:
                there = ray.get(answer)
            except ray.exceptions.RayError as error:  # the node may be gone by now
                logger.warning("node %s was not asked for its files: %s", address, error)
            else:
                self._compare(there, address)

    def _compare(self, there: Mapping[str, tuple[int, int]], address: str) -> None:
        for field, (count, size) in there.items():
            if field == STORAGE and not count:
                raise ClusterError(
                    f"{STORAGE}: {self._places[field]} is not on node {address}, where hosts may "
                    "train; allowed: a folder on a disk that all nodes mount, or "
                    "s3://bucket/prefix. Choose one of them."
                )
            if field != STORAGE and (count, size) != self._here[field]:
                lack = "is not" if not count else "has another size"
                raise ClusterError(
                    f"{field}: {self._places[field]} {lack} on node {address}, where hosts may "
                    "train; allowed: files that every node reaches. Put them on a disk that all "
                    "nodes mount at the same place, into the image, or on a hub."
                )


def look(places: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Number of files at each place, and their bytes; 0 files for a place that is not here."""
    return {field: _measure(place) for field, place in places.items()}


def _measure(place: str) -> tuple[int, int]:
    path = Path(place).expanduser()
    found = path.rglob("*") if path.is_dir() else files_of(place)
    sizes = [one.stat().st_size for one in found if one.is_file()]
    return len(sizes), sum(sizes)
