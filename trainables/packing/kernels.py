"""Frozen linear layers that carry the adapters of many seats, bit for bit as each alone.

The tokens of all seats are concatenated into one sequence. An operation whose result for a row
depends on the number of rows, such as a matrix product with a kernel chosen by row count, runs
seat by seat on exactly the seat's rows. A seat's numbers therefore do not depend on its
neighbours, bit for bit, on any hardware. The seats of a pack share the base, its dequantization
(once per layer and pass for all seats) and every elementwise operation.
"""

from __future__ import annotations

import math
from collections.abc import Collection
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
"""A linear layer of a base; GPT-2's `Conv1D` stores its weight as (in, out)."""

KEPT_DENSE = "kept_dense"
"""Attribute of a layer for its dequantized weight."""


class Branch(nn.Module):
    """Adapter of one seat on a layer, in float32 and computed as in PEFT.

    LoRA adds `scaling * B A dropout(x)` to the base's output. Below float32, PEFT rounds this
    update before adding it to the output of a quantized layer; elsewhere it rounds the sum alone.
    DoRA (arXiv:2402.09353) also learns the norms of the rows of `W + scaling * B A`: it scales the
    whole output of a row by `magnitude / norm`, the norm without a gradient (section 4.3). With
    dropout, the base's share of the scaled output is computed from `dropout(x)`.

    Attributes:
        rank: Inner dimension.
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
        self.layer, self.scaling, self.dropout, self.rank = layer, scaling, dropout, a.shape[0]
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.magnitude = None if magnitude is None else nn.Parameter(magnitude)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, block: Block, base: FrozenLayer
    ) -> torch.Tensor:
        """Adapted output of the layer: (tokens of the block, out_features).

        Args:
            x: (tokens, in_features).
            y: Output of the base for `x`.
            block: The seat's rows.
            base: The frozen layer; DoRA takes the norms of its weight.
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
    """A frozen linear layer with one adapter branch for each seat."""

    def __init__(self, base: FrozenLayer, layout: Layout) -> None:
        super().__init__()
        self.base, self.layout = base, layout
        self.branches: dict[str, Branch] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `x` (..., in_features) to (..., out_features); rows of `x` are the pack's tokens.

        Raises:
            ValueError: The rows are not the tokens of the pack, as at a routed expert.
        """
        self.require_all_tokens(x)
        # Two dimensions, because torch copies slices of any other shape before multiplying.
        # Flattened twice, because gradients of base and branches must reach x separately, as in
        # PEFT: adding partial sums first rounds differently.
        y = frozen_linear(self.base, x.flatten(0, -2), self.layout.token_counts())
        if any(block.seat in self.branches for block in self.layout.blocks):
            y = self.with_branches(x.flatten(0, -2), y, self.branches.keys())
        shaped: torch.Tensor = y.unflatten(0, x.shape[:-1])
        return shaped

    def with_branches(
        self, x: torch.Tensor, y: torch.Tensor, seats: Collection[str]
    ) -> torch.Tensor:
        """Output of the layer with the branches of `seats`, each computed by itself.

        Args:
            x: (tokens of the pack, in_features).
            y: Output without these branches, (tokens of the pack, out_features).
            seats: Seats to adapt; the rows of others stay as in `y`.
        """
        counts = self.layout.token_counts()
        outputs = []
        for block, own, output in zip(
            self.layout.blocks, x.split(counts), y.split(counts), strict=True
        ):
            branch = self.branches.get(str(block.seat)) if block.seat in seats else None
            outputs.append(output if branch is None else branch(own, output, block, self.base))
        return _joined(outputs)

    def require_all_tokens(self, x: torch.Tensor) -> None:
        """Raise `ValueError` if the rows of `x` are not the tokens of the pack."""
        rows, tokens = math.prod(x.shape[:-1]), sum(self.layout.token_counts())
        if rows != tokens:
            raise ValueError(
                f"a linear layer gets {rows} rows of a pack of {tokens} tokens, as routed "
                "experts do"
            )


def layer_shape(base: FrozenLayer) -> tuple[int, int]:
    """Input features and output features of a frozen linear layer."""
    if isinstance(base, Conv1D):
        return int(base.weight.shape[0]), int(base.weight.shape[1])
    return base.in_features, base.out_features


def frozen_linear(base: FrozenLayer, x: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Apply a frozen linear layer to each run of `counts` rows of `x` separately.

    A 4-bit layer is dequantized once for all runs. Other layers are called once per run; for 8-bit
    layers the separate calls also confine outlier columns (arXiv:2208.07339, section 3.2) to a
    seat. While gradients are recorded, bitsandbytes multiplies by the dequantized 8-bit weight on
    a CPU; elsewhere it quantizes the inputs too. The layer's training mode selects between the
    two.

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
    """Norm of each row of `W + scaling * B A`, (out_features,), without a gradient."""
    # PEFT's order of operations and memory layout, for the same rounding.
    delta = F.linear(a.T.contiguous(), b).T
    norms: torch.Tensor = torch.linalg.norm(dense_weight(base, a.dtype) + scaling * delta, dim=1)
    return norms


def dense_weight(base: FrozenLayer, dtype: torch.dtype) -> torch.Tensor:
    """Weight (out_features, in_features) of a full-precision or 4-bit layer."""
    state: QuantState | None = getattr(base.weight, "quant_state", None)
    if state is None:
        plain: torch.Tensor = base.weight.to(dtype)
        return plain.T if isinstance(base, Conv1D) else plain
    kept: torch.Tensor | None = getattr(base, KEPT_DENSE, None)
    dense = dequantize_4bit(base.weight.view(-1, 1), state) if kept is None else kept
    return dense.to(dtype)


@torch.no_grad()
def keep_dense(base: FrozenLayer) -> None:
    """Keep the weight of a 4-bit layer dequantized as well; does nothing to other layers.

    `dense_weight` gives the kept numbers, which are those that it would compute.
    """
    state: QuantState | None = getattr(base.weight, "quant_state", None)
    if state is not None and getattr(base, KEPT_DENSE, None) is None:
        setattr(base, KEPT_DENSE, dequantize_4bit(base.weight.view(-1, 1), state))


def drop_dense(base: FrozenLayer) -> None:
    """Free what `keep_dense` keeps."""
    if getattr(base, KEPT_DENSE, None) is not None:
        setattr(base, KEPT_DENSE, None)


def _frozen_product(
    x: torch.Tensor, base: FrozenLayer, bias: torch.Tensor | None, counts: list[int]
) -> torch.Tensor:
    output: torch.Tensor = _FrozenProduct.apply(x, base, bias, counts)  # type: ignore[no-untyped-call]
    return output


class _FrozenProduct(torch.autograd.Function):
    """Product `x W^T + bias` with `W` made dense once per pass; the dense weight is not saved."""

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
    """Inverted-dropout factors of a pass, 0 or 1 / (1 - p): (rows, length, features).

    The mask is a pure function of the layer's name and the micro-batch (its key and shape), so a
    restart draws the same mask, and so do the passes of a split micro-batch. On the CPU the
    factors equal those of `torch.nn.Dropout` after `torch.manual_seed(dropout_seed(layer, key))`.

    Args:
        layer: Full name of the layer.
        whole: The micro-batch, and the position of the pass in it.
        part: Rows and length of the pass.
        probability: Probability of a 0.
        like: (tokens, features); the mask takes its device and type.
    """
    generator = torch.Generator(like.device).manual_seed(dropout_seed(layer, whole.key))
    shape = (whole.rows, whole.length, like.shape[-1])
    noise = torch.empty(shape, dtype=like.dtype, device=like.device)
    noise.bernoulli_(1 - probability, generator=generator).div_(1 - probability)
    if shape[:2] == part:
        return noise
    # A copy: backward would otherwise keep the whole mask alive for a slice.
    return noise[whole.first : whole.first + part[0], : part[1]].clone()


def dropout_seed(layer: str, key: tuple[int, int, int]) -> int:
    """Seed of one layer's dropout mask; `key` is (seed, step, micro-step)."""
    return derive_seed("dropout", *key, layer)


def _joined(runs: list[torch.Tensor]) -> torch.Tensor:
    return runs[0] if len(runs) == 1 else torch.cat(runs)
