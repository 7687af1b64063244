"""Frozen linear layers that carry the adapters of many seats, exactly.

The tokens of all seats lie behind one another in one sequence. What mixes rows in a way that
depends on how many there are — a matrix product picks its kernel by its row count — is done seat
by seat on exactly the rows the seat would have alone, so that a seat's numbers do not depend on
its neighbours, bit for bit, on any hardware. What a pack shares is the base, its dequantization
(once per layer and pass for all seats) and every elementwise operation.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from trainables.packing.lora import derive_seed
from trainables.packing.pack import Block, Dropout, Layout

FrozenLayer: TypeAlias = nn.Linear | Conv1D
"""A linear layer of a base; GPT-2's `Conv1D` is one that keeps its weight as (in, out)."""


class Branch(nn.Module):
    """One seat's adapter on one layer, in float32 and as PEFT computes it.

    LoRA adds `scaling * B A dropout(x)` to the base's output. Below float32, PEFT rounds this
    update before adding it to the output of a quantized layer; elsewhere it rounds the sum alone.
    DoRA (arXiv:2402.09353) learns the norms of the rows of `W + scaling * B A` besides: it scales
    the whole of a row's output by `magnitude / norm`, the norm without a gradient (section 4.3).
    With dropout, the base's share of what is scaled is that of `dropout(x)`.

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
        self, x: torch.Tensor, y: torch.Tensor, block: Block, base: FrozenLayer
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
            update = update * self.scaling
            if isinstance(base, Linear4bit | Linear8bitLt):
                update = update.to(y.dtype)
            return (y + update).to(y.dtype)
        scale = (self.magnitude / row_norms(base, self.a, self.b, self.scaling)).view(1, -1)
        if dropout is not None:
            frozen = _frozen_product(x, base, None, [block.tokens])
        else:
            frozen = y if base.bias is None else y - base.bias
        return (y + ((scale - 1) * frozen + scale * update * self.scaling)).to(y.dtype)


class PackedLinear(nn.Module):
    """A frozen linear layer and, by seat, the branches on it."""

    def __init__(self, base: FrozenLayer, layout: Layout) -> None:
        super().__init__()
        self.base, self.layout = base, layout
        self.branches: dict[str, Branch] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `x` (..., in_features) to (..., out_features); its rows are those of the pack.

        Raises:
            ValueError: Other rows arrive than the tokens of the pack, as at a routed expert.
        """
        counts = self.layout.token_counts()
        if math.prod(x.shape[:-1]) != sum(counts):
            raise ValueError(
                f"a linear layer gets {math.prod(x.shape[:-1])} rows of a pack of {sum(counts)} "
                "tokens, as routed experts do"
            )
        # Two-dimensional, as torch multiplies slices of anything else by copying them. Flattened
        # twice, as the gradients of base and branches must reach x one by one, as in PEFT: a sum
        # of sums rounds differently.
        y = frozen_linear(self.base, x.flatten(0, -2), counts)
        if any(block.seat in self.branches for block in self.layout.blocks):
            blocks = zip(
                self.layout.blocks, x.flatten(0, -2).split(counts), y.split(counts), strict=True
            )
            y = _joined([self._adapted(block, own, output) for block, own, output in blocks])
        shaped: torch.Tensor = y.unflatten(0, x.shape[:-1])
        return shaped

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
        """Map `x` (1, tokens, hidden) to logits (1, scored positions, vocabulary)."""
        scored = x[0, self.layout.scored]
        return frozen_linear(self.base, scored, self.layout.answer_counts()).unsqueeze(0)


def layer_shape(base: FrozenLayer) -> tuple[int, int]:
    """Features in and features out of a frozen linear layer."""
    if isinstance(base, Conv1D):
        return int(base.weight.shape[0]), int(base.weight.shape[1])
    return base.in_features, base.out_features


def frozen_linear(base: FrozenLayer, x: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Apply a frozen linear layer to each of the `counts` runs of rows of `x` separately.

    A 4-bit layer is dequantized once for all of them. Other layers are called once per run; for
    8-bit ones this also keeps outlier columns (arXiv:2208.07339, section 3.2) a seat's own affair.
    While gradients are recorded, bitsandbytes multiplies by the dequantized 8-bit weight on a CPU;
    elsewhere it quantizes the inputs too. The layer's training mode tells it which is wanted.

    Args:
        base: A linear layer without gradients; full-precision, 8-bit or 4-bit.
        x: (sum of counts, in_features).
        counts: Rows of each run.
    """
    if getattr(base.weight, "quant_state", None) is not None:
        return _frozen_product(x, base, base.bias, counts)
    if isinstance(base, Linear8bitLt):
        base.train(torch.is_grad_enabled())
    return _joined([base(run) for run in x.split(counts)])


@torch.no_grad()
def row_norms(base: FrozenLayer, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """Norm of each row of `W + scaling * B A`, (out_features,); no gradient passes through it."""
    # In PEFT's order of operations and memory layout, so that it rounds alike.
    delta = F.linear(a.T.contiguous(), b).T
    norms: torch.Tensor = torch.linalg.norm(dense_weight(base, a.dtype) + scaling * delta, dim=1)
    return norms


def dense_weight(base: FrozenLayer, dtype: torch.dtype) -> torch.Tensor:
    """The weight (out_features, in_features) of a full-precision or 4-bit layer."""
    state: QuantState | None = getattr(base.weight, "quant_state", None)
    if state is None:
        plain: torch.Tensor = base.weight.to(dtype)
        return plain.T if isinstance(base, Conv1D) else plain
    dense: torch.Tensor = dequantize_4bit(base.weight.view(-1, 1), state)
    return dense.to(dtype)


def _frozen_product(
    x: torch.Tensor, base: FrozenLayer, bias: torch.Tensor | None, counts: list[int]
) -> torch.Tensor:
    output: torch.Tensor = _FrozenProduct.apply(x, base, bias, counts)  # type: ignore[no-untyped-call]
    return output


class _FrozenProduct(torch.autograd.Function):
    """`x W^T + bias`, where a dense form of `W` is made once per pass and kept by neither."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        base: FrozenLayer,
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


def _joined(runs: list[torch.Tensor]) -> torch.Tensor:
    return runs[0] if len(runs) == 1 else torch.cat(runs)
