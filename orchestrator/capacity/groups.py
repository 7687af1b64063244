"""Memory of a sweep's groups: smallest, typical and largest configuration, fit, seats."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.capacity.configurations import signature
from orchestrator.capacity.hardware import Hardware
from orchestrator.wording import format_size
from trainables.errors import SpecError
from trainables.memory.forecast import STATED_ERROR, Forecast
from trainables.memory.seating import SeatsDecision, decide_seats
from trainables.memory.verdict import MOST_SEATS, MemoryModel, Verdict
from trainables.spec import BaseSpec, TrialSpec


@dataclass(frozen=True, kw_only=True)
class Sized:
    """One configuration with its forecast.

    Attributes:
        trial: The configuration.
        forecast: Bytes of a host that trains it alone.
        least: The same after memory ran out: with layers computed again and single rows in a pass.
        needed: Bytes in all, corrected by what hosts have measured.
        least_needed: The same after memory ran out.
        seats: Seats of this size on one device; `None` without a device.
    """

    trial: TrialSpec
    forecast: Forecast
    least: Forecast
    needed: int
    least_needed: int
    seats: int | None = None

    def describe(self) -> str:
        """`rank 16, all-linear, 8 rows of 512 tokens`, the rows of one pass."""
        trial = self.trial
        targets = trial.lora.targets
        named = targets if isinstance(targets, str) else "+".join(targets)
        rows = trial.optim.micro_batch_size or trial.optim.batch_size
        return f"rank {trial.lora.rank}, {named}, {rows} {'row' if rows == 1 else 'rows'} a pass"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "configuration": self.describe(),
            "bytes": {**self.forecast.to_dict(), "total": self.forecast.total},
            "least_bytes": {**self.least.to_dict(), "total": self.least.total},
            "corrected_bytes": {"total": self.needed, "least": self.least_needed},
            "seats": self.seats,
        }


@dataclass(frozen=True, kw_only=True)
class GroupMemory:
    """Memory of the configurations that share hosts.

    Attributes:
        base: Their base and form.
        configurations: Configurations that were looked at.
        fitting: How many of them fit; `None` without a device.
        tight: How many of those fit only where memory is saved.
        sizes: The smallest, the typical (median) and the largest, by these names; empty if the
            memory of this kind of model is unknown.
        refused: Verdict on the largest, if it does not fit.
        unknown: Why the memory is not known; empty if it is.
        base_bytes: Bytes of the base, if at least these are known.
        capacity: Bytes of the device; `None` without one.
        measures_seats: Whether hosts on it measure how many seats pay: a GPU, or a limit of the
            memory.
    """

    base: BaseSpec
    configurations: int
    fitting: int | None = None
    tight: int = 0
    sizes: Mapping[str, Sized] = field(default_factory=dict)
    refused: Verdict | None = None
    unknown: str = ""
    base_bytes: int | None = None
    capacity: int | None = None
    measures_seats: bool = False

    @property
    def name(self) -> str:
        """The stored form, with double quantization."""
        is_double = self.base.double_quant and self.base.quantization in ("nf4", "fp4")
        return self.base.quantization + ("+dq" if is_double else "")

    @property
    def is_hopeless(self) -> bool:
        """Whether not even the smallest fits a device that is larger by the stated error."""
        if self.capacity is None or not self.sizes:
            return False
        return self.sizes["smallest"].least_needed * (1 - STATED_ERROR) > self.capacity

    def lines(self, seats: int | Literal["auto"]) -> Iterator[str]:
        """Sentences for the user.

        Args:
            seats: `hosts.seats`.
        """
        if self.unknown:
            base = "" if self.base_bytes is None else f"; the base takes {_gb(self.base_bytes)}"
            yield f"Memory, {self.name}: not known beforehand ({self.unknown}){base}."
            return
        small, typical, large = (
            self.sizes[name].needed for name in ("smallest", "typical", "largest")
        )
        spread = (
            _gb(small)
            if small == large
            else (f"{_gb(small)} to {_gb(large)}, typically {_gb(typical)}")
        )
        base = _gb(self.sizes["largest"].forecast.base)
        yield (
            f"Memory, {self.name}: {spread} for one trial, {base} of it the base"
            f"{self._seats(seats)}."
        )
        if self.refused is not None:
            yield self._refusal()
        if self.tight:
            yield (
                f"{self.tight} of {self.configurations} configurations in {self.name} fit only "
                "with decoder layers computed again and fewer rows in a pass; that is done by "
                "itself, changes no result beyond rounding, and is slower."
            )

    def expected_seats(self) -> SeatsDecision | None:
        """Seats of the typical size that a host will fill by itself; `None` without a device.

        Each seat that can pay is taken to do so: only a host can measure which do.
        """
        if self.capacity is None or not self.sizes:
            return None
        return decide_seats(self.sizes["typical"].seats)

    def _seats(self, wanted: int | Literal["auto"]) -> str:
        large, typical = self.sizes["largest"].seats, self.sizes["typical"].seats
        if large is None or typical is None:
            return ""
        said = f"; a device holds {_seats(large)} of the largest"
        if large != typical:
            said += f" and {_seats(typical)} of the typical"
        if wanted != "auto":
            return f"{said}, hosts.seats asks for {wanted}"
        return f"{said}; {self._expected()}"

    def _expected(self) -> str:
        found = self.expected_seats()
        if not self.measures_seats or found is None:
            return "hosts.seats: auto fills 1 on a CPU without hosts.memory_gib"
        return (
            f"hosts.seats: auto fills up to {found.seats}, while each raises tokens per second by "
            "a tenth"
        )

    def _refusal(self) -> str:
        refused, left = self.refused, self.configurations - (self.fitting or 0)
        if refused is None:
            return ""
        remedy = f" It would fit with {refused.remedy}." if refused.remedy else ""
        return (
            f"{left} of {self.configurations} configurations in {self.name} do not fit. The "
            f"largest ({self.sizes['largest'].describe()}): {refused.reason}.{remedy}"
        )

    def _seats_as_json(self) -> dict[str, Any] | None:
        found = self.expected_seats()
        if found is None:
            return None
        if not self.measures_seats:
            found = decide_seats(None)
        return {"auto": found.seats, "reason": found.reason}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        refused = self.refused
        return {
            "base": self.base.model,
            "form": self.name,
            "compute_dtype": self.base.compute_dtype,
            "configurations": self.configurations,
            "fitting": self.fitting,
            "tight": self.tight,
            **{name: one.to_dict() for name, one in self.sizes.items()},
            "does_not_fit": None
            if refused is None
            else {"why": refused.reason, "remedy": refused.remedy},
            "seats": self._seats_as_json(),
            "unknown": self.unknown,
            "base_bytes": self.base_bytes,
        }


def size_group(
    base: BaseSpec,
    trials: Sequence[TrialSpec],
    model: MemoryModel,
    hardware: Hardware | None,
    margin: float,
) -> GroupMemory:
    """Memory of a group.

    Args:
        base: Base and form.
        trials: Configurations of the group.
        model: What a forecast needs besides them.
        hardware: The device; `None` if it is not known.
        margin: Share by which a forecast may exceed the device before a configuration is refused.
    """
    found: dict[tuple[object, ...], Sized | None] = {}
    sized = []
    for trial in trials:
        key = signature(trial)
        if key not in found:
            found[key] = _size(model, trial)
        one = found[key]
        if one is not None:
            sized.append(dataclasses.replace(one, trial=trial))
    if not sized:
        why = "no adapter fits the base's layers"
        return GroupMemory(base=base, configurations=len(trials), unknown=why)
    sized.sort(key=lambda one: one.needed)
    chosen = {"smallest": sized[0], "typical": sized[len(sized) // 2], "largest": sized[-1]}
    if hardware is None:
        return GroupMemory(base=base, configurations=len(trials), sizes=chosen)
    room = hardware.memory / (1 - margin)
    fitting = sum(min(one.needed, one.least_needed) <= room for one in sized)
    verdict = model.fits(sized[-1].trial, hardware.memory, margin=margin)
    return GroupMemory(
        base=base,
        configurations=len(trials),
        fitting=fitting,
        tight=fitting - sum(one.needed <= room for one in sized),
        sizes={
            name: dataclasses.replace(
                one,
                seats=model.seats(one.trial, hardware.memory),
            )
            for name, one in chosen.items()
        },
        refused=None if verdict.fits else verdict,
        capacity=hardware.memory,
        measures_seats=hardware.device.is_cuda or hardware.is_limited,
    )


def _size(model: MemoryModel, trial: TrialSpec) -> Sized | None:
    try:
        return Sized(
            trial=trial,
            forecast=model.forecast(trial),
            least=model.least(trial),
            needed=model.needed(trial),
            least_needed=model.least_needed(trial),
        )
    except SpecError:
        return None  # targets that another base of the space has


def _seats(count: int) -> str:
    if count >= MOST_SEATS:
        return f"{count} or more seats"
    return f"{count} seat" if count == 1 else f"{count} seats"


def _gb(count: int) -> str:
    return format_size(count)
