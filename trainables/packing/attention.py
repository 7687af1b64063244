"""Causal attention in which each sequence of a pack sees itself alone.

transformers exchanges a model's attention by name, and with it the masks that the model builds:
plain causal, a sliding window, chunks. `packed_mask` keeps the rule of such a mask instead of the
(tokens, tokens) matrix of the whole pack; `packed_attention` applies the rule to each block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from trainables.packing.pack import Block, Layout

PACKED_ATTENTION = "lorchestra_packed"


@dataclass(frozen=True)
class PackedMask:
    """Who sees whom in the layers of one kind.

    Attributes:
        rule: transformers' mask function: of batch, head, query and key position, each an index
            into the packed sequence, whether the query sees the key.
        window: Sequences shorter than this are plainly causal; `None` if the rule always counts.
        device: Where masks are made.
    """

    rule: Callable[..., torch.Tensor]
    window: int | None
    device: torch.device
    _made: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def of(self, block: Block, start: int) -> torch.Tensor | None:
        """The mask (1, 1, length, length) of a block's sequences; `None` for plainly causal.

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
    """What a transformers model hands to its attention layers as their mask.

    Args:
        mask_function: The rule.
        local_size: Window or chunk size in tokens, where the layers have one.
        use_vmap: Whether the model added a rule of its own.
        device: Where masks are made.
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
        module: The attention layer that calls.
        query: (1, heads, tokens, head size).
        key: The same, perhaps with fewer heads.
        value: The same as `key`.
        attention_mask: What `packed_mask` made.
        kwargs: Scaling and dropout, as the model passes them.
    """
    outputs = []
    start = 0
    for block in module.packed_layout.blocks:
        q, k, v = (
            states[0, :, start : start + block.tokens]
            .unflatten(1, (block.rows, block.length))
            .transpose(0, 1)
            for states in (query, key, value)
        )
        mask = None if attention_mask is None else attention_mask.of(block, start)
        if kwargs.get("softcap") is None:
            output, _ = sdpa_attention_forward(module, q, k, v, mask, **kwargs)
        else:
            output = _softcapped_attention(module, q, k, v, mask, kwargs)
        outputs.append(output.flatten(0, 1))
        start += block.tokens
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unsqueeze(0), None


def _softcapped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    options: Mapping[str, Any],
) -> torch.Tensor:
    """Attention whose logits are bounded (Gemma 2, arXiv:2408.00118, section 2).

    torch's fused attention has no such bound; the operations and their order are transformers'
    eager ones.

    Args:
        module: The attention layer that calls.
        query: (rows, heads, length, head size).
        key: The same, perhaps with fewer heads.
        value: The same as `key`.
        mask: (1, 1, length, length), or `None` for plainly causal.
        options: `softcap`, and perhaps `scaling`.
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
    """Make a transformers model attend by the blocks of `layout`.

    Raises:
        ValueError: transformers cannot exchange the attention of this model.
    """
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, packed_mask)
    model.set_attn_implementation(PACKED_ATTENTION)
    # transformers only warns when a model computes its attention itself.
    if model.config.get_text_config()._attn_implementation != PACKED_ATTENTION:
        raise ValueError("this model computes its attention itself")
    for module in model.modules():
        module.packed_layout = layout
