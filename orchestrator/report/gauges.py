"""A running sweep as gauges of Ray's metrics endpoint, which Prometheus reads on every node.

Ray exports them where its extra `default` is installed, each with `ray_` before the name; without
the extra, setting a gauge does nothing. `k8s/grafana/lorchestra.json` shows them.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import ray
from ray.util.metrics import Gauge

from orchestrator.hosts.members import Occupancy
from orchestrator.interrupts import BackgroundThread
from orchestrator.journal.history import SweepHistory
from orchestrator.outcome import TRAITS
from orchestrator.search.budget import Limit
from orchestrator.spec.sections import ObjectiveSpec

logger = logging.getLogger(__name__)

EXPORT_EVERY_S = 5.0
"""Seconds between two updates, about as often as Ray exports."""

_ANSWER_S = 5.0
_UNFINISHED = "running"

GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "lorchestra_trials": ("Trials by state: running, or their outcome.", ("state",)),
    "lorchestra_hosts": ("Hosts that train trials.", ()),
    "lorchestra_seats": ("Seats of the hosts: taken or free.", ("state",)),
    "lorchestra_trials_waiting": ("Trials that wait for a seat.", ()),
    "lorchestra_tokens_per_second": ("Tokens per second of all running trials together.", ()),
    "lorchestra_peak_memory_gib": ("Largest device memory of a running trial's host, GiB.", ()),
    "lorchestra_best_objective": ("Best value of the objective so far.", ("metric",)),
    "lorchestra_budget_limit": ("Limit of the budget, in the unit of its name.", ("limit",)),
    "lorchestra_budget_spent": ("Amount spent of a limit, in the same unit.", ("limit",)),
}
"""Description and labels of each gauge; every gauge also has the label `sweep`."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The value of a gauge.

    Attributes:
        gauge: Name in `GAUGES`.
        value: The value.
        labels: Values of the gauge's labels, without `sweep`.
    """

    gauge: str
    value: float
    labels: Mapping[str, str]


def read_gauges(
    history: SweepHistory,
    objective: ObjectiveSpec,
    limits: Sequence[Limit],
    occupancy: Occupancy,
) -> Iterator[Reading]:
    """The values of all gauges; a state without trials has the value 0.

    Args:
        history: History of the sweep; another thread may add events.
        objective: The metric that ranks trials.
        limits: Limits of the budget with the amounts spent.
        occupancy: Hosts and seated trials.
    """
    trials = list(history.trials.values())
    states = Counter(_UNFINISHED if one.outcome is None else one.outcome.value for one in trials)
    for state in (_UNFINISHED, *(outcome.value for outcome in TRAITS)):
        yield _reading("trials", states[state], state=state)
    yield _reading("hosts", occupancy.hosts)
    yield _reading("trials_waiting", occupancy.waiting)
    yield _reading("seats", occupancy.seated, state="taken")
    free = max(0, occupancy.seats - occupancy.seated)
    yield _reading("seats", free, state="free")
    running = [one for one in trials if one.outcome is None]
    yield _reading("tokens_per_second", sum(one.last("tokens_per_s") or 0.0 for one in running))
    names = ("host_peak_memory_gib", "peak_memory_gib")  # reports of an older log lack the first
    memory = (next(filter(None, map(one.last, names)), 0.0) for one in running)
    yield _reading("peak_memory_gib", max(memory, default=0.0))
    best = history.best(objective)
    value = None if best is None else best.last(objective.metric)
    if value is not None:
        yield _reading("best_objective", value, metric=str(objective.metric))
    for limit in limits:
        yield _reading("budget_limit", limit.limit, limit=limit.name)
        yield _reading("budget_spent", limit.spent, limit=limit.name)


def _reading(name: str, value: float, **labels: str) -> Reading:
    return Reading(gauge=f"lorchestra_{name}", value=float(value), labels=labels)


class GaugeFeed:
    """A thread that updates a sweep's gauges while the context is open.

    Args:
        sweep: Name of the sweep, the label of all its gauges.
        occupancy: Asks the broker for hosts and seated trials; a reference to Ray's answer.
        read: Gives the readings for an occupancy.
    """

    def __init__(
        self,
        sweep: str,
        occupancy: Callable[[], Any],
        read: Callable[[Occupancy], Iterator[Reading]],
    ) -> None:
        self._sweep, self._occupancy, self._read = sweep, occupancy, read
        self._gauges = {
            name: Gauge(name, about, tag_keys=("sweep", *labels))
            for name, (about, labels) in GAUGES.items()
        }
        self._closing = threading.Event()
        self._thread = BackgroundThread(self._run, "gauges")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.await_end(_ANSWER_S)

    def update(self) -> None:
        """Set all gauges to their present values."""
        occupancy: Occupancy = ray.get(self._occupancy(), timeout=_ANSWER_S)
        for reading in self._read(occupancy):
            labels = {"sweep": self._sweep, **reading.labels}
            self._gauges[reading.gauge].set(reading.value, tags=labels)

    def _run(self) -> None:
        while not self._closing.wait(EXPORT_EVERY_S):
            try:
                self.update()
            except ray.exceptions.RayError as error:  # the pool tells the user of a dead broker
                logger.debug("gauges were not updated: %s", error)
