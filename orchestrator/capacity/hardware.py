"""GPUs that a sweep can be planned for, by short name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import SweepSpecError
from orchestrator.wording import format_size, refusal
from trainables.memory.forecast import Device

GB = 10**9


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A device that trains.

    Attributes:
        name: Its short name; the kind of a machine's own device.
        memory: Bytes that a host may take.
        device: Its properties for a forecast of memory.
        is_here: Whether it is the device of this machine.
        is_limited: Whether `hosts.memory_gib` limits the memory.
    """

    name: str
    memory: int
    device: Device
    is_here: bool = False
    is_limited: bool = False

    def limited(self, memory: int | None) -> Hardware:
        """The device with at most `memory` bytes for a host; `None` limits nothing."""
        if memory is None:
            return self
        return dataclasses.replace(self, memory=min(self.memory, memory), is_limited=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"name": self.name, "memory": self.memory, "is_cuda": self.device.is_cuda}

    def __str__(self) -> str:
        """`h100-80 (80.0 GB)`."""
        return f"{self.name} ({format_size(self.memory)})"


_AMPERE_ON = Device(is_cuda=True)
_MEMORY = {
    "h100-80": 80, "h200-141": 141, "a100-80": 80, "a100-40": 40, "l40s": 48, "l4": 24,
    "a10": 24, "t4": 15, "rtx5090": 32, "rtx4090": 24, "rtx3090": 24,
}  # fmt: skip
"""The makers' gigabytes, taken as 10^9 bytes; one less for a T4, to be on the safe side."""

GPUS: Mapping[str, Hardware] = {
    name: Hardware(
        name=name,
        memory=size * GB,
        # Turing multiplies no bfloat16: there, compute_dtype auto is float32.
        device=Device(is_cuda=True, has_bfloat16=False) if name == "t4" else _AMPERE_ON,
    )
    for name, size in _MEMORY.items()
}


def find_gpu(name: str) -> Hardware:
    """The GPU of a name.

    Raises:
        SweepSpecError: There is no such GPU in the table.
    """
    plain = name.strip().lower().replace("_", "-").replace(" ", "")
    if plain in GPUS:
        return GPUS[plain]
    near = difflib.get_close_matches(plain, GPUS, n=1)
    raise SweepSpecError(
        refusal(
            "--gpu",
            name,
            ", ".join(GPUS),
            "Name the GPU with the memory of yours.",
            meant=near[0] if near else None,
        )
    )


_IN_NAMES = (
    ("H200", "h200-141"), ("H100", "h100-80"), ("L40S", "l40s"), ("A100", "a100-80"), ("L4", "l4"),
    ("A10", "a10"), ("T4", "t4"), ("5090", "rtx5090"), ("4090", "rtx4090"), ("3090", "rtx3090"),
)  # fmt: skip
"""Words in the names that NVIDIA's driver gives to GPUs."""
_LARGE_A100 = 60 * GB


def hardware_of_gpu(name: str, memory: int) -> Hardware:
    """The GPU of a GPU of this machine, with its real memory.

    Args:
        name: The name that its driver gives.
        memory: Bytes in all.
    """
    words = name.replace("-", " ").split()
    found = next((short for word, short in _IN_NAMES if word in words), None)
    if found == "a100-80" and memory < _LARGE_A100:
        found = "a100-40"
    known = None if found is None else GPUS[found]
    device = _AMPERE_ON if known is None else known.device
    return Hardware(name=found or "this GPU", memory=memory, device=device, is_here=True)


def hardware_of_cpu(memory: int, *, has_bfloat16: bool) -> Hardware:
    """This machine without a GPU, as a device of its memory."""
    device = Device(is_cuda=False, has_bfloat16=has_bfloat16)
    return Hardware(name="this machine", memory=memory, device=device, is_here=True)
