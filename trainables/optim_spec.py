"""Optimizer of a trial: kind, schedule, batch and what keeps its memory small."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from trainables.claims import (
    require,
    require_choice,
    require_finite,
    require_small_numbers,
    settle_floats,
)
from trainables.memory_settings import deciding_settings

Optimizer = Literal[
    "adamw",
    "adamw_8bit",
    "paged_adamw",
    "paged_adamw_8bit",
    "lion",
    "lion_8bit",
    "paged_lion_8bit",
]
Checkpointing = Literal["auto"] | bool
Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class OptimSpec:
    """Optimizer, its schedule and the horizon of a trial.

    Attributes:
        steps: Optimizer steps to the horizon. The schedule spans the whole horizon, so an early
            stopped trial is a prefix of the full trial.
        optimizer: AdamW (arXiv:1711.05101) of torch, or an optimizer of bitsandbytes: AdamW or
            Lion (arXiv:2302.06675) with moments of 32 bits or, for matrices of at least 4,096
            weights, of 8 bits in blocks of 256 (arXiv:2110.02861). The moments of a `paged_` one
            can leave a full GPU for the machine's memory (arXiv:2305.14314, section 3). Lion's
            authors use a third to a tenth of AdamW's learning rate, and a `beta2` of 0.99.
        learning_rate: Largest learning rate of the schedule.
        schedule: Course of the learning rate after the warm-up: `constant`, or down to 0 in a
            `linear` or `cosine` way.
        batch_size: Rows per optimizer step.
        micro_batch_size: Rows per forward pass; `None` passes the whole batch at once. In both
            cases the loss is the mean over the answer tokens of the whole batch.
        max_tokens_per_pass: Most tokens of a forward pass, padding included, but at least one row:
            longer micro-batches are split into several passes, which changes their result only by
            the rounding of sums. `None` splits a micro-batch where memory ran out.
        gradient_checkpointing: Keep only the inputs of decoder layers for the backward pass, and
            compute the layers again there (arXiv:1604.06174): a third more computation for much
            less memory, and the same result bit for bit. `auto` does so where a GPU's memory is
            forecast not to suffice, and where memory ran out.
        warmup_steps: Steps over which the learning rate rises linearly from 0.
        weight_decay: Decoupled weight decay (arXiv:1711.05101).
        beta1: AdamW's decay of the mean of gradients; of Lion, the mean's share in the update.
        beta2: AdamW's decay of the mean of squared gradients; of Lion, the decay of the mean.
        eps: Number added to AdamW's denominator; Lion has none.
        max_grad_norm: Upper bound of the adapter gradient's global norm; 0 disables clipping.
        loraplus_ratio: Learning rate of `B` (and of DoRA's magnitudes) over that of `A`, at least
            1 (LoRA+, arXiv:2402.12354); `learning_rate` is that of `A`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    steps: int
    optimizer: Optimizer = "adamw"
    learning_rate: float = 2e-4
    schedule: Schedule = "linear"
    warmup_steps: int = 0
    batch_size: int = 8
    micro_batch_size: int | None = None
    max_tokens_per_pass: int | None = None
    gradient_checkpointing: Checkpointing = "auto"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    loraplus_ratio: float = 1.0

    def __post_init__(self) -> None:
        require_small_numbers(self, "optim")
        settle_floats(self)
        require(self.steps >= 1, "optim.steps", self.steps, ">= 1", "Train at least one step.")
        require_choice(self.optimizer, Optimizer, "optim.optimizer")
        require_finite(self.learning_rate, "optim.learning_rate", above=0.0)
        require_choice(self.schedule, Schedule, "optim.schedule")
        require(
            0 <= self.warmup_steps <= self.steps,
            "optim.warmup_steps",
            self.warmup_steps,
            f"0 to optim.steps ({self.steps})",
            "Shorten the warm-up.",
        )
        require(
            self.batch_size >= 1,
            "optim.batch_size",
            self.batch_size,
            ">= 1",
            "Use at least one row per step.",
        )
        micro = self.micro_batch_size
        require(
            micro is None or (micro >= 1 and self.batch_size % micro == 0),
            "optim.micro_batch_size",
            micro,
            f"a divisor of optim.batch_size ({self.batch_size})",
            "Use a divisor, or leave it out.",
        )
        most = self.max_tokens_per_pass
        require(
            most is None or most >= 1,
            "optim.max_tokens_per_pass",
            most,
            ">= 1",
            "Leave it out for no limit.",
        )
        require(
            self.gradient_checkpointing == "auto" or type(self.gradient_checkpointing) is bool,
            "optim.gradient_checkpointing",
            self.gradient_checkpointing,
            "auto, true or false",
            "Use auto.",
        )
        require_finite(self.weight_decay, "optim.weight_decay")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0.0 <= value < 1.0, f"optim.{name}", value, "0 <= beta < 1", "Lower it.")
        require_finite(self.eps, "optim.eps", above=0.0)
        require_finite(self.max_grad_norm, "optim.max_grad_norm")
        require(
            math.isfinite(self.loraplus_ratio) and self.loraplus_ratio >= 1,
            "optim.loraplus_ratio",
            self.loraplus_ratio,
            "a finite number >= 1",
            "Use 1 to switch it off.",
        )

    def deciding(self) -> dict[str, Any]:
        """The settings that decide a trial's result: all but `MEMORY_SETTINGS`."""
        return deciding_settings("optim", dataclasses.asdict(self))
