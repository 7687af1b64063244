"""Body of a host's Ray Train worker: load the base once, then train the seated trials."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import datasets
import ray
import torch
import transformers
from ray.actor import ActorHandle

from trainables.base.loading import load_base, require_gpu
from trainables.engine import Engine
from trainables.hosts.bench import Bench, Failure, attempt
from trainables.hosts.gauging import Gauge
from trainables.hosts.host import HostLoop
from trainables.hosts.orders import HostPrior, HostProcess, HostReport, Orders
from trainables.memory.calibration import Calibration
from trainables.spec import BaseSpec
from trainables.training.bundle import load_bundle
from trainables.training.kinds import EngineChoice, pick_engine
from trainables.training.memory import peak_memory_gib
from trainables.training.state import load_state, save_state

logger = logging.getLogger(__name__)

BEAT_S = 5.0
"""Seconds between two signs of life of a host."""

NOTICE_S = 1.0
"""Seconds between two looks for a notice that the process will be ended."""


def run_host(config: dict[str, Any]) -> None:
    """Serve one group of trials until the broker ends the host.

    Args:
        config: `broker` (the actor's name), `host_id`, `base` (fields of a `BaseSpec`),
            `torch_threads` (0 keeps torch's default), `engine` and `seats` (of `HostsSpec`), and
            optionally `memory` (bytes that the host may take), `finds_seats` (whether it decides
            on its seats), `prior` (a `HostPrior` of its group), `has_notice`, a
            `Callable[[], bool]` that tells whether the process is about to be ended, and
            `build_bench`, another `Callable[[BaseSpec], Bench]`.

    Raises:
        ActorDiedError: The broker is gone, so the host has no more orders.
    """
    # Silence log output, so that the terminal shows only the sweep's progress.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if config["torch_threads"]:
        torch.set_num_threads(config["torch_threads"])
    broker = ray.get_actor(config["broker"])
    prior: HostPrior = config.get("prior") or HostPrior()
    build: Callable[[BaseSpec], Bench] = config.get("build_bench") or partial(
        build_torch_bench,
        choice=config["engine"],
        seats=config["seats"],
        memory=config.get("memory"),
        prior=prior,
    )
    host_id, incarnation = config["host_id"], uuid.uuid4().hex
    gpus = [str(one) for one in ray.get_runtime_context().get_accelerator_ids().get("GPU", ())]
    is_ending = threading.Event()
    has_notice: Callable[[], bool] = config.get("has_notice") or is_ending.is_set
    with _beating(broker, host_id, incarnation, has_notice, is_ending):
        bench = try_build(build, BaseSpec(**config["base"]), gpus)
        if isinstance(bench, Failure):
            ray.get(broker.refuse.remote(host_id, bench))
            return
        ray.get(broker.hello.remote(host_id, incarnation))
        gauge = Gauge(
            bench.engine,
            time.monotonic,
            finds_seats=config.get("finds_seats", False),
            prior=prior,
        )
        mailbox = _RayMailbox(broker, host_id, incarnation)
        HostLoop(bench, mailbox, gauge=gauge, is_ending=is_ending.is_set).run()
        if is_ending.is_set():
            ray.get(broker.depart.remote(host_id, incarnation))


@contextmanager
def _beating(
    broker: ActorHandle,
    host_id: str,
    incarnation: str,
    has_notice: Callable[[], bool],
    is_ending: threading.Event,
) -> Iterator[None]:
    """Give the broker signs of life while the block runs; a stopped process gives none.

    Sets `is_ending` after a notice that the process will be ended.
    """
    process = HostProcess(node_id=ray.get_runtime_context().get_node_id(), pid=os.getpid())
    is_over = threading.Event()

    def beat() -> None:
        while True:
            broker.beat.remote(host_id, incarnation, process)
            for _ in range(round(BEAT_S / NOTICE_S)):
                with suppress(ray.exceptions.RayError):  # asked again
                    if has_notice():
                        is_ending.set()
                if is_over.wait(NOTICE_S):
                    return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def build_torch_bench(
    base: BaseSpec,
    choice: EngineChoice = "exact",
    seats: int = 1,
    memory: int | None = None,
    prior: HostPrior | None = None,
) -> Bench:
    """Bench whose engine trains on a real base.

    Args:
        base: The base.
        choice: `hosts.engine`.
        seats: `hosts.seats`; 1 where a host decides on their number.
        memory: Bytes that the host may take; `None` for those of a GPU, and no limit on a CPU.
        prior: What hosts of the same group have measured.

    Raises:
        BaseModelError: The base cannot be found, read or quantized.
    """
    known = {} if prior is None else dict(prior.corrections)
    loaded = load_base(base)
    kind = pick_engine(
        choice,
        seats=seats,
        device_type=loaded.device.type,
        compute_dtype=loaded.record.compute_dtype,
    )
    engine = Engine(loaded, memory=memory, calibration=Calibration(by_length=known), kind=kind)
    return Bench(
        engine=engine,
        save_state=save_state,
        load_state=load_state,
        load_bundle=load_bundle,
        peak_memory_gib=lambda: peak_memory_gib(engine.base.device),
    )


def try_build(
    build: Callable[[BaseSpec], Bench], base: BaseSpec, gpus: Sequence[str] = ()
) -> Bench | Failure:
    """Bench, or the failure of the build; a restart would fail in the same way."""

    def check_and_build() -> Bench:
        require_gpu(gpus)
        return build(base)

    built = attempt(check_and_build)
    if isinstance(built, Failure):
        logger.warning("base %s cannot be loaded: %s\n%s", base.model, built.reason, built.trace)
    return built


class _RayMailbox:
    """Mailbox that talks to the broker actor."""

    def __init__(self, broker: ActorHandle, host_id: str, incarnation: str) -> None:
        self._broker = broker
        self._host_id = host_id
        self._incarnation = incarnation

    def exchange(self, report: HostReport) -> Orders:
        """Deliver a report and return the orders; the broker waits up to a second for work."""
        orders: Orders = ray.get(
            self._broker.exchange.remote(self._host_id, self._incarnation, report)
        )
        return orders
