"""Frozen linear layers that carry the adapters of many seats in few, large products.

The batched counterpart of `trainables.packing.kernels` in training: a layer multiplies the rows of
all seats by its weight at once, and the adapters of seats with similar ranks and numbers of tokens
in one batched product each, filled with zeros to the same shape (the prototype of such training is
LoRAFusion, arXiv:2510.00206). A kernel is chosen by the number of all rows, so a seat's numbers
differ from those of the seat alone by rounding. Seats still never see each other: each row has its
own sums, and a neighbour's non-finite numbers stay its own.

The products are in the type of the activations, or in float32 in place of float16 and for few rows
on a CPU, from weights in float32 that are rounded once per step; gradients are summed in float32.
They are written to the weights' `grad` without an autograd node for each weight. DoRA and 8-bit
layers run seat by seat, as in an exact pack.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from bitsandbytes.nn import Linear8bitLt
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from trainables.packing.kernels import (
    Branch,
    FrozenLayer,
    PackedLinear,
    dense_weight,
    dropout_mask,
    frozen_linear,
)
from trainables.packing.pack import Block, Layout

LEAST_RANK, LEAST_TOKENS = 16, 64
"""Shapes below count as these: filling them up costs less than another product."""

SMALL_TOKENS = 128
"""Adapters of fewer rows are multiplied in float32 on a CPU, not in bfloat16."""

Member: TypeAlias = tuple[Branch, Block, int]
"""A branch, its block and the position of the block in the pack."""


class BatchedLinear(PackedLinear):
    """A frozen linear layer that trains the branches of all seats in batched products.

    Passes without gradients are those of `PackedLinear`, so an adapter is evaluated alike in an
    exact and a batched pack.
    """

    def __init__(self, base: FrozenLayer, layout: Layout) -> None:
        super().__init__(base, layout)
        # Its gradient is never used; it lets autograd call the backward of the first layer.
        self._anchor = torch.zeros(0, requires_grad=True)
        self._stacks: dict[tuple[str, ...], _Stack] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `x` (..., in_features) to (..., out_features); rows of `x` are the pack's tokens.

        Raises:
            ValueError: The rows are not the tokens of the pack, as at a routed expert.
        """
        if not torch.is_grad_enabled() or isinstance(self.base, Linear8bitLt):
            return super().forward(x)
        self.require_all_tokens(x)
        rows = x.flatten(0, -2)
        groups, beside = self._groups()
        if groups:
            y = _BatchedProduct.apply(rows, self._anchor, self.base, groups)  # type: ignore[no-untyped-call]
        else:
            y = frozen_linear(self.base, rows, [len(rows)])
        if beside:
            y = self.with_branches(rows, y, beside)
        shaped: torch.Tensor = y.unflatten(0, x.shape[:-1])
        return shaped

    def forget(self) -> None:
        """Forget the copies of the adapters' weights, which the optimizers are about to change."""
        self._stacks.clear()

    def _groups(self) -> tuple[list[_Group], set[str]]:
        """Groups of branches to multiply together, and seats whose branch runs by itself."""
        members: dict[tuple[int, int], list[Member]] = defaultdict(list)
        beside, start = set(), 0
        for block in self.layout.blocks:
            branch, tokens = self.branches.get(str(block.seat)), block.tokens
            if branch is not None and branch.magnitude is not None:
                beside.add(str(block.seat))
            elif branch is not None:
                members[_size_class(branch.rank, tokens)].append((branch, block, start))
            start += tokens
        return [_Group(self._stack(group), group) for group in members.values()], beside

    def _stack(self, group: Sequence[Member]) -> _Stack:
        key = tuple(str(block.seat) for _, block, _ in group)
        if key not in self._stacks:
            self._stacks[key] = _Stack([branch for branch, _, _ in group])
        return self._stacks[key]


