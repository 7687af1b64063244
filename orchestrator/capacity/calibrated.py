"""Corrections of forecasts by what hosts measured, in this sweep or in earlier ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from orchestrator.capacity.earlier import earlier_histories
from orchestrator.journal.events import HostMeasured
from trainables.memory.calibration import Calibration, correct
from trainables.spec import BaseSpec


def learn(calibration: Calibration, events: Iterable[HostMeasured], base: BaseSpec) -> Calibration:
    """A calibration with the measurements of hosts on a base, the last for each length of rows.

    Args:
        calibration: What is known before.
        events: The measurements, the oldest first.
        base: The base and its form.
    """
    found = Calibration(by_length=dict(calibration.by_length))
    for event in events:
        if is_group(event.group, base):
            forecast = {name: round(value) for name, value in event.forecast.items()}
            measured = {name: round(value) for name, value in event.measured.items()}
            if {"base", "passing"} <= forecast.keys() & measured.keys():
                found.learn(event.train_tokens, correct(forecast, measured))
    return found


def earlier_calibration(runs: Path, base: BaseSpec) -> Calibration:
    """Corrections of a base and form in the newest sweeps of a folder."""
    found = Calibration()
    for history in earlier_histories(runs):
        found = learn(found, history.hosts_measured, base)
    return found


def is_group(group: str, base: BaseSpec) -> bool:
    """Whether a host's group, as events have it, is of a base in its form."""
    parts: Sequence[str] = group.rsplit(" ", 2)
    if len(parts) != 3:
        return False
    model, form, compute = parts
    is_double = base.double_quant and base.quantization in ("nf4", "fp4")
    revision = f"@{base.revision}" if base.revision else ""
    return (
        model in (base.model, base.model + revision)
        and form == base.quantization + ("+dq" if is_double else "")
        and compute == base.compute_dtype
    )
