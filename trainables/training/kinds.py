"""The two ways of an engine to compute a step, and the choice between them; free of torch."""

from __future__ import annotations

from typing import Literal

EngineKind = Literal["exact", "batched"]
"""Seat by seat, bit for bit as alone; or for all seats at once, equal but for rounding."""

EngineChoice = Literal["auto", "exact", "batched"]

LEAST_SEATS = 4
"""Seats of a host from which `auto` means batched."""


def pick_engine(
    choice: EngineChoice, *, seats: int, device_type: str, compute_dtype: str
) -> EngineKind:
    """The engine of a host.

    `auto` is batched where `benchmarks/results/packing.md` has it clearly faster: in bfloat16 on a
    CPU, with at least four seats. It depends on what the sweep asks for and on the machine, never
    on which seats are taken, so that a sweep run again takes the same engine.

    Args:
        choice: `hosts.engine`.
        seats: `hosts.seats`.
        device_type: Type of the device, such as `cpu`.
        compute_dtype: Type of activations, such as `bfloat16`.
    """
    if choice != "auto":
        return choice
    is_faster = device_type == "cpu" and compute_dtype == "bfloat16" and seats >= LEAST_SEATS
    return "batched" if is_faster else "exact"


def recorded_engine(recorded: object) -> EngineKind:
    """The engine on record; records of before there were two name none, which is exact."""
    return "batched" if recorded == "batched" else "exact"