def _size_class(rank: int, tokens: int) -> tuple[int, int]:
    """The same for ranks and numbers of tokens that differ by less than a factor of 2."""
    return (max(LEAST_RANK, rank) - 1).bit_length(), (max(LEAST_TOKENS, tokens) - 1).bit_length()


class _Stack:
    """Weights of several branches on one layer, filled with zeros to the same rank.

    Attributes:
        branches: The branches.
        scaling: (branches, 1, 1), in the type of the weights.
    """

    def __init__(self, branches: list[Branch]) -> None:
        self.branches = branches
        self.scaling = branches[0].a.new_tensor([one.scaling for one in branches]).view(-1, 1, 1)
        self._made: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def weights(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """`A` (branches, rank, in_features) and `B` (branches, out_features, rank)."""
        if dtype not in self._made:
            a: list[torch.Tensor] = [one.a for one in self.branches]
            b: list[torch.Tensor] = [one.b for one in self.branches]
            ranks = [one.rank for one in self.branches]
            missing = [max(ranks) - rank for rank in ranks]
            if any(missing):
                a = [F.pad(one, (0, 0, 0, more)) for one, more in zip(a, missing, strict=True)]
                b = [F.pad(one, (0, more)) for one, more in zip(b, missing, strict=True)]
            self._made[dtype] = torch.stack(a).to(dtype), torch.stack(b).to(dtype)
        return self._made[dtype]

    def add_gradients(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add gradients of the stacked weights to those of the branches."""
        rank, dtype = a.shape[1], self.branches[0].a.dtype
        for branch, of_a, of_b in zip(self.branches, a.to(dtype), b.to(dtype), strict=True):
            if branch.rank != rank:
                of_a, of_b = of_a[: branch.rank], of_b[:, : branch.rank]
            _add_gradient(branch.a, of_a)
            _add_gradient(branch.b, of_b)


def _add_gradient(parameter: nn.Parameter, gradient: torch.Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient.contiguous()
    else:
        parameter.grad.add_(gradient)


class _Group:
    """Branches of one layer in a pass, with the places of their rows.

    Attributes:
        stack: Their weights.
        members: The branches and their blocks.
        is_run: Whether the blocks are equally long and follow each other, so that no row is
            copied.
    """

    def __init__(self, stack: _Stack, members: Sequence[Member]) -> None:
        self.stack, self.members = stack, members
        self._sizes = [block.tokens for _, block, _ in members]
        starts = [start for _, _, start in members]
        self._first, self._end = starts[0], starts[-1] + self._sizes[-1]
        self._follow = self._end - self._first == sum(self._sizes)
        self.is_run = self._follow and len(set(self._sizes)) == 1

    def product_type(self, x: torch.Tensor) -> torch.dtype:
        """Type of the adapters' products for inputs of a layer.

        Gradients overflow too easily in float16, and small products in bfloat16 take longer on a
        CPU than in float32.
        """
        is_small = x.device.type == "cpu" and sum(self._sizes) < SMALL_TOKENS
        if x.dtype == torch.float16 or (is_small and x.dtype == torch.bfloat16):
            return torch.float32
        return x.dtype

    def view(self, rows: torch.Tensor) -> torch.Tensor:
        """The group's rows of a pack, (members, tokens, width), without a copy; a run's alone."""
        return rows[self._first : self._end].view(len(self.members), -1, rows.shape[-1])

    def gathered(self, rows: torch.Tensor) -> torch.Tensor:
        """The group's rows of a pack: (members, most tokens, width), zeros behind short blocks."""
        if self.is_run:
            return self.view(rows)
        return pad_sequence(self._runs(rows), batch_first=True)

    def add(self, rows: torch.Tensor, update: torch.Tensor) -> None:
        """Add (members, most tokens, width) to the group's rows of a pack, in place."""
        if self.is_run:
            self.view(rows).add_(update)
            return
        for run, own, size in zip(self._runs(rows), update, self._sizes, strict=True):
            run.add_(own[:size])

    def masks(self, x: torch.Tensor) -> list[torch.Tensor | None]:
        """Dropout factors (tokens, in_features) of each member, in the type of the weights."""
        like = x.new_empty((0, x.shape[-1]), dtype=self.stack.scaling.dtype)
        masks = []
        for branch, block, _ in self.members:
            dropout = block.dropout if branch.dropout > 0 else None
            mask = None
            if dropout is not None:
                part = (block.rows, block.length)
                mask = dropout_mask(branch.layer, dropout, part, branch.dropout, like)
            masks.append(None if mask is None else mask.flatten(0, 1))
        return masks

    def _runs(self, rows: torch.Tensor) -> list[torch.Tensor]:
        if self._follow:
            return list(rows[self._first : self._end].split(self._sizes))
        places = zip(self.members, self._sizes, strict=True)
        return [rows[start : start + size] for (_, _, start), size in places]


class _BatchedProduct(torch.autograd.Function):
    """`x W^T + bias` for all rows, and each group's `scaling * B A dropout(x)` on its own rows."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        anchor: torch.Tensor,
        base: FrozenLayer,
        groups: list[_Group],
    ) -> torch.Tensor:
        ctx.base, ctx.groups = base, groups
        bias = None if base.bias is None else base.bias.to(x.dtype)
        y = F.linear(x, dense_weight(base, x.dtype), bias)
        saved: list[torch.Tensor | None] = [x]
        for group in groups:
            saved += _add_updates(group, x, y)
        ctx.save_for_backward(*saved)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        to_x = grad @ dense_weight(ctx.base, grad.dtype) if ctx.needs_input_grad[0] else None
        for group in ctx.groups:
            size = 2 + len(group.members)
            own, saved = saved[:size], saved[size:]
            _add_gradients(group, x, own, grad, to_x)
        return to_x, None, None, None


def _add_updates(group: _Group, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor | None]:
    """Add the updates of a group to `y`.

    Returns:
        What the backward needs: the inputs of the adapters where they are not `x`, their inner
        products, and the masks.
    """
    dtype = group.product_type(x)
    a, b = group.stack.weights(dtype)
    masks = group.masks(x)
    inputs = _masked(group.gathered(x).to(dtype), masks)
    inner = torch.bmm(inputs, a.transpose(1, 2)).mul_(group.stack.scaling)
    if group.is_run and y.dtype == dtype:
        group.view(y).baddbmm_(inner, b.transpose(1, 2))
    else:
        group.add(y, torch.bmm(inner, b.transpose(1, 2)))
    is_x = all(mask is None for mask in masks)
    return [None if is_x else inputs, inner, *masks]


def _add_gradients(
    group: _Group,
    x: torch.Tensor,
    saved: Sequence[torch.Tensor | None],
    grad: torch.Tensor,
    to_x: torch.Tensor | None,
) -> None:
    """Add the gradients of a group's weights, and of its inputs to `to_x`."""
    dtype = group.product_type(x)
    inputs, inner, *masks = saved
    assert inner is not None
    if inputs is None:
        inputs = group.gathered(x).to(dtype)
    a, b = group.stack.weights(dtype)
    output = group.gathered(grad).to(dtype)
    to_inner = torch.bmm(output, b).mul_(group.stack.scaling)
    group.stack.add_gradients(
        torch.bmm(to_inner.transpose(1, 2), inputs), torch.bmm(output.transpose(1, 2), inner)
    )
    if to_x is None:
        return
    if group.is_run and to_x.dtype == dtype and all(mask is None for mask in masks):
        group.view(to_x).baddbmm_(to_inner, a)
    else:
        group.add(to_x, _masked(torch.bmm(to_inner, a), masks))


def _masked(rows: torch.Tensor, masks: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Rows of each member (members, most tokens, width) times its mask, where it has one."""
    if all(mask is None for mask in masks):
        return rows
    rows = rows.clone()
    for own, mask in zip(rows, masks, strict=True):
        if mask is not None:
            own[: len(mask)].mul_(mask)
    return rows
