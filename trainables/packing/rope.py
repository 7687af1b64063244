"""Rotary embeddings whose frequencies depend on how long the sequence is.

transformers computes the angles of a whole forward pass at once and looks at its longest sequence
to choose the frequencies (`modeling_rope_utils.dynamic_rope_update`). In a pack that would be the
longest neighbour:

    longrope   two sets of frequencies; a sequence beyond the positions of the original pretraining
               takes the second (LongRoPE, arXiv:2402.13753, section 3). `PackedRotary` asks for
               each seat on its own.
    dynamic    frequencies grow with the longest sequence ever seen (NTK-aware scaling), so numbers
               depend on what was computed before. Rows that would make them grow are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from trainables.packing.pack import Layout


class PackedRotary(nn.Module):
    """A rotary embedding that computes the angles of each seat's rows on their own."""

    def __init__(self, base: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.base, self.layout = base, layout

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, ...]:
        """Cosines and sines, each (1, tokens, rotary features).

        Args:
            x: (1, tokens, hidden); its device and type count.
            position_ids: (1, tokens).
            args: What else the model passes, such as the kind of layer.
            kwargs: The same by name.
        """
        parts = []
        for block, positions in zip(
            self.layout.blocks, position_ids.split(self.layout.token_counts(), dim=1), strict=True
        ):
            # A part of a micro-batch takes the frequencies that the whole would take.
            longest = positions.new_tensor([[block.whole_length - 1]])
            asked = torch.cat([positions, longest], dim=1)
            angles = self.base(x, asked, *args, **kwargs)
            parts.append([angle[:, :-1] for angle in angles])
        return tuple(torch.cat(same, dim=1) for same in zip(*parts, strict=True))


def install_packed_rotary(model: Any, layout: Layout) -> None:
    """Compute length-dependent angles seat by seat; other rotary embeddings stay as they are."""
    for name, module in list(model.named_modules()):
        if "longrope" in _rope_types(module):
            model.set_submodule(name, PackedRotary(module, layout))


def longest_row(model: Any) -> int | None:
    """Most tokens that a row may have with this model; `None` when any number is computed right.

    Learned positions end at the last one. Dynamic scaling begins behind the original positions.
    """
    rotary = [module for module in model.modules() if _rope_types(module)]
    if not rotary:
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        return positions if isinstance(positions, int) else None
    limits = [
        int(module.original_max_seq_len)
        for module in rotary
        if any("dynamic" in kind for kind in _rope_types(module))
    ]
    return min(limits, default=None)


def rope_switch(config: Any) -> int | None:
    """Tokens beyond which a sequence takes other rotary frequencies; `None` when there are none.

    Args:
        config: Of a transformers model.
    """
    found = [
        int(one["original_max_position_embeddings"])
        for one in _rope_parameters(getattr(config.get_text_config(), "rope_parameters", None))
        if one.get("rope_type") == "longrope"
    ]
    return min(found, default=None)


def _rope_types(module: nn.Module) -> tuple[str, ...]:
    kind = getattr(module, "rope_type", None)
    if isinstance(kind, Mapping):
        return tuple(str(one) for one in kind.values())
    return () if kind is None else (str(kind),)


def _rope_parameters(parameters: object) -> Iterator[Mapping[str, Any]]:
    """One mapping for the whole model, or one for each kind of layer."""
    if not isinstance(parameters, Mapping):
        return
    if "rope_type" in parameters:
        yield parameters
    for one in parameters.values():
        if isinstance(one, Mapping):
            yield one
