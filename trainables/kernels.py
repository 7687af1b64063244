"""Frozen linear layers that carry the adapters of many seats, exactly.

The tokens of all seats lie behind one another in one sequence. What mixes rows in a way that
depends on how many there are — a matrix product picks its kernel by its row count — is done seat
by seat on exactly the rows the seat would have alone, so that a seat's numbers do not depend on
its neighbours, bit for bit, on any hardware. What a pack shares is the base, its dequantization
(once per layer and pass for all seats) and every elementwise operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainables.lora import derive_seed

PACKED_ATTENTION = "lorchestra_packed"


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """The micro-batch whose dropout masks the rows of a pass share.

    Attributes:
        key: (seed, step, micro-step).
        rows: Sequences of the micro-batch.
        length: Tokens of its longest sequence.
        first: Place in it of the first sequence of the pass.
    """

    key: tuple[int, int, int]
    rows: int
    length: int
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class Block:
    """The rows of one seat in a packed forward pass.

    Attributes:
        seat: Whose rows these are; `None` for the bare base.
        rows: Sequences in the block.
        length: Tokens per sequence, padding included.
        answers: Positions of the block whose next token is scored.
        dropout: What dropout masks are drawn for, or `None` for no dropout.
    """

    seat: str | None
    rows: int
    length: int
    answers: int
    dropout: Dropout | None = None

    @property
    def tokens(self) -> int:
        """Positions the block takes in the packed sequence."""
        return self.rows * self.length


@dataclass
class Layout:
    """The blocks of the forward pass under way; one per engine, shared by its layers."""

    blocks: tuple[Block, ...] = ()

    def token_counts(self) -> list[int]:
        """Positions of each block, in order."""
        return [block.tokens for block in self.blocks]

    def answer_counts(self) -> list[int]:
        """Scored positions of each block, in order."""
        return [block.answers for block in self.blocks]


class Branch(nn.Module):
    """One seat's adapter on one layer, in float32 and as PEFT computes it.

    LoRA adds `scaling * B A dropout(x)` to the base's output. DoRA (arXiv:2402.09353) learns the
    norms of the rows of `W + scaling * B A` besides: it scales the whole of a row's output by
    `magnitude / norm`, the norm without a gradient (section 4.3). With dropout, the base's share
    of what is scaled is that of `dropout(x)`.

    Attributes:
        a: (rank, in_features).
        b: (out_features, rank).
        magnitude: (out_features,), or `None` for LoRA.
    """

    def __init__(
        self,
        layer: str,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
        dropout: float,
        magnitude: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.layer, self.scaling, self.dropout = layer, scaling, dropout
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.magnitude = None if magnitude is None else nn.Parameter(magnitude)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, block: Block, base: nn.Linear
    ) -> torch.Tensor:
        """The adapted output (tokens of the block, out_features).

        Args:
            x: (tokens, in_features).
            y: What the base makes of it.
            block: The seat's rows.
            base: The frozen layer, which DoRA takes the norms of.
        """
        x = x.to(self.a.dtype)
        dropout = block.dropout if self.dropout > 0 else None
        if dropout is not None:
            part = (block.rows, block.length)
            x = x * dropout_mask(self.layer, dropout, part, self.dropout, x).view_as(x)
        update = F.linear(F.linear(x, self.a), self.b)
        if self.magnitude is None:
            return y + (update * self.scaling).to(y.dtype)
        scale = (self.magnitude / row_norms(base, self.a, self.b, self.scaling)).view(1, -1)
        if dropout is not None:
            frozen = _frozen_product(x, base, None, [block.tokens])
        else:
            frozen = y if base.bias is None else y - base.bias
        return (y + ((scale - 1) * frozen + scale * update * self.scaling)).to(y.dtype)


class PackedLinear(nn.Module):
    """A frozen linear layer and, by seat, the branches on it."""

    def __init__(self, base: nn.Linear, layout: Layout) -> None:
        super().__init__()
        self.base, self.layout = base, layout
        self.branches: dict[str, Branch] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `x` (1, tokens, in_features) to (1, tokens, out_features)."""
        counts = self.layout.token_counts()
        # Two-dimensional, as torch multiplies slices of anything else by copying them. Squeezed
        # twice, as the gradients of base and branches must reach x one by one, as in PEFT: a sum
        # of sums rounds differently.
        y = frozen_linear(self.base, x.squeeze(0), counts)
        if not any(block.seat in self.branches for block in self.layout.blocks):
            return y.unsqueeze(0)
        outputs = [
            self._adapted(block, x_block, y_block)
            for block, x_block, y_block in zip(
                self.layout.blocks, x.squeeze(0).split(counts), y.split(counts), strict=True
            )
        ]
        return _joined(outputs).unsqueeze(0)

    def _adapted(self, block: Block, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        branch = None if block.seat is None else self.branches.get(block.seat)
        if branch is None:
            return y
        output: torch.Tensor = branch(x, y, block, self.base)
        return output


class PackedHead(nn.Module):
    """The output head, applied to each seat's scored positions on their own."""

    def __init__(self, base: nn.Linear, layout: Layout) -> None:
        super().__init__()
        self.base, self.layout = base, layout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `x` (1, scored positions, hidden) to logits (1, scored positions, vocabulary)."""
        return frozen_linear(self.base, x.squeeze(0), self.layout.answer_counts()).unsqueeze(0)


def frozen_linear(base: nn.Linear, x: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Apply a frozen linear layer to each of the `counts` runs of rows of `x` separately.

    A 4-bit layer is dequantized once for all of them. Other layers are called once per run; for
    8-bit ones this also keeps outlier columns (arXiv:2208.07339, section 3.2) a seat's own affair.

    Args:
        base: A linear layer without gradients; full-precision, 8-bit or 4-bit.
        x: (sum of counts, in_features).
        counts: Rows of each run.
    """
    if getattr(base.weight, "quant_state", None) is not None:
        return _frozen_product(x, base, base.bias, counts)
    return _joined([base(run) for run in x.split(counts)])


@torch.no_grad()
def row_norms(base: nn.Linear, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """Norm of each row of `W + scaling * B A`, (out_features,); no gradient passes through it."""
    # In PEFT's order of operations and memory layout, so that it rounds alike.
    delta = F.linear(a.T.contiguous(), b).T
    norms: torch.Tensor = torch.linalg.norm(dense_weight(base, a.dtype) + scaling * delta, dim=1)
    return norms


def dense_weight(base: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    """The weight (out_features, in_features) of a full-precision or 4-bit layer."""
    state: QuantState | None = getattr(base.weight, "quant_state", None)
    if state is None:
        plain: torch.Tensor = base.weight.to(dtype)
        return plain
    dense: torch.Tensor = dequantize_4bit(base.weight.view(-1, 1), state)
    return dense.to(dtype)


def _frozen_product(
    x: torch.Tensor, base: nn.Linear, bias: torch.Tensor | None, counts: list[int]
) -> torch.Tensor:
    output: torch.Tensor = _FrozenProduct.apply(x, base, bias, counts)  # type: ignore[no-untyped-call]
    return output


class _FrozenProduct(torch.autograd.Function):
    """`x W^T + bias`, where a dense form of `W` is made once per pass and kept by neither."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        base: nn.Linear,
        bias: torch.Tensor | None,
        counts: list[int],
    ) -> torch.Tensor:
        ctx.base, ctx.counts = base, counts
        dense = dense_weight(base, x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        return _joined([F.linear(run, dense, bias) for run in x.split(counts)])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        dense = dense_weight(ctx.base, grad.dtype)
        runs = [run @ dense for run in grad.split(ctx.counts)]
        return _joined(runs), None, None, None


def dropout_mask(
    layer: str, whole: Dropout, part: tuple[int, int], probability: float, like: torch.Tensor
) -> torch.Tensor:
    """Inverted-dropout factors, 0 or 1 / (1 - p): (rows, length, features) of a pass.

    A pure function of the layer's name and the micro-batch (its key and its shape), so that a
    restart redraws the same, and so do the passes that a micro-batch is split into. On the CPU
    they equal what `torch.nn.Dropout` draws after `torch.manual_seed(dropout_seed(layer, key))`.

    Args:
        layer: Full name.
        whole: The micro-batch, and where the pass begins in it.
        part: Rows and length of the pass.
        probability: That of a 0.
        like: (tokens, features); the mask has its device and type.
    """
    generator = torch.Generator(like.device).manual_seed(dropout_seed(layer, whole.key))
    shape = (whole.rows, whole.length, like.shape[-1])
    noise = torch.empty(shape, dtype=like.dtype, device=like.device)
    noise.bernoulli_(1 - probability, generator=generator).div_(1 - probability)
    if shape[:2] == part:
        return noise
    # A copy: backward would keep a whole mask alive for the sake of a slice.
    return noise[whole.first : whole.first + part[0], : part[1]].clone()


def dropout_seed(layer: str, key: tuple[int, int, int]) -> int:
    """Seed of one layer's dropout mask; `key` is (seed, step, micro-step)."""
    return derive_seed("dropout", *key, layer)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_layout: Layout,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence of each block.

    Sequences are padded on the right, so causality alone keeps real tokens from seeing padding.

    Args:
        module: The attention layer that calls.
        query: (1, heads, tokens, head size).
        key: The same, perhaps with fewer heads.
        value: The same as `key`.
        attention_mask: Ignored; the blocks say who sees whom.
        packed_layout: The blocks.
        sliding_window: How many tokens back a token sees, where the model limits it.
        kwargs: Scaling and dropout, as the model passes them.
    """
    outputs = []
    start = 0
    for block in packed_layout.blocks:
        q, k, v = (
            states[0, :, start : start + block.tokens]
            .unflatten(1, (block.rows, block.length))
            .transpose(0, 1)
            for states in (query, key, value)
        )
        mask = None
        if sliding_window is not None and sliding_window < block.length:
            mask = _window_mask(block.length, sliding_window, query.device)
        output, _ = sdpa_attention_forward(module, q, k, v, mask, **kwargs)
        outputs.append(output.flatten(0, 1))
        start += block.tokens
    return _joined(outputs).unsqueeze(0), None


def install_packed_attention(model: Any) -> None:
    """Make a transformers model attend by blocks; it then needs `packed_layout` in every call."""
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    model.set_attn_implementation(PACKED_ATTENTION)


def _window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    at = torch.arange(length, device=device)
    back = at[:, None] - at[None, :]
    return ((back >= 0) & (back < window))[None, None]


def _joined(runs: list[torch.Tensor]) -> torch.Tensor:
    return runs[0] if len(runs) == 1 else torch.cat(runs)
