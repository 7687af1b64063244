"""The Ray of a sweep with room for its hosts, and the Ray of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

from orchestrator.hosts.evaluators import WorkerShape
from orchestrator.hosts.fleet import Fleet
from orchestrator.hosts.placement import logical_cpus
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.resources.cores import available_cores
from orchestrator.resources.reach import STORAGE
from orchestrator.resources.room import PROXY_CPUS
from orchestrator.resources.session import ray_session
from orchestrator.spec.sweep import SweepSpec
from trainables.files.sources import names_path


@contextmanager
def ray_cluster(
    spec: SweepSpec,
    show: Callable[[str], None] = lambda waiting: None,
    storage: SweepStorage | None = None,
) -> Iterator[Fleet]:
    """A running Ray with room for the sweep's hosts; a local Ray ends with the block.

    The Ray is the one that the process is connected to, the one at `$RAY_ADDRESS`, or a local one.
    In a cluster, waits for nodes that are not up yet.

    Args:
        spec: The sweep.
        show: Told what the sweep waits for.
        storage: Storage that hosts must reach, if it is a folder.

    Raises:
        ClusterError: Ray cannot be joined or started, or has no room within `hosts.wait_s`.
    """
    with ray_session(logical_cpus(spec, available_cores())) as is_own:
        fleet = Fleet(spec, is_own=is_own, places=_places(spec, storage))
        try:
            fleet.await_room(show)
            yield fleet
        finally:
            fleet.close()


def _places(spec: SweepSpec, storage: SweepStorage | None) -> dict[str, str]:
    """Local files and folders that hosts must reach, by the fields that name them."""
    named = {
        "data.train": spec.data.train,
        "data.validation": spec.data.validation,
        "data.test": spec.data.test,
        "base.model": spec.base.model,
    }
    places = {
        field: source
        for field, source in named.items()
        if isinstance(source, str) and names_path(source)
    }
    if storage is not None and not storage.is_remote:
        places[STORAGE] = storage.location
    return places


@contextmanager
def ray_for_evaluation() -> Iterator[WorkerShape]:
    """A running Ray and the shape of its evaluation workers.

    Raises:
        ClusterError: Ray cannot be joined or started.
    """
    with ray_session(available_cores()):
        yield shape_of_workers()


def shape_of_workers(on_gpus: bool | None = None) -> WorkerShape:
    """Shape of evaluation workers: a worker per GPU, or a single worker with all local cores.

    Args:
        on_gpus: Whether workers use GPUs: those that are up, or one that an autoscaler adds again;
            by default if there are some.
    """
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    if on_gpus is not None:
        gpus = max(1, gpus) if on_gpus else 0
    cpus = max(1, min(int(resources.get("CPU", 0.0)), available_cores()))
    return WorkerShape(
        workers=max(1, gpus),
        cpus=PROXY_CPUS if gpus else 1.0,
        gpus=1.0 if gpus else 0.0,
        torch_threads=max(1, cpus // max(1, gpus)),
    )
