"""What Ray Train sets up in a host's worker: no process group, and an ear for notices of an end.

A host is one worker: there is nobody to talk to, so neither NCCL nor gloo is started.
"""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

from orchestrator.resources.nodes import leaving_nodes

GRACE_S = 60.0
"""Longest time of a worker after SIGTERM."""

_TERMINATED = threading.Event()


@dataclass
class LoneWorker(TorchConfig):  # type: ignore[misc]
    """torch on one worker."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What is set up in the worker."""
        return _LoneBackend


class _LoneBackend(Backend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(heed_sigterm)


def heed_sigterm() -> None:
    """Take SIGTERM for a notice, in the main thread of a worker; the process ends a little later.

    By default Ray ends the process at once.
    """
    signal.signal(signal.SIGTERM, _note_sigterm)


def _note_sigterm(number: int, frame: object) -> None:
    if not _TERMINATED.is_set():
        _TERMINATED.set()
        threading.Timer(GRACE_S, os._exit, (128 + number,)).start()


def has_notice() -> bool:
    """Whether this process or its node is about to be ended.

    Raises:
        RayError: Ray cannot be asked.
    """
    return _TERMINATED.is_set() or ray.get_runtime_context().get_node_id() in leaving_nodes()
