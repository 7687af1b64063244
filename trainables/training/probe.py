"""Test of a base before training: independent rows in a pack, and causal tokens in a row.

transformers does not report a model whose attention cannot be replaced, whose layers mix tokens
outside attention, or whose numbers depend on a token's place in the pass. Packed rows would then
see each other, and every number would be wrong. The probe passes a few short rows through the base
twice, alone and in a pack, and compares the logits. Windows are narrowed during the probe, so that
short rows reach beyond a window. An encoder, whose tokens see later ones, would learn to copy the
answers: the logits of the first half of a row must be those of the half alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from trainables.base.loading import LoadedBase
from trainables.errors import BaseModelError
from trainables.packing.batches import Batch, build_batch
from trainables.packing.rope import longest_row, rope_switch
from trainables.rows.data import EncodedRow

_DISTANCES = ("sliding_window", "attention_chunk_size", "floor_scale")
_NARROW = 4
_LONGEST = 11

_ALLOWED = (
    "a decoder that mixes tokens by attention which transformers can exchange, and by nothing "
    "else, such as Llama, Qwen, Mistral, Gemma 3, Phi or GPT-NeoX. Choose another base."
)


class Probe:
    """Logits of batches alone through a base, to compare with the same batches in a pack.

    Args:
        base: The base as transformers loads it, before any layer is replaced.

    Attributes:
        batches: The rows.
    """

    def __init__(self, base: LoadedBase) -> None:
        """Raises `BaseModelError` if the base cannot be called with tokens, or looks ahead."""
        self._base = base
        config = base.model.config
        limits = [one for one in (longest_row(base.model), rope_switch(config)) if one is not None]
        blocks = _probe_rows(config.get_text_config().vocab_size, min([*limits, _LONGEST]))
        self.batches = [build_batch(None, rows, base.device) for rows in blocks]
        with self._refusing("it cannot be called with token ids alone"), _narrow_windows(base):
            self._alone = [_plain_logits(base, batch) for batch in self.batches]
            differs = self._looks_ahead(blocks[-1][0])
        if differs:
            raise BaseModelError(
                f"base.model: tokens of {self._architecture} see the tokens behind them, as in "
                f"an encoder, and would learn to copy the answers; allowed: {_ALLOWED}"
            )

    def require_installed(self, install: Callable[[], None]) -> None:
        """Replace the layers of the base.

        Args:
            install: Function that replaces the layers.

        Raises:
            BaseModelError: transformers cannot replace the layers.
        """
        with self._refusing("its attention cannot be exchanged"):
            install()

    @torch.no_grad()
    def require_apart(self, forward: Callable[[Sequence[Batch]], list[torch.Tensor]]) -> None:
        """Compare the batches alone with the batches in a pack.

        Args:
            forward: Function that computes each batch's logits at scored positions, in one packed
                pass.

        Raises:
            BaseModelError: The base cannot be packed, or its logits differ in a pack.
        """
        with self._refusing("it cannot be called with packed rows"), _narrow_windows(self._base):
            packed = forward(self.batches)
        for alone, other in zip(self._alone, packed, strict=True):
            if self._differ(alone, other):
                raise BaseModelError(
                    f"base.model: rows of {self._architecture} see each other in a pack: it mixes "
                    "tokens by more than exchangeable attention, or counts positions over the "
                    f"whole pack; allowed: {_ALLOWED}"
                )

    @torch.no_grad()
    def _looks_ahead(self, row: EncodedRow) -> bool:
        """Whether the tokens behind the first half of a row change the logits of that half."""
        ids = torch.as_tensor(row.input_ids, device=self._base.device).view(1, -1)
        half = ids.shape[1] // 2
        whole, part = (
            self._base.model(input_ids=one, use_cache=False).logits[0, :half]
            for one in (ids, ids[:, :half])
        )
        return self._differ(part, whole)

    def _differ(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        """Whether logits differ by more than kernels for other shapes round.

        That is about 1 % of the range in bfloat16; an 8-bit base also rounds its inputs.
        """
        is_fine = self._base.compute_dtype == torch.float32
        share = 1e-4 if is_fine and self._base.record.quantization != "int8" else 0.05
        bound = share * float(one.max() - one.min())
        return not float((one - other).abs().max()) <= bound

    @property
    def _architecture(self) -> str:
        return type(self._base.model).__name__

    @contextlib.contextmanager
    def _refusing(self, reason: str) -> Iterator[None]:
        try:
            yield
        except (
            ValueError,
            TypeError,
            AttributeError,
            RuntimeError,
            IndexError,
            KeyError,
            NotImplementedError,
        ) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BaseModelError(
                f"base.model: {self._architecture} cannot be trained here: {reason} "
                f"(transformers says: {said}); allowed: {_ALLOWED}"
            ) from error


def _probe_rows(vocabulary: int, longest: int) -> list[list[EncodedRow]]:
    """Two blocks of random tokens: a batch of two lengths, and a single row.

    Every token but the first is an answer.
    """
    random = np.random.default_rng(0)
    first = min(3, vocabulary - 1)  # the first ids are often padding
    return [
        [
            EncodedRow(
                input_ids=random.integers(first, vocabulary, length),
                is_answer=np.arange(length) > 0,
            )
            for length in lengths
        ]
        for lengths in ((longest, longest * 2 // 3), (longest - 1,))
    ]


@torch.no_grad()
def _plain_logits(base: LoadedBase, batch: Batch) -> torch.Tensor:
    """Logits (scored positions, vocabulary) of a batch, computed by transformers alone.

    An 8-bit base finds outlier columns over all rows of a batch, so the batch stays together.
    """
    ids = batch.input_ids.view(batch.block.rows, batch.block.length)
    logits: torch.Tensor = base.model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
    return logits[batch.scored]


@contextlib.contextmanager
def _narrow_windows(base: LoadedBase) -> Iterator[None]:
    """Make effects of long distances begin after a few tokens, for the duration of the block.

    Models read window sizes from their config in each pass; Llama 4 stores the position where
    attention gets sharper in its layers.
    """
    places: list[Any] = [base.model.config.get_text_config(), *base.model.modules()]
    wide = [
        (place, name, vars(place)[name])
        for place in places
        for name in _DISTANCES
        if isinstance(vars(place).get(name), int) and vars(place)[name] > _NARROW
    ]
    for place, name, _ in wide:
        setattr(place, name, _NARROW)
    try:
        yield
    finally:
        for place, name, distance in wide:
            setattr(place, name, distance)
