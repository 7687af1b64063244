"""The hosts of a sweep: one-worker Ray Train runs, started and ended as trials need them."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import ray
import ray.train
from ray.actor import ActorHandle
from ray.train.torch import TorchConfig, TorchTrainer

from orchestrator.hosts.broker import broker_name
from orchestrator.hosts.demand import HostLimits
from orchestrator.hosts.members import HostStart
from orchestrator.hosts.reservations import release_orphans
from orchestrator.journal.meter import Usage
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.wording import last_line
from trainables.hosts.bench import Bench, Failure, describe_error
from trainables.spec import BaseSpec

logger = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.3
MAX_CONTROLLER_FAILURES = 10
"""Number of times that Train may retry to place a worker; a try takes a minute by default."""


@dataclass(frozen=True, kw_only=True)
class HostShape:
    """Resources of a host.

    Attributes:
        cpus: Logical CPUs of the worker.
        gpus: GPUs of the worker; 0 trains on the CPU.
        max_failures: Maximum number of worker restarts; after the next crash, another host takes
            over the trials.
        torch_threads: Threads of a torch operation; 0 keeps torch's default.
        build_bench: Makes the engine; `None` makes the training engine.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    max_failures: int = 5
    torch_threads: int = 1
    build_bench: Callable[[BaseSpec], Bench] | None = None


@dataclass
class HostPool:
    """Starts hosts for waiting trials and ends finished hosts.

    The end of its `with` block drains the hosts. The broker decides which hosts are needed; each
    host's `TorchTrainer.fit()` blocks a thread of this process.

    Args:
        broker: The actor of `orchestrator.hosts.broker`.
        storage: Storage of the sweep; Train's own files go to `hosts/` in the folder.
        limits: Limits on the number of hosts.
        shape: Resources of a host.
    """

    broker: ActorHandle
    storage: SweepStorage
    limits: HostLimits
    shape: HostShape = field(default_factory=HostShape)

    def __post_init__(self) -> None:
        self._closing = threading.Event()
        self._session = uuid.uuid4().hex[:8]  # unique, as Train resumes a run of the same name
        self._runs: list[threading.Thread] = []
        self._spans: dict[str, list[float]] = {}  # start of each host and, if ended, its end
        self._watch = threading.Thread(target=self._watch_demand, name="host-pool", daemon=True)

    def __enter__(self) -> Self:
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
        self._watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After an error or an interrupt, do not wait for hosts: checkpoints are saved already.
        self.close(timeout_s=60.0 if error is None else 2.0)

    def close(self, timeout_s: float = 60.0) -> bool:
        """Wait for leaving trials, then end all hosts; a second call does nothing.

        Returns:
            Whether every host ended within `timeout_s`. Other hosts end with this process.
        """
        if self._closing.is_set():
            return True
        deadline = time.monotonic() + timeout_s
        while not ray.get(self.broker.settle.remote(1.0)) and time.monotonic() < deadline:
            pass
        ray.get(self.broker.close.remote())
        self._closing.set()
        threads = [self._watch, *self._runs]
        for thread in threads:
            thread.join(max(0.1, deadline - time.monotonic()))
        late = [thread.name for thread in threads if thread.is_alive()]
        if late:
            logger.warning("hosts still running after %.0f s: %s", timeout_s, ", ".join(late))
        return not late

    def usage(self) -> Usage:
        """Device-seconds of all hosts so far, counted from the order to start a host."""
        now = time.monotonic()
        seconds = sum(
            (span[1] if len(span) > 1 else now) - span[0] for span in list(self._spans.values())
        )
        return Usage(seconds * max(1, self.shape.torch_threads), seconds * self.shape.gpus)

    # ---------------------------------------------------------------------------- own threads

    def _watch_demand(self) -> None:
        while not self._closing.wait(WATCH_INTERVAL_S):
            try:
                starts: list[HostStart] = ray.get(self.broker.start_hosts.remote(self.limits))
            except ray.exceptions.RayError as error:
                logger.error("host pool: the broker does not answer: %s", error)
                return
            for start in starts:
                logger.info("starting host %s for %s", start.host_id, start.group)
                run = threading.Thread(
                    target=self._run, args=(start,), name=start.host_id, daemon=True
                )
                self._runs.append(run)
                run.start()

    def _run(self, start: HostStart) -> None:
        """Run a host to the end and tell the broker the result."""
        failure: Failure | None = None
        span = self._spans[start.host_id] = [time.monotonic()]
        try:
            self._build_trainer(start).fit()
        except Exception as error:  # any error must reach the host's trials
            said = last_line(error) if str(error).strip() else describe_error(error)
            failure = Failure(fault="failed", reason=f"its host ended: {said}")
            logger.warning("host %s: %s", start.host_id, failure.reason, exc_info=error)
        span.append(time.monotonic())
        try:
            if failure is not None:
                release_orphans()  # before the broker asks for the next host
            ray.get(self.broker.end_host.remote(start.host_id, failure))
        except ray.exceptions.RayError as error:
            logger.warning("host %s ended after its broker: %s", start.host_id, error)

    def _build_trainer(self, start: HostStart) -> TorchTrainer:
        config: dict[str, Any] = {
            "broker": broker_name(self.storage.location),
            "host_id": start.host_id,
            "base": start.base,
            "torch_threads": self.shape.torch_threads,
            "build_bench": self.shape.build_bench,
        }
        resources = {"CPU": self.shape.cpus} | (
            {"GPU": self.shape.gpus} if self.shape.gpus else {}
        )
        return TorchTrainer(
            _run_host,
            train_loop_config=config,
            # One worker needs no NCCL, and builds of torch without CUDA have none.
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=1, use_gpu=self.shape.gpus > 0, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name=f"{start.host_id}-{self._session}",
                storage_path=str(self.storage.folder / "hosts"),
                failure_config=ray.train.FailureConfig(
                    max_failures=self.shape.max_failures,
                    controller_failure_limit=MAX_CONTROLLER_FAILURES,
                ),
            ),
        )


def _run_host(config: dict[str, Any]) -> None:
    """Body of a worker; imports transformers in the worker only, not in the driver."""
    from trainables.hosts.worker import run_host

    run_host(config)
