"""Messages between a host and the broker: plain values, without torch and without Ray.

A host reports its seats and results (`HostReport`) and receives the complete state it should reach
(`Orders`). Orders are a state, not a stream of commands: repeated orders, also after a crash,
change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainables.memory.calibration import Correction, MemoryReading
from trainables.memory.seating import SeatsDecision

Split = Literal["validation", "test"]
Fault = Literal["diverged", "infeasible", "failed"]
"""Reason why a trial cannot continue; the names equal those of the trial's outcome."""

WORST_METRICS: dict[str, float] = {
    "eval_loss": 1e9,
    "train_loss": 1e9,
    "eval_accuracy": 0.0,
    "eval_token_accuracy": 0.0,
}
"""Worst metrics, reported for a fault: finite, because a searcher waits forever on NaN."""

ZERO_METRICS: dict[str, float] = {
    "tokens": 0,
    "scheduled_learning_rate": 0.0,
    "tokens_per_s": 0.0,
    "peak_memory_gib": 0.0,
    "forecast_memory_gib": 0.0,
    "host_peak_memory_gib": 0.0,
    "trainable_params": 0,
    "host_s": 0.0,
}
"""Other metrics of a trial without a report."""

_STAND_IN = "is_stand_in"
"""Mark of metrics that stand in for an evaluation."""


@dataclass(frozen=True, kw_only=True)
class SeatRequest:
    """Spec and folders that a host needs to seat a trial.

    Attributes:
        spec: `TrialSpec.to_dict()`.
        state_dir: Folder of the trial's saved states; the trial resumes from the newest state.
        bundle_dir: Folder of the adapter, exported when the trial leaves.
    """

    spec: dict[str, Any]
    state_dir: str
    bundle_dir: str


def kept_bundle(bundle_dir: str, step: int) -> str:
    """Location of an earlier step's kept adapter, beside the trial's last bundle."""
    return f"{bundle_dir}-step-{step}"


@dataclass(frozen=True, kw_only=True)
class HostProcess:
    """Process of a host: Ray's name of the machine, and the process id there."""

    node_id: str
    pid: int


@dataclass(frozen=True, kw_only=True)
class SeatOrder:
    """Order to hold a seat.

    Attributes:
        key: Name of this attempt of the trial on this seat.
        known: Step of the broker's last report.
        until: Last permitted step of the seat.
        is_leaving: Export the bundle, then free the seat.
        claim: Number of this seating; see `trainables.hosts.claims`.
    """

    key: str
    request: SeatRequest
    known: int
    until: int
    is_leaving: bool
    claim: int = 0

    @property
    def is_due(self) -> bool:
        """Whether the seat needs work beyond being held."""
        return self.is_leaving or self.until > self.known


@dataclass(frozen=True, kw_only=True)
class Task:
    """A single evaluation on a host's base.

    Attributes:
        spec: `TrialSpec.to_dict()`: the base, the data and the evaluation settings.
        split: Split to evaluate; metrics are named `eval_*` or `test_*` after it.
        state_dir: Saved states of the trial to evaluate; `None` is the bare base.
        bundle_dir: Folder of the exported adapter, with these metrics added; `None` exports
            nothing.
    """

    spec: dict[str, Any]
    split: Split
    state_dir: str | None = None
    bundle_dir: str | None = None


@dataclass(frozen=True, kw_only=True)
class TaskOrder:
    """A task with the name of its result."""

    task_id: str
    task: Task


@dataclass(frozen=True, kw_only=True)
class Orders:
    """All orders of a host; a seat without an order is dropped unexported."""

    seats: tuple[SeatOrder, ...] = ()
    tasks: tuple[TaskOrder, ...] = ()
    is_over: bool = False

    def is_settled(self, holding: frozenset[str]) -> bool:
        """Whether a host with the seats `holding` has no work to do."""
        keys = {order.key for order in self.seats}
        return not (
            self.is_over
            or self.tasks
            or keys != holding
            or any(order.is_due for order in self.seats)
        )


@dataclass(frozen=True, kw_only=True)
class SeatReport:
    """Progress of a trial: the metrics of a step, or the final fault.

    Attributes:
        trace: Traceback of an unforeseen error, for the driver's log.
    """

    key: str
    step: int
    metrics: dict[str, float]
    fault: Fault | None = None
    reason: str = ""
    trace: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class SeatFreed:
    """Notice of a freed seat; `error` gives the reason for a missing bundle."""

    key: str
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """Result of a task: metrics, or the reason of its failure."""

    task_id: str
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class HostGauge:
    """What a host has measured.

    Attributes:
        reading: Bytes beside their forecast, where a limit of the memory is known.
        decision: Seats, where their number is left to the host.
    """

    reading: MemoryReading | None = None
    decision: SeatsDecision | None = None


@dataclass(frozen=True, kw_only=True)
class HostPrior:
    """What hosts of a group have measured, for the next host of the group.

    Attributes:
        speeds: Tokens per second of 1, 2, … seats; empty before they are measured.
        corrections: Corrections of the forecast by tokens of the longest row.
    """

    speeds: tuple[float, ...] = ()
    corrections: Mapping[int, Correction] = field(default_factory=dict)

    def learn(self, gauge: HostGauge) -> HostPrior:
        """The same with what a host has measured."""
        speeds, corrections = self.speeds, dict(self.corrections)
        if gauge.decision is not None and gauge.decision.speeds:
            speeds = gauge.decision.speeds
        if gauge.reading is not None:
            corrections[gauge.reading.train_tokens] = gauge.reading.correction
        return HostPrior(speeds=speeds, corrections=corrections)


@dataclass(frozen=True, kw_only=True)
class HostReport:
    """Seats of a host, events since its last report, and what it has measured since."""

    holding: frozenset[str] = frozenset()
    reports: tuple[SeatReport, ...] = ()
    freed: tuple[SeatFreed, ...] = ()
    tasks: tuple[TaskReport, ...] = ()
    gauge: HostGauge | None = None


def fault_metrics(last: dict[str, float]) -> dict[str, float]:
    """Metrics of a trial with a fault: the worst of each measure, the last of each count."""
    return {**ZERO_METRICS, **last, **WORST_METRICS, _STAND_IN: 1.0}


def is_stand_in(metrics: Mapping[str, Any]) -> bool:
    """Whether metrics come from `fault_metrics` rather than from an evaluation."""
    return _STAND_IN in metrics
