"""What a host works with, and how its failures are told apart."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from trainables.errors import TrialError
from trainables.orders import Fault, Split
from trainables.spec import TrialSpec

T = TypeVar("T")


class Stepped(Protocol):
    """What one optimizer step did to one seat; see `trainables.engine.StepResult`."""

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
        """The step was taken; if not, the seat was left as it was."""


class SeatEngine(Protocol):
    """The part of `trainables.engine.Engine` that a host drives."""

    def join(self, seat: str, spec: TrialSpec, state: Any = None, passes: int = 1) -> None:
        """Take a seat, at the start or where a state stands; a micro-batch goes in `passes`."""

    def leave(self, seat: str) -> None:
        """Free a seat."""

    def step(self, seats: Sequence[str]) -> Mapping[str, Stepped]:
        """One optimizer step in each seat."""

    def evaluate(self, seat: str, split: Split) -> dict[str, float]:
        """`eval_*` of a seat."""

    def evaluate_base(self, spec: TrialSpec, split: Split) -> dict[str, float]:
        """`eval_*` of the bare base."""

    def snapshot(self, seat: str) -> Any:
        """A state to go on from."""

    def export(self, seat: str, folder: Path, metrics: Mapping[str, float]) -> Any:
        """Write the bundle, whole or not at all."""

    def trainable_params(self, seat: str) -> int:
        """Weights in the seat's adapter."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """An engine and the way its states reach the disk.

    Attributes:
        save_state: Writes a snapshot into an existing folder.
        load_state: Reads it back.
        peak_memory_gib: Highest memory held so far.
    """

    engine: SeatEngine
    save_state: Callable[[Any, Path], None]
    load_state: Callable[[Path], Any]
    peak_memory_gib: Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error as a trial's report tells it.

    Attributes:
        reason: What went wrong, in one line.
        trace: Traceback of an error that is not one of ours, for the log.
    """

    fault: Fault
    reason: str
    trace: str = field(default="", compare=False, repr=False)


def attempt(work: Callable[[], T]) -> T | Failure:
    """Do a piece of one trial's work; its error comes back as a value.

    The error itself is let go: its traceback would keep the tensors of a step that ran out of
    memory alive.

    Raises:
        Exception: An error after which the process is unusable.
    """
    try:
        return work()
    except Exception as error:  # the one place that records a trial as failed
        if _is_fatal(error):
            raise
        return failure_of(error)


def failure_of(error: Exception) -> Failure:
    """Sort an error: out of memory is infeasible, everything else failed.

    Our own messages are kept as they are, others get their class in front; one without text names
    its place. Classes are told by name, as this module imports no torch.
    """
    text = describe_error(error)
    is_memory = _names(error) & {"OutOfMemoryError", "MemoryError"}
    if is_memory or "can't allocate memory" in text:  # torch's CPU allocator: a RuntimeError
        return Failure(fault="infeasible", reason=text)
    trace = "" if isinstance(error, TrialError) else "".join(traceback.format_exception(error))
    return Failure(fault="failed", reason=text, trace=trace)


def describe_error(error: BaseException) -> str:
    """One line that says what went wrong: an error without text names the place it comes from."""
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


def _is_fatal(error: Exception) -> bool:
    """An illegal access or device-side assert: every later call on the device fails as well."""
    return "AcceleratorError" in _names(error)


def _names(error: Exception) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}
