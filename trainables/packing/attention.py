"""Causal attention within each sequence of a pack, never across sequences.

transformers lets a caller replace a model's attention by name, together with the masks that the
model builds: plain causal, a sliding window, chunks. `packed_mask` keeps the rule of such a mask
instead of the (tokens, tokens) matrix of the whole pack; `packed_attention` applies the rule to
each block.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from trainables.packing.pack import Block, Layout

PACKED_ATTENTION = "lorchestra_packed"


@dataclass(frozen=True)
class PackedMask:
    """Mask rule of one kind of layers: whether a query position sees a key position.

    Attributes:
        rule: transformers' mask function of batch, head, query and key position, each an index
            into the packed sequence; true if the query sees the key.
        window: Sequences shorter than this are plain causal; `None` if the rule always applies.
        device: Device of the masks.
    """

    rule: Callable[..., torch.Tensor]
    window: int | None
    device: torch.device
    _made: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def of(self, block: Block, start: int) -> torch.Tensor | None:
        """Mask (1, 1, length, length) of a block's sequences; `None` for plain causal.

        Args:
            block: The rows; all of them have the same mask.
            start: Position of the block in the packed sequence.
        """
        if self.window is not None and block.length < self.window:
            return None
        key = start, block.length
        if key not in self._made:
            at = torch.arange(start, start + block.length, device=self.device)
            self._made[key] = self.rule(0, 0, at[:, None], at[None, :])[None, None]
        return self._made[key]


def packed_mask(
    *,
    mask_function: Callable[..., torch.Tensor],
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: Any,
) -> PackedMask | None:
    """The mask object for a transformers model's attention layers.

    Args:
        mask_function: The rule.
        local_size: Window or chunk size in tokens, where the layers have one.
        use_vmap: Whether the model added a rule to its mask.
        device: Device of the masks.
    """
    if local_size is None and not use_vmap:
        return None
    window = None if use_vmap else local_size
    return PackedMask(mask_function, window, torch.device(device))


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: PackedMask | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence of each block.

    Sequences are padded on the right, so causality alone keeps real tokens from seeing padding.

    Args:
        module: The calling attention layer.
        query: (1, heads, tokens, head size).
        key: The same shape, possibly with fewer heads.
        value: The same shape as `key`.
        attention_mask: The mask from `packed_mask`.
        kwargs: Scaling and dropout, as the model passes them.
    """
    outputs = []
    start = 0
    layout = module.packed_layout
    blocks = layout.blocks
    if attention_mask is None and layout.is_batched and torch.is_grad_enabled():
        blocks = merged(blocks)
    for block in blocks:
        q, k, v = (
            states[0, :, start : start + block.tokens]
            .unflatten(1, (block.rows, block.length))
            .transpose(0, 1)
            for states in (query, key, value)
        )
        mask = None if attention_mask is None else attention_mask.of(block, start)
        if kwargs.get("softcap") is not None:
            output = _softcapped_attention(module, q, k, v, mask, kwargs)
        elif mask is None and has_slow_gradient(q, v):
            output = causal_attention(q, k, v, kwargs.get("scaling"))
        else:
            output, _ = sdpa_attention_forward(module, q, k, v, mask, **kwargs)
        outputs.append(output.flatten(0, 1))
        start += block.tokens
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unsqueeze(0), None


def merged(blocks: Sequence[Block]) -> list[Block]:
    """Blocks, those of equal length that follow each other as one; their attention is plain."""
    runs = [list(run) for _, run in itertools.groupby(blocks, key=lambda block: block.length)]
    return [
        replace(run[0], seat=None, rows=sum(block.rows for block in run), dropout=None)
        for run in runs
    ]


def has_slow_gradient(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether `causal_attention` has the faster backward pass of the two.

    torch's CPU kernel takes several times as long for the gradient in bfloat16 as in float32.
    """
    return (
        query.device.type == "cpu"
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1]
        and torch.is_grad_enabled()
    )


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """Causal attention whose gradient is computed in float32, on a CPU.

    The output is that of `scaled_dot_product_attention`, bit for bit. The gradient is closer to
    the true one than that of torch, which rounds every product to bfloat16.

    Args:
        query: (rows, heads, length, head size).
        key: The same shape, possibly with fewer heads.
        value: The same shape as `key`.
        scaling: Factor on the logits; `None` for 1 / sqrt(head size).

    Returns:
        (rows, length, heads, head size).
    """
    output: torch.Tensor = _CausalAttention.apply(query, key, value, scaling)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2)


class _CausalAttention(torch.autograd.Function):
    """torch's flash attention for CPUs (arXiv:2205.14135), with the backward pass in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
    ) -> torch.Tensor:
        forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        groups = query.shape[1] // key.shape[1]
        output, logsumexp = forward(
            query, repeat_kv(key, groups), repeat_kv(value, groups), 0.0, True, scale=scaling
        )
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.scaling = scaling
        result: torch.Tensor = output
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *states, logsumexp = ctx.saved_tensors
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        query, key, value, output = (state.float() for state in states)
        heads = key.shape[1]
        groups = query.shape[1] // heads
        grads = backward(
            grad.float(), query, repeat_kv(key, groups), repeat_kv(value, groups), output,
            logsumexp, 0.0, True, scale=ctx.scaling,
        )  # fmt: skip
        if groups > 1:  # each key and value head serves `groups` query heads
            grads = (grads[0], *(one.unflatten(1, (heads, groups)).sum(2) for one in grads[1:]))
        return *(one.to(grad.dtype) for one in grads), None


def _softcapped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    options: Mapping[str, Any],
) -> torch.Tensor:
    """Attention with bounded logits (Gemma 2, arXiv:2408.00118, section 2).

    torch's fused attention has no such bound; the operations and their order follow transformers'
    eager attention.

    Args:
        module: The calling attention layer.
        query: (rows, heads, length, head size).
        key: The same shape, possibly with fewer heads.
        value: The same shape as `key`.
        mask: (1, 1, length, length), or `None` for plain causal.
        options: `softcap`, and optionally `scaling`.
    """
    length, softcap = query.shape[2], options["softcap"]
    scaling = options.get("scaling") or module.head_dim**-0.5
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    groups = query.shape[1] // key.shape[1]
    scores = query @ repeat_kv(key, groups).transpose(2, 3) * scaling
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    output: torch.Tensor = (weights @ repeat_kv(value, groups)).transpose(1, 2)
    return output


def install_packed_attention(model: Any, layout: Layout) -> None:
    """Replace a transformers model's attention by attention within the blocks of `layout`.

    Raises:
        ValueError: transformers cannot replace the attention of this model.
    """
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, packed_mask)
    model.set_attn_implementation(PACKED_ATTENTION)
    # transformers only warns about a model with its own attention code.
    if model.config.get_text_config()._attn_implementation != PACKED_ATTENTION:
        raise ValueError("this model computes its attention itself")
    for module in model.modules():
        module.packed_layout = layout
