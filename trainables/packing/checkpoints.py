"""Decoder layers that keep only their input for the backward, and are computed again there.

A layer of the pack then takes the memory of its input in place of all its inner tensors, for one
more forward pass (arXiv:1604.06174). Nothing is drawn at random in a layer, dropout masks
included, so the second computation gives the same numbers, bit for bit. Reentrant checkpointing
would lose the gradients of a base that is frozen, because the first layer's input needs none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from trainables.packing.pack import Layout


def install_checkpoints(model: Any, layout: Layout) -> int:
    """Let the decoder layers of a model be computed again where `layout` says so.

    Returns:
        Number of such layers; 0 for a model whose layers transformers does not name.
    """
    layers = [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = functools.partial(_compute, layout, layer.forward)
    return len(layers)


def _compute(layout: Layout, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if layout.is_checkpointed and torch.is_grad_enabled():
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
    return forward(*args, **kwargs)
