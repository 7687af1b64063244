"""Memory, hours and money of a sweep, before anything starts: without Ray, GPU or weights."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.capacity.calibrated import earlier_calibration, learn
from orchestrator.capacity.configurations import by_group, configurations, count, form_of_group
from orchestrator.capacity.duration import Duration, expect_duration
from orchestrator.capacity.groups import GroupMemory, size_group
from orchestrator.capacity.hardware import Hardware
from orchestrator.capacity.lengths import SweepLengths
from orchestrator.errors import SweepSpecError
from orchestrator.journal.events import HostMeasured
from orchestrator.spec.sweep import SweepSpec
from trainables.errors import BaseModelError, SpecError
from trainables.memory.calibration import Calibration
from trainables.memory.described import architecture_of, built_base_bytes
from trainables.memory.forecast import STATED_ERROR, Device
from trainables.memory.stored_bytes import form_of
from trainables.memory.verdict import MemoryModel
from trainables.spec import BaseSpec, TrialSpec

logger = logging.getLogger(__name__)

_NOWHERE = Device(is_cuda=True)
"""The device of a forecast where none is known."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a sweep needs of a device.

    Attributes:
        hardware: The device; `None` if it is not known.
        configurations: Number of all configurations and of the valid ones; `None` for infinite.
        is_sample: Whether only a sample of the configurations was looked at.
        groups: Memory by group.
        lengths: Lengths of the rows, by base.
        duration: Hours and money.
        seats: `hosts.seats`.
        models: What forecasts need, by base and form.
        max_tokens: `data.max_tokens`.
    """

    hardware: Hardware | None
    configurations: Mapping[str, int | None]
    is_sample: bool
    groups: tuple[GroupMemory, ...]
    lengths: Mapping[str, SweepLengths]
    duration: Duration
    seats: int | Literal["auto"]
    models: Mapping[BaseSpec, MemoryModel]
    max_tokens: int

    @property
    def fits(self) -> bool:
        """Whether any configuration fits, or may fit because its memory is not known."""
        return any(group.fitting != 0 for group in self.groups)

    @property
    def is_hopeless(self) -> bool:
        """Whether nothing fits even if every forecast is too large by its stated error."""
        return all(group.is_hopeless for group in self.groups)

    def lines(self) -> Iterator[str]:
        """Sentences for the user."""
        yield self._space()
        for model, lengths in self.lengths.items():
            named = f"{model}: " if len(self.lengths) > 1 else ""
            yield named + lengths.describe(self.max_tokens)
        for group in self.groups:
            yield from group.lines(self.seats)
        yield self.duration.line()

    def short_lines(self) -> list[str]:
        """At most four sentences: memory of the largest group, what does not fit, time."""
        known = [group for group in self.groups if not group.unknown]
        shown = max(
            known or self.groups,
            key=lambda group: group.sizes["largest"].needed if group.sizes else 0,
            default=None,
        )
        lines = [] if shown is None else list(shown.lines(self.seats))
        return [self._space(), *lines[:2], self.duration.line()]

    def refusal(self) -> SweepSpecError:
        """The error for a sweep of which nothing fits."""
        group = self.groups[0]
        why = "" if group.refused is None else group.refused.reason
        smallest = group.sizes["smallest"]
        remedy = "" if group.refused is None else group.refused.remedy
        return SweepSpecError(
            f"base.model: no configuration fits {self.hardware}: the smallest "
            f"({smallest.describe()}) takes {smallest.needed / 1e9:.1f} GB. The largest: "
            f"{why}; allowed: configurations that fit. "
            + (f"It would fit with {remedy}." if remedy else "Choose a smaller base.")
        )

    def refuse(self, trial: TrialSpec, measured: Sequence[HostMeasured] = ()) -> str:
        """Reason against training one configuration; empty if it fits, or nothing is known.

        Args:
            trial: The configuration.
            measured: What the sweep's hosts have measured so far.
        """
        base = form_of_group(trial.base)
        model = self.models.get(base)
        if model is None or self.hardware is None:
            return ""
        calibration = learn(model.calibration, list(measured), base)
        model = dataclasses.replace(model, calibration=calibration)
        try:
            verdict = model.fits(trial, self.hardware.memory, margin=STATED_ERROR)
        except SpecError:
            return ""  # the trial reports its targets itself
        return "" if verdict.fits else f"memory: {verdict.reason}"

    def _space(self) -> str:
        valid, whole = self.configurations["valid"], self.configurations["all"]
        device = f" on {self.hardware}" if self.hardware is not None else ""
        if valid is None:
            said = "infinitely many, or too many to list"
        else:
            said = str(valid) if valid == whole else f"{valid}, of {whole} combinations"
        sample = "; a sample is forecast" if self.is_sample else ""
        return f"Configurations{device}: {said}{sample}."

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "device": None if self.hardware is None else self.hardware.to_dict(),
            "configurations": {**self.configurations, "is_sample": self.is_sample},
            "rows": {model: one.to_dict() for model, one in self.lengths.items()},
            "groups": [group.to_dict() for group in self.groups],
            "duration": self.duration.to_dict(),
            "seats_asked_for": self.seats,
            "fits": self.fits,
            "lines": list(self.lines()),
        }


def look_ahead(
    spec: SweepSpec,
    lengths: Mapping[str, SweepLengths],
    hardware: Hardware | None,
    *,
    trials: int,
    repeats: int,
    runs: Path,
) -> Outlook:
    """The outlook of a sweep.

    Args:
        spec: The sweep.
        lengths: Lengths of the rows, by model of the base.
        hardware: The device; `None` if it is not known.
        trials: Trials of the search.
        repeats: Trainings of the finals.
        runs: Folder of earlier sweeps.

    Raises:
        SweepSpecError: The space has no valid configuration.
    """
    found, is_whole = configurations(spec)
    if not found:
        raise SweepSpecError(
            "space: no valid configuration was found; allowed: a space of which forbid leaves "
            "something. Remove a rule."
        )
    groups, models = [], {}
    sizes = functools.cache(architecture_of)
    for base, members in by_group(found).items():
        device = _NOWHERE if hardware is None else hardware.device
        try:
            model = MemoryModel(
                shape=sizes(BaseSpec(model=base.model, revision=base.revision)),
                limits=lengths[base.model].limits,
                device=device,
                calibration=(
                    Calibration()
                    if hardware is None or not hardware.is_here
                    else earlier_calibration(runs, base)
                ),
            )
        except BaseModelError as error:
            groups.append(_unknown(base, len(members), device, error))
            continue
        models[base] = model
        groups.append(size_group(base, members, model, hardware, _margin(hardware)))
    typical = next((one.sizes["typical"].trial for one in groups if one.sizes), found[0])
    shape = models.get(form_of_group(typical.base))
    return Outlook(
        hardware=hardware,
        configurations=count(spec),
        is_sample=not is_whole,
        groups=tuple(groups),
        lengths=lengths,
        duration=expect_duration(
            spec,
            typical,
            lengths[typical.base.model],
            None if shape is None else shape.shape.weights(),
            (trials, repeats),
            hardware,
            runs,
        ),
        seats=spec.hosts.seats,
        models=models,
        max_tokens=spec.data.max_tokens,
    )


def _margin(hardware: Hardware | None) -> float:
    """A CPU swaps and shares pages: there, only what is surely too large counts as not fitting."""
    return 0.0 if hardware is None or hardware.device.is_cuda else STATED_ERROR


def _unknown(base: BaseSpec, members: int, device: Device, error: Exception) -> GroupMemory:
    why = str(error).partition(";")[0]
    try:
        size = built_base_bytes(base, form_of(base, device.automatic))
    except BaseModelError as second:
        logger.info("%s", second)
        size = None
    return GroupMemory(base=base, configurations=members, unknown=why, base_bytes=size)
