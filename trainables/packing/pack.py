"""Layout of a pack: the position of each seat's tokens in the forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """The micro-batch that the dropout masks of a pass belong to.

    Attributes:
        key: (seed, step, micro-step).
        rows: Sequences of the micro-batch.
        length: Tokens of its longest sequence.
        first: Index of the pass's first sequence within the micro-batch.
    """

    key: tuple[int, int, int]
    rows: int
    length: int
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class Block:
    """The rows of one seat in a packed forward pass.

    Attributes:
        seat: Name of the seat; `None` for the bare base.
        rows: Sequences in the block.
        length: Tokens per sequence, padding included.
        answers: Positions of the block whose next token is scored.
        dropout: The micro-batch of the dropout masks; `None` for no dropout.
    """

    seat: str | None
    rows: int
    length: int
    answers: int
    dropout: Dropout | None = None

    @property
    def tokens(self) -> int:
        """Number of positions of the block in the packed sequence."""
        return self.rows * self.length

    @property
    def whole_length(self) -> int:
        """Tokens of the longest sequence in the whole micro-batch of the block."""
        return self.length if self.dropout is None else self.dropout.length


@dataclass
class Layout:
    """Blocks of the current forward pass; an engine has one layout, shared by all layers.

    Attributes:
        blocks: Blocks in the order of their tokens.
        scored: Positions in the packed sequence whose logits are computed.
        is_checkpointed: Whether decoder layers are computed again in the backward.
        is_batched: Whether seats may be computed together while gradients are recorded.
    """

    blocks: tuple[Block, ...] = ()
    scored: torch.Tensor | None = None
    is_checkpointed: bool = False
    is_batched: bool = False

    def token_counts(self) -> list[int]:
        """Number of positions of each block, in order."""
        return [block.tokens for block in self.blocks]

    def answer_counts(self) -> list[int]:
        """Number of scored positions of each block, in order."""
        return [block.answers for block in self.blocks]
