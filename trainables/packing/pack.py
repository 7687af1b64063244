"""Whose tokens lie where in the forward pass of a pack."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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

    @property
    def whole_length(self) -> int:
        """Tokens of the longest sequence of the micro-batch that the block is a part of."""
        return self.length if self.dropout is None else self.dropout.length


@dataclass
class Layout:
    """The blocks of the forward pass under way; one per engine, shared by its layers.

    Attributes:
        blocks: In the order of their tokens.
        scored: Positions in the packed sequence whose logits are wanted.
    """

    blocks: tuple[Block, ...] = ()
    scored: torch.Tensor | None = None

    def token_counts(self) -> list[int]:
        """Positions of each block, in order."""
        return [block.tokens for block in self.blocks]

    def answer_counts(self) -> list[int]:
        """Scored positions of each block, in order."""
        return [block.answers for block in self.blocks]
