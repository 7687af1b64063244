"""One seat's optimizer: AdamW, its learning rate, clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from trainables.spec import OptimSpec

_RATIO = "ratio"
"""Key of a parameter group: its learning rate over the trial's."""


def build_optimizer(
    slow: Sequence[nn.Parameter], fast: Sequence[nn.Parameter], spec: OptimSpec
) -> torch.optim.AdamW:
    """Decoupled weight decay Adam (arXiv:1711.05101) over one seat's adapter.

    LoRA+ (arXiv:2402.12354): the fast group learns `loraplus_ratio` times as fast. The decay's
    factor is the same in both; a step shrinks a weight by its own group's learning rate times it.

    Args:
        slow: Every `A`.
        fast: Every `B` and magnitude; PEFT's `create_loraplus_optimizer` groups them so.
        spec: Settings.
    """
    return torch.optim.AdamW(
        [
            {"params": slow, _RATIO: 1.0},
            {"params": fast, _RATIO: spec.loraplus_ratio},
        ],
        lr=spec.learning_rate,
        betas=(spec.beta1, spec.beta2),
        eps=spec.eps,
        weight_decay=spec.weight_decay,
    )


def learning_rate_at(spec: OptimSpec, step: int) -> float:
    """Learning rate of `A` in optimizer step `step`, counted from 0, over the whole horizon.

    Linear warm-up from 0, then constant, linear to 0, or half a cosine to 0.
    """
    if step < spec.warmup_steps:
        return spec.learning_rate * step / spec.warmup_steps
    if spec.schedule == "constant":
        return spec.learning_rate
    progress = (step - spec.warmup_steps) / max(1, spec.steps - spec.warmup_steps)
    if spec.schedule == "linear":
        return spec.learning_rate * max(0.0, 1 - progress)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def apply_gradients(
    optimizer: torch.optim.AdamW,
    parameters: Sequence[nn.Parameter],
    spec: OptimSpec,
    step: int,
    scale: float = 1.0,
) -> bool:
    """Clip, then take optimizer step `step`; gradients are cleared either way.

    Args:
        optimizer: Of `build_optimizer`.
        parameters: All of the seat's.
        spec: Settings.
        step: Counted from 0.
        scale: How many times too large the gradients are.

    Returns:
        Whether the gradient was finite. If not, the weights are left as they were.
    """
    if scale != 1.0:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(scale)
    bound = spec.max_grad_norm if spec.max_grad_norm > 0 else math.inf
    norm = torch.nn.utils.clip_grad_norm_(parameters, bound)
    is_finite = bool(torch.isfinite(norm))
    if is_finite:
        rate = learning_rate_at(spec, step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group[_RATIO]
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return is_finite
