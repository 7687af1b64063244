"""The output head: loss and scores of a seat's scored positions, without all logits at once.

Logits are the largest tensors of a pass: 2,000 positions of a vocabulary of 128 thousand take a
gigabyte in float32, and their loss three more. The head is frozen, so a loss needs only the
gradient of the hidden states, and that can be computed in the forward pass, chunk by chunk. A
chunk's size depends on the seat's own positions and the vocabulary alone, so a seat's numbers do
not depend on its neighbours. What fits in one chunk is computed as in transformers' own loss, bit
for bit; several chunks differ by the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from trainables.packing.batches import part_sizes
from trainables.packing.kernels import FrozenLayer, frozen_linear
from trainables.packing.pack import Layout

Finish: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""What a model does to the logits behind its head, number by number."""


class PackedHead(nn.Module):
    """The output head, applied to the scored positions of each seat separately.

    Attributes:
        gives_logits: Whether a pass computes logits; otherwise it only leaves `hidden`.
        hidden: (scored positions, hidden) of the last pass without logits.
    """

    def __init__(self, base: FrozenLayer, layout: Layout) -> None:
        super().__init__()
        self.base, self.layout = base, layout
        self.gives_logits = True
        self.hidden: torch.Tensor | None = None

    @property
    def vocabulary(self) -> int:
        """Number of logits of a position."""
        return int(self.base.weight.shape[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `x` (1, tokens, hidden) to logits (1, scored positions, vocabulary).

        Without logits, the result is (1, scored positions, 1): the model may do to it what it does
        to logits, and nothing reads it.
        """
        scored = x[0, self.layout.scored]
        if self.gives_logits:
            return frozen_linear(self.base, scored, self.layout.answer_counts()).unsqueeze(0)
        self.hidden = scored
        return scored.new_zeros(1, len(scored), 1)

    def take_hidden(self) -> list[torch.Tensor]:
        """Hidden states of each seat's scored positions in the last pass, given once."""
        hidden, self.hidden = self.hidden, None
        assert hidden is not None, "the pass did not reach the head"
        return list(hidden.split(self.layout.answer_counts()))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (positions, vocabulary) of hidden states of one seat."""
        return frozen_linear(self.base, hidden, [len(hidden)])


def find_finish(
    config: Any, head: PackedHead, hidden: torch.Tensor, logits: torch.Tensor
) -> Finish | None:
    """What a model does behind its head; `None` if it is none of the known functions.

    Args:
        config: The model's text config.
        head: Its head.
        hidden: (positions, hidden), the inputs of the head in a pass.
        logits: (positions, vocabulary), the logits of the same pass.
    """
    cap = getattr(config, "final_logit_softcapping", None)
    finishes: list[Finish] = [lambda raw: raw]
    if isinstance(cap, int | float) and cap:
        finishes.append(lambda raw: torch.tanh(raw / cap) * cap)
    for name in ("logit_scale", "lm_head_multiplier"):
        factor = getattr(config, name, None)
        if isinstance(factor, int | float):
            finishes.append(partial(torch.mul, other=factor))
    divisor = getattr(config, "logits_scaling", None)
    if isinstance(divisor, int | float) and divisor:
        finishes.append(partial(torch.div, other=divisor))
    raw = head.logits(hidden)
    return next((one for one in finishes if torch.equal(one(raw).to(logits.dtype), logits)), None)


def score_tokens(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each target in float32, and whether it was the most likely token.

    Args:
        logits: (positions, vocabulary).
        targets: (positions,).
    """
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return losses, logits.argmax(dim=-1) == targets


@dataclass(frozen=True, kw_only=True)
class LossShare:
    """A seat's part of a pass.

    Attributes:
        positions: Number of its scored positions in the pass.
        answers: Number of scored positions of the seat's whole step.
        scale: Factor on its loss that keeps the gradient from rounding to zero.
    """

    positions: int
    answers: int
    scale: float


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A seat's scored positions behind a pass.

    Attributes:
        states: (positions, width): hidden states, or logits already.
        to_logits: Function from some of the states to their logits.
        chunk: Most positions whose logits exist at once.
    """

    states: torch.Tensor
    to_logits: Finish
    chunk: int

    def loss(
        self, targets: torch.Tensor, answers: int, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Share of these positions in their seat's mean loss, in nats, and what backward takes.

        Args:
            targets: (positions,), the next tokens.
            answers: Number of scored positions of the seat's whole step.
            scale: Factor on the second result, whose gradient it keeps from rounding to zero.
        """
        share, scaled = _ChunkedLoss.apply(self.states, self, targets, answers, scale)  # type: ignore[no-untyped-call]
        return share, scaled

    def shared_loss(
        self, targets: torch.Tensor, seats: Sequence[LossShare]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The same for the scored positions of several seats in a row, in chunks of all of them.

        Args:
            targets: (positions,), the next tokens.
            seats: The share of each seat.

        Returns:
            Share of each seat's positions in its mean loss, and what backward takes.
        """
        counts = [seat.positions for seat in seats]
        of_seats = torch.tensor([(1 / seat.answers, seat.scale) for seat in seats])
        factors = of_seats.repeat_interleave(torch.tensor(counts), dim=0).to(targets.device)
        losses, scaled = _SharedLoss.apply(self.states, self, targets, factors)  # type: ignore[no-untyped-call]
        return [own.sum() for own in losses.split(counts)], scaled

    @torch.no_grad()
    def score(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of each position in float32, and whether the target was the most likely token."""
        parts = zip(self._chunks(), targets.split(self._sizes()), strict=True)
        scores = [score_tokens(self.to_logits(states), part) for states, part in parts]
        losses, hits = zip(*scores, strict=True)
        return torch.cat(losses), torch.cat(hits)

    @torch.no_grad()
    def likeliest(self) -> torch.Tensor:
        """The most likely next token at each position."""
        return torch.cat([self.to_logits(states).argmax(dim=-1) for states in self._chunks()])

    def _chunks(self) -> Iterator[torch.Tensor]:
        yield from self.states.split(self._sizes())

    def _sizes(self) -> list[int]:
        """Positions of each chunk: as even as possible, so that no chunk is small."""
        count = len(self.states)
        return part_sizes(count, -(-count // self.chunk))


class _ChunkedLoss(torch.autograd.Function):
    """Sum of cross-entropies over a number, whose gradient is made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        scored: Scored,
        targets: torch.Tensor,
        answers: int,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sizes = scored._sizes()
        total, grads = torch.zeros((), device=states.device), []
        for part, wanted in zip(states.split(sizes), targets.split(sizes), strict=True):
            own = part.detach().requires_grad_()
            with torch.enable_grad():
                # No name holds the logits: the loss's backward does without them.
                loss = F.cross_entropy(scored.to_logits(own).float(), wanted, reduction="sum")
                share = loss / answers
                grads += torch.autograd.grad(share * scale, own)
            total = total + share.detach()
        ctx.save_for_backward(grads[0] if len(grads) == 1 else torch.cat(grads))
        ctx.mark_non_differentiable(total)
        return total, total * scale

    @staticmethod
    def backward(
        ctx: Any, _share: torch.Tensor, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (states,) = ctx.saved_tensors
        return states * grad.to(states.dtype), None, None, None, None


class _SharedLoss(torch.autograd.Function):
    """Cross-entropies of several seats, each over its own number; the same way."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        scored: Scored,
        targets: torch.Tensor,
        factors: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sizes = scored._sizes()
        losses, grads = [], []
        for part, wanted, factor in zip(
            states.split(sizes), targets.split(sizes), factors.split(sizes), strict=True
        ):
            own = part.detach().requires_grad_()
            with torch.enable_grad():
                loss = F.cross_entropy(scored.to_logits(own).float(), wanted, reduction="none")
                share = loss * factor[:, 0]
                grads += torch.autograd.grad((share * factor[:, 1]).sum(), own)
            losses.append(share.detach())
        ctx.save_for_backward(torch.cat(grads))
        shares = torch.cat(losses)
        ctx.mark_non_differentiable(shares)
        return shares, (shares * factors[:, 1]).sum()

    @staticmethod
    def backward(
        ctx: Any, _shares: torch.Tensor, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (states,) = ctx.saved_tensors
        return states * grad.to(states.dtype), None, None, None
