"""Section of a sweep file on hosts: who trains, how many, on what, and how they fail."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from orchestrator.spec.complaint import require
from trainables.training.kinds import EngineChoice

_GPU_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class HostsSpec:
    """Hosts on which trials are trained.

    Attributes:
        seats: Number of trials that a host trains at once. With `auto`, a host fills the seats
            that its memory is forecast to hold, up to the last that raises tokens per second by a
            tenth, which it measures in its first seconds; a CPU without `memory_gib` has one seat.
            No number of a trial depends on it.
        memory_gib: GiB of the device's memory that a host may take; `None` is all of a GPU, and no
            limit on a CPU.
        engine: `exact` gives each trial the numbers of the trial alone, bit for bit. `batched`
            multiplies the rows of all seats together: faster, and equal but for rounding, which
            then depends on the neighbours. `auto` is `batched` with four seats or more on a CPU in
            bfloat16, where it was measured to be faster, else `exact`.
        fresh: Start a new host for every trial instead of reusing hosts.
        max_failures: Number of restarts of a host's worker before the host is given up. Three are
            needed to tell a trial that kills its host from its neighbours.
        max_crashes: Number of host crashes during training of a trial alone, after which the trial
            fails; before, the trial continues from its checkpoint.
        max_silence_s: Longest time in seconds of one piece of work, such as a step and an
            evaluation in each seat, after which a host counts as hung, is ended and started again.
            A host that is stopped or unreachable is noticed after a minute.
        checkpoints: `needed` removes a trial's checkpoint during the sweep, as soon as neither the
            finals nor a larger budget can use the checkpoint; `all` keeps all. Adapters stay.
        accelerator: `gpu` trains on GPUs alone, one per host, and waits for them in a cluster;
            `cpu` uses no GPU; `auto` takes GPUs if the cluster has some or its autoscaler can add
            some.
        count: Number of hosts. A mapping with `min` and `max` starts with `min` and grows with the
            cluster up to `max`; `null` is at least one and no maximum on GPUs, and one per stored
            form of the base on CPUs.
        gpu_type: Type of the GPUs, as Ray names it, such as `A100`; `null` takes every type.
        wait_s: Longest time in seconds without the resources that the sweep needs from a cluster,
            at the start or later, after which the run ends with a reason.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    seats: int | Literal["auto"] = "auto"
    memory_gib: float | None = None
    engine: EngineChoice = "auto"
    fresh: bool = False
    max_failures: int = 5
    max_crashes: int = 2
    max_silence_s: float = 3600.0
    checkpoints: Literal["needed", "all"] = "needed"
    accelerator: Literal["auto", "gpu", "cpu"] = "auto"
    count: int | dict[str, int] | None = None
    gpu_type: str | None = None
    wait_s: float = 1800.0

    @property
    def min_hosts(self) -> int:
        """Number of hosts that must have room before the sweep starts."""
        if isinstance(self.count, dict):
            return self.count.get("min", 1)
        return 1 if self.count is None else self.count

    @property
    def max_hosts(self) -> int | None:
        """Largest number of hosts; `None` without a limit."""
        return self.count.get("max") if isinstance(self.count, dict) else self.count

    @property
    def memory(self) -> int | None:
        """`memory_gib` in bytes."""
        return None if self.memory_gib is None else round(self.memory_gib * 2**30)

    def __post_init__(self) -> None:
        self._check_wanted()
        require(
            self.max_crashes >= 1, "hosts.max_crashes", self.max_crashes, ">= 1", "Use 1 or more."
        )
        require(
            self.seats == "auto" or (isinstance(self.seats, int) and 1 <= self.seats <= 256),
            "hosts.seats",
            self.seats,
            "auto, or 1 to 256",
            "Use auto.",
        )
        require(
            self.memory_gib is None or 0 < self.memory_gib < math.inf,
            "hosts.memory_gib",
            self.memory_gib,
            "a number > 0",
            "Leave it out to take all of a GPU's memory.",
        )
        require(
            self.max_failures >= 0,
            "hosts.max_failures",
            self.max_failures,
            ">= 0",
            "Use 0 to give up at the first crash.",
        )
        require(
            10 <= self.max_silence_s < math.inf,
            "hosts.max_silence_s",
            self.max_silence_s,
            "10 seconds or more",
            "Use 3600.",
        )

    def _check_wanted(self) -> None:
        """Check what the sweep asks a cluster for."""
        asked = self.count if isinstance(self.count, dict) else {"max": self.min_hosts}
        is_known = bool(asked) and asked.keys() <= {"min", "max"}
        most = 4096 if self.max_hosts is None else self.max_hosts
        bounds = (1, self.min_hosts, most, 4096)
        require(
            is_known and list(bounds) == sorted(bounds),
            "hosts.count",
            self.count,
            "1 to 4096, or a mapping of min and max with 1 <= min <= max <= 4096",
            "Use 4, or {min: 1, max: 4}.",
        )
        require(
            self.gpu_type is None or _GPU_TYPE.fullmatch(self.gpu_type) is not None,
            "hosts.gpu_type",
            self.gpu_type,
            "1 to 63 of letters, digits, '.', '_' and '-'",
            "Use A100, or leave it out to take every type.",
        )
        require(
            self.gpu_type is None or self.accelerator != "cpu",
            "hosts.gpu_type",
            self.gpu_type,
            "no type with hosts.accelerator cpu",
            "Set hosts.accelerator to gpu, or leave hosts.gpu_type out.",
        )
        require(
            0 <= self.wait_s < math.inf,
            "hosts.wait_s",
            self.wait_s,
            "0 or more",
            "Use 1800.",
        )
