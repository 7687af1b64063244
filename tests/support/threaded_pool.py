"""Hosts in threads of the test's process, for tests of what talks to hosts.

A host of Ray Train takes ten seconds to start; `tests/orchestrator/hosts/test_pool.py` and
`test_proxy.py` test those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.hosts.broker import broker_name
from orchestrator.hosts.members import HostStart
from orchestrator.hosts.pool import HostPool
from trainables.hosts.worker import run_host


@dataclass(frozen=True)
class ThreadedHost:
    """Stands for a trainer: `fit` runs the worker's body in the calling thread."""

    config: dict[str, Any]

    def fit(self) -> None:
        run_host(self.config)


class ThreadedPool(HostPool):
    """A pool whose hosts train with a fake engine, in threads."""

    def _build_trainer(self, start: HostStart) -> Any:
        return ThreadedHost(
            {
                "broker": broker_name(self.storage.location),
                "host_id": start.host_id,
                "base": start.base,
                "torch_threads": 0,
                "engine": self.shape.engine,
                "seats": 1,
                "build_bench": self.shape.build_bench,
            }
        )
