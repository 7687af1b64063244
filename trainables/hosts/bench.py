"""Interfaces of a host to its engine, and the classification of failures."""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from trainables.errors import TrialError
from trainables.hosts.orders import Fault, Split
from trainables.memory.calibration import MemoryReading, TrialBytes
from trainables.spec import TrialSpec

T = TypeVar("T")


class Stepped(Protocol):
    """Result of one optimizer step for a seat; see `trainables.engine.StepResult`."""

    @property
    def step(self) -> int:
        """Steps taken so far."""

    @property
    def loss(self) -> float:
        """Training loss of this step."""

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""

    @property
    def is_finite(self) -> bool:
        """Whether the step was taken; otherwise the seat is unchanged."""


class SeatForesight(Protocol):
    """The part of `trainables.training.foresight.Foresight` that a host asks."""

    def room(self) -> int | None:
        """Most seats that the memory holds; `None` if it is not known."""

    def take_reading(self) -> MemoryReading | None:
        """Forecast and outcome of the last rehearsal, once."""

    def trial_bytes(self, name: str) -> TrialBytes | None:
        """Bytes of a seat's trial; `None` if they are not known."""


class SeatEngine(Protocol):
    """The part of `trainables.engine.Engine` that a host drives.

    Attributes:
        widest_pass: Most tokens of a training pass so far.
    """

    widest_pass: int

    @property
    def foresight(self) -> SeatForesight:
        """Forecasts of the seats' memory."""

    def join(self, seat: str, spec: TrialSpec, state: Any = None, passes: int = 1) -> None:
        """Take a seat, fresh or from a state; each micro-batch is split into `passes`."""

    def leave(self, seat: str) -> None:
        """Free a seat."""

    def rehearse(self, seats: Sequence[str]) -> bool:
        """Pass the longest rows of each seat and drop the gradients, if memory is limited."""

    def step(self, seats: Sequence[str]) -> Mapping[str, Stepped]:
        """Take one optimizer step in each seat."""

    def evaluate(self, seat: str, split: Split) -> dict[str, float]:
        """Metrics `eval_*` of a seat."""

    def evaluate_base(self, spec: TrialSpec, split: Split) -> dict[str, float]:
        """Metrics `eval_*` of the bare base."""

    def save_memory(self) -> bool:
        """Use less memory from now on, with the same numbers; gives whether that is new."""

    def snapshot(self, seat: str) -> Any:
        """State of a seat to resume from."""

    def export(self, seat: str, folder: Path, metrics: Mapping[str, float]) -> Any:
        """Write the bundle, whole or not at all."""

    def trainable_params(self, seat: str) -> int:
        """Number of weights in the seat's adapter."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """An engine with functions to save and load engine states.

    Attributes:
        save_state: Writes a snapshot into an existing folder.
        load_state: Reads a snapshot back.
        load_bundle: Reads a trial's adapter from its bundle, as a state to evaluate, and its last
            metrics; raises `BundleError` if the bundle is damaged or of another trial.
        peak_memory_gib: Returns the peak memory of the process so far.
    """

    engine: SeatEngine
    save_state: Callable[[Any, Path], None]
    load_state: Callable[[Path], Any]
    load_bundle: Callable[[Path, TrialSpec], tuple[Any, Mapping[str, float]]]
    peak_memory_gib: Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Kind and reason of an error, for a trial's report.

    Attributes:
        reason: What went wrong, in one line.
        trace: Traceback of an error of a library or of the code, for the log.
    """

    fault: Fault
    reason: str
    trace: str = field(default="", compare=False, repr=False)


def attempt(work: Callable[[], T]) -> T | Failure:
    """Run a piece of a trial's work; return the result, or the error as a value.

    The exception object is dropped, because its traceback would keep the tensors of a failed step
    in memory.

    Raises:
        Exception: An error that makes the process unusable.
    """
    try:
        return work()
    except Exception as error:  # the only place that records a trial as failed
        # An illegal access or device-side assert makes every later device call fail.
        if "AcceleratorError" in _names(error):
            raise
        return failure_of(error)


def failure_of(error: Exception) -> Failure:
    """Classify an error: out of memory is infeasible, any other error is failed.

    Messages of this package are kept; other messages get the class name in front, and an error
    without text names its place. Classes are compared by name, because this module does not import
    torch.
    """
    text = describe_error(error)
    is_memory = _names(error) & {"OutOfMemoryError", "MemoryError"}
    if is_memory or "can't allocate memory" in text:  # torch's CPU allocator: a RuntimeError
        return Failure(fault="infeasible", reason=text)
    trace = "" if isinstance(error, TrialError) else "".join(traceback.format_exception(error))
    return Failure(fault="failed", reason=text, trace=trace)


def with_sizes(failure: Failure, rows: int, passes: int, fitted: int) -> Failure:
    """Prefix an out-of-memory message with the rows that did not fit, and what does.

    Args:
        failure: The failure of a trial.
        rows: Rows of its micro-batch.
        passes: Passes that its micro-batch was split into.
        fitted: Most tokens of a pass that its host has trained; 0 for none.
    """
    if failure.fault != "infeasible":
        return failure
    tried = f"out of memory with {rows} row{'s' if rows > 1 else ''} per pass"
    if passes > 1:
        tried += f", and again with {math.ceil(rows / passes)}"
    if fitted:
        tried += (
            f"; passes of up to {fitted:,} tokens fitted: set data.train_max_tokens below that"
        )
    return dataclasses.replace(failure, reason=f"{tried} ({failure.reason})")


def describe_error(error: BaseException) -> str:
    """Error in one line; without a text, the class and the place in the code."""
    text = " ".join(str(error).split())
    if isinstance(error, TrialError) and text:
        return text
    name = type(error).__name__
    if text:
        return f"{name}: {text}"
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return name
    place = frames[-1]
    file = "/".join(Path(place.filename).parts[-2:])
    return f"{name} in {place.name} ({file}, line {place.lineno})"


def _names(error: Exception) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}
