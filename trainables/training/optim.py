"""Optimizer of one seat: its choice, its moments, learning rate and clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from bitsandbytes import optim as bnb
from torch import nn

from trainables.errors import StateError
from trainables.spec import OptimSpec
from trainables.training.pages import PagedAdamW, PagedAdamW8bit, PagedLion8bit

_RATIO = "ratio"
"""Key of a parameter group: its learning rate divided by the trial's."""

_OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adamw_32bit": bnb.AdamW32bit,
    "adamw_8bit": bnb.AdamW8bit,
    "lion": bnb.Lion32bit,
    "lion_8bit": bnb.Lion8bit,
    "paged_adamw": PagedAdamW,
    "paged_adamw_8bit": PagedAdamW8bit,
    "paged_lion_8bit": PagedLion8bit,
}

_WITHOUT_PAGES = {
    "paged_adamw": "adamw_32bit",
    "paged_adamw_8bit": "adamw_8bit",
    "paged_lion_8bit": "lion_8bit",
}
"""The same computation where no memory is paged."""

_NO_MOMENTS = ("step", "qmap1", "qmap2")
"""Entries of an optimizer's state that follow from the step or from the optimizer."""


def build_optimizer(
    slow: Sequence[nn.Parameter],
    fast: Sequence[nn.Parameter],
    spec: OptimSpec,
    *,
    is_fused: bool = False,
) -> torch.optim.Optimizer:
    """Optimizer of one seat's adapter.

    LoRA+ (arXiv:2402.12354): the fast group learns `loraplus_ratio` times as fast. Both groups
    have the same decay factor; a step shrinks a weight by the group's learning rate times the
    factor. Every seat has an optimizer of its own, so seats never share a block of 8-bit moments.
    Only a GPU's memory is paged: elsewhere a paged optimizer is the same one without pages.

    Args:
        slow: All `A` matrices.
        fast: All `B` matrices and magnitudes, as in PEFT's `create_loraplus_optimizer`.
        spec: Settings of the optimizer.
        is_fused: Compute a step of torch's AdamW in one pass over all weights, which rounds
            differently than its plain form.
    """
    name: str = spec.optimizer
    if any(parameter.device.type != "cuda" for parameter in (*slow, *fast)):
        name = _WITHOUT_PAGES.get(name, name)
    options: dict[str, Any] = {} if "lion" in name else {"eps": spec.eps}
    if name == "adamw" and is_fused:
        options["fused"] = True
    return _OPTIMIZERS[name](
        [
            {"params": slow, _RATIO: 1.0},
            {"params": fast, _RATIO: spec.loraplus_ratio},
        ],
        lr=spec.learning_rate,
        betas=(spec.beta1, spec.beta2),
        weight_decay=spec.weight_decay,
        **options,
    )


def moments_of(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter
) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of a parameter's moments; none before its first step.

    AdamW of torch has `exp_avg` and `exp_avg_sq`, those of bitsandbytes `state1` and `state2`, and
    with 8 bits the largest value of each block, `absmax1` and `absmax2`.
    """
    for name, value in optimizer.state.get(parameter, {}).items():
        if name not in _NO_MOMENTS:
            yield name, value


def restore_moments(
    optimizer: torch.optim.Optimizer,
    parameter: nn.Parameter,
    saved: Mapping[str, torch.Tensor],
    step: int,
) -> None:
    """Give a parameter the moments that `moments_of` gave after `step` steps.

    Args:
        optimizer: Optimizer from `build_optimizer`.
        parameter: One of its parameters, before its first step.
        saved: Moments by name; the optimizer starts anew if there are none.
        step: Optimizer steps taken.

    Raises:
        StateError: The moments are those of another optimizer, or of another shape.
    """
    if not saved:
        return
    state = optimizer.state[parameter]
    if isinstance(optimizer, torch.optim.AdamW):
        state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        is_fused = bool(optimizer.defaults["fused"])
        device = parameter.device if is_fused else torch.device("cpu")
        state["step"] = torch.tensor(float(step), device=device)
    else:
        _make_moments(optimizer, parameter)
        state["step"] = step
    wanted = dict(moments_of(optimizer, parameter))
    for name, moment in wanted.items():
        found = saved.get(name)
        if found is None or (found.shape, found.dtype) != (moment.shape, moment.dtype):
            raise StateError(
                f"the saved state of step {step}: its optimizer has the moments "
                f"{', '.join(sorted(saved))}; allowed: {', '.join(sorted(wanted))} of "
                f"{type(optimizer).__name__}. Choose another storage for the sweep."
            )
        moment.copy_(found)


def _make_moments(optimizer: Any, parameter: nn.Parameter) -> None:
    """Allocate the moments of a parameter in an optimizer of bitsandbytes."""
    for number, group in enumerate(optimizer.param_groups):
        for place, one in enumerate(group["params"]):
            if one is parameter:
                optimizer.init_state(group, parameter, number, place)


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
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    spec: OptimSpec,
    step: int,
    scale: float = 1.0,
) -> bool:
    """Clip the gradients and take optimizer step `step`; gradients are always cleared.

    Args:
        optimizer: Optimizer from `build_optimizer`.
        parameters: All parameters of the seat.
        spec: Settings of the optimizer.
        step: Step number, counted from 0.
        scale: Factor that the gradients were scaled up by.

    Returns:
        Whether the gradient was finite. If not, the weights are unchanged.
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
