"""Refuse a base whose rows would not stay apart in a pack, before anything is trained on it.

transformers does not say when a model's attention cannot be exchanged, when layers carry more
than attention along the sequence, or when numbers depend on where in a pass a token lies. Packed
rows would see each other, and every number would be wrong. So a few short rows are passed through
the base twice, alone and in a pack, and compared. Windows are narrowed
meanwhile, so that short rows reach beyond them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from trainables.base import LoadedBase
from trainables.batches import Batch, build_batch
from trainables.data import EncodedRow
from trainables.errors import BaseModelError
from trainables.rope import longest_row, rope_switch

_DISTANCES = ("sliding_window", "attention_chunk_size", "floor_scale")
_NARROW = 4
_LONGEST = 11

_ALLOWED = (
    "a decoder that mixes tokens by attention which transformers can exchange, and by nothing "
    "else, such as Llama, Qwen, Mistral, Gemma 3, Phi or GPT-NeoX. Choose another base."
)


class Probe:
    """Rows that were passed through a base alone, to be compared with the same rows in a pack.

    Args:
        base: As transformers loads it: no layer exchanged yet.
    """

    def __init__(self, base: LoadedBase) -> None:
        """Raises `BaseModelError` for a base that cannot be called with tokens alone."""
        self._base = base
        config = base.model.config
        limits = [one for one in (longest_row(base.model), rope_switch(config)) if one is not None]
        self._blocks = _probe_rows(config.get_text_config().vocab_size, min([*limits, _LONGEST]))
        with self._refusing("it cannot be called with token ids alone"), _narrow_windows(base):
            self._alone = [_plain_logits(base, row) for block in self._blocks for row in block]

    def require_installed(self, install: Callable[[], None]) -> None:
        """Exchange the layers of the base.

        Args:
            install: Does it.

        Raises:
            BaseModelError: transformers cannot exchange them.
        """
        with self._refusing("its attention cannot be exchanged"):
            install()

    @torch.no_grad()
    def require_apart(self, forward: Callable[[Sequence[Batch]], list[torch.Tensor]]) -> None:
        """Compare the rows alone with the rows in a pack.

        Args:
            forward: Logits of each batch's scored positions, in one packed pass.

        Raises:
            BaseModelError: The base cannot be packed, or gives other logits in a pack.
        """
        batches = [build_batch(None, block, self._base.device) for block in self._blocks]
        with self._refusing("it cannot be called with packed rows"), _narrow_windows(self._base):
            packed = forward(batches)
        apart = [
            logits
            for batch, own in zip(batches, packed, strict=True)
            for logits in own.split(list(batch.row_answers))
        ]
        # Kernels for other shapes differ by rounding: about 1 % of the range in bfloat16. An 8-bit
        # base rounds its inputs, too.
        is_fine = self._base.compute_dtype == torch.float32
        share = 1e-4 if is_fine and self._base.record.quantization != "int8" else 0.05
        for alone, other in zip(self._alone, apart, strict=True):
            bound = share * float(alone.max() - alone.min())
            if not float((alone[:-1] - other).abs().max()) <= bound:
                raise BaseModelError(
                    f"base.model: rows of {self._architecture} see each other in a pack: it mixes "
                    "tokens by more than exchangeable attention, or counts positions over the "
                    f"whole pack; allowed: {_ALLOWED}"
                )

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
    """Two blocks of random tokens: a batch of two lengths, and a row alone.

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
def _plain_logits(base: LoadedBase, row: EncodedRow) -> torch.Tensor:
    """Logits (length, vocabulary) as transformers computes them."""
    input_ids = torch.from_numpy(row.input_ids).unsqueeze(0).to(base.device)
    logits: torch.Tensor = base.model(input_ids=input_ids, use_cache=False).logits[0]
    return logits


@contextlib.contextmanager
def _narrow_windows(base: LoadedBase) -> Iterator[None]:
    """Let what begins at some distance begin after a few tokens.

    Models read the sizes of windows from their config in each pass; Llama 4 keeps the position
    behind which attention gets sharper in its layers.
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
