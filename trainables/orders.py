"""What a host and the broker say to each other: plain values, without torch and without Ray.

A host tells what it holds and what came of it (`HostReport`) and is told everything it should be
doing (`Orders`). Orders are a state, not a stream of commands: being told twice, or being told
again after a crash, changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["validation", "test"]
Fault = Literal["diverged", "infeasible", "failed"]
"""Why a trial cannot go on; the names are those of the outcomes it ends with."""

WORST_METRICS: dict[str, float] = {
    "eval_loss": 1e9,
    "train_loss": 1e9,
    "eval_accuracy": 0.0,
    "eval_token_accuracy": 0.0,
}
"""What a trial with a fault reports: finite, as a searcher told NaN waits for ever."""

ZERO_METRICS: dict[str, float] = {
    "tokens": 0,
    "learning_rate": 0.0,
    "tokens_per_s": 0.0,
    "peak_memory_gib": 0.0,
    "trainable_params": 0,
    "host_s": 0.0,
}
"""The other metrics of a trial that never came to report."""


@dataclass(frozen=True, kw_only=True)
class SeatRequest:
    """What a host needs to seat a trial.

    Attributes:
        spec: `TrialSpec.to_dict()`.
        state_dir: Folder of the trial's saved states; a trial goes on from the newest one there.
        bundle_dir: Folder the adapter is exported to when the trial leaves.
    """

    spec: dict[str, Any]
    state_dir: str
    bundle_dir: str


def kept_bundle(bundle_dir: str, step: int) -> str:
    """Where the adapter of an earlier step is kept, beside the one that the trial leaves."""
    return f"{bundle_dir}-step-{step}"


@dataclass(frozen=True, kw_only=True)
class SeatOrder:
    """One seat a host should hold.

    Attributes:
        key: Names this attempt of the trial on this seat.
        known: Step of the last report the broker has.
        until: Step the seat may go to, and no further.
        is_leaving: Export the bundle, then free the seat.
    """

    key: str
    request: SeatRequest
    known: int
    until: int
    is_leaving: bool

    @property
    def is_due(self) -> bool:
        """There is something to do beyond holding the seat."""
        return self.is_leaving or self.until > self.known


@dataclass(frozen=True, kw_only=True)
class Task:
    """A one-off measurement on a host's base.

    Attributes:
        spec: `TrialSpec.to_dict()`: the base, the data and how to measure.
        split: Rows to measure on; metrics are named `eval_*` or `test_*` after it.
        state_dir: Saved states of the trial to measure; `None` is the bare base.
        bundle_dir: Where to export the adapter with these metrics added; `None` exports nothing.
    """

    spec: dict[str, Any]
    split: Split
    state_dir: str | None = None
    bundle_dir: str | None = None


@dataclass(frozen=True, kw_only=True)
class TaskOrder:
    """A task and the name its result goes by."""

    task_id: str
    task: Task


@dataclass(frozen=True, kw_only=True)
class Orders:
    """All that a host should be doing; a seat that is not listed is dropped unexported."""

    seats: tuple[SeatOrder, ...] = ()
    tasks: tuple[TaskOrder, ...] = ()
    is_over: bool = False

    def is_settled(self, holding: frozenset[str]) -> bool:
        """A host that holds these seats has nothing to do."""
        keys = {order.key for order in self.seats}
        return not (
            self.is_over
            or self.tasks
            or keys != holding
            or any(order.is_due for order in self.seats)
        )


@dataclass(frozen=True, kw_only=True)
class SeatReport:
    """Where a trial is: its metrics at a step, or the fault that ended it.

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
    """A seat that was told to leave is free; `error` says why there is no bundle."""

    key: str
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """What a task measured, or why it could not."""

    task_id: str
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class HostReport:
    """What a host holds and what happened since its last report."""

    holding: frozenset[str] = frozenset()
    reports: tuple[SeatReport, ...] = ()
    freed: tuple[SeatFreed, ...] = ()
    tasks: tuple[TaskReport, ...] = ()


def fault_metrics(last: dict[str, float]) -> dict[str, float]:
    """Metrics of a trial with a fault: the worst of each measure, the last of each count."""
    return {**ZERO_METRICS, **last, **WORST_METRICS}
