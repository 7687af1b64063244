"""Body of a host's Ray Train worker: load the base once, then train the seated trials."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import datasets
import ray
import torch
import transformers
from ray.actor import ActorHandle

from trainables.base.loading import require_gpu
from trainables.engine import build_engine
from trainables.hosts.bench import Bench, Failure, attempt
from trainables.hosts.host import HostLoop
from trainables.hosts.orders import HostProcess, HostReport, Orders
from trainables.spec import BaseSpec
from trainables.training.bundle import load_bundle
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
            `torch_threads` (0 keeps torch's default) and optionally `build_bench`, another
            `Callable[[BaseSpec], Bench]`, and `has_notice`, a `Callable[[], bool]` that tells
            whether the process is about to be ended.

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
    build: Callable[[BaseSpec], Bench] = config.get("build_bench") or build_torch_bench
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
        HostLoop(
            bench, _RayMailbox(broker, host_id, incarnation), is_ending=is_ending.is_set
        ).run()
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


def build_torch_bench(base: BaseSpec) -> Bench:
    """Bench whose engine trains on a real base.

    Raises:
        BaseModelError: The base cannot be found, read or quantized.
    """
    engine = build_engine(base)
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
