"""Bytes that a forward pass keeps for the backward, tensor by tensor as the engine saves them.

Each function adds what one part of a decoder layer saves: PyTorch keeps the inputs of an operation
whose gradient needs them. Nothing is kept for operations before the first adapter, since the base
is frozen. Tensors that two operations save are counted once. Counted on small models with
`torch.autograd.graph.saved_tensors_hooks`; `tests/trainables/memory` repeats the count.

In a compute type below float32, each branch of an adapter and each RMS norm keeps a float32 copy
of its input; in float32, branches of the same input share it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from trainables.memory.adapter_bytes import AdapterShape
from trainables.memory.architecture import Architecture, Linear
from trainables.memory.loss_bytes import hidden_gradient_bytes
from trainables.memory.stored_bytes import FLOAT32, Form

Attention = Literal["flash", "math"]
"""`flash` keeps queries, keys, values, output and one float32 for each query (arXiv:2205.14135);
`math` keeps all scores: torch's choice on CUDA in float32 with fewer key than query heads."""

_INT64 = 8
_NUMBERED = re.compile(r"\.(\d+)\.(.+)")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one seat in a forward pass.

    Attributes:
        count: Sequences.
        length: Tokens of each, padding included.
        scored: Positions whose next token is scored; at most all.
    """

    count: int
    length: int
    scored: int

    @property
    def tokens(self) -> int:
        """Positions of all sequences."""
        return self.count * self.length


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """How a pass is computed.

    Attributes:
        form: Stored form and compute type.
        attention: The implementation of attention.
        pack: Adapters of all seats in the pass; empty for this seat alone. Seats share the tensors
            between the layers, so what a branch of one of them keeps is kept for all.
        keeps_inputs: Whether the frozen layers keep their inputs, as 8-bit layers do on CUDA.
        has_checkpoints: Whether a decoder layer keeps its input alone and is computed again in
            the backward.
    """

    form: Form
    attention: Attention = "flash"
    pack: tuple[AdapterShape, ...] = ()
    keeps_inputs: bool = False
    has_checkpoints: bool = False


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Bytes kept for the backward.

    Attributes:
        layers: Of all decoder layers together.
        largest: Of the layer that keeps most.
        rest: Rotary angles, the last norm and positions of the scored tokens.
        head: Gradient of the scored positions' hidden states, made in the forward.
    """

    layers: int
    largest: int
    rest: int
    head: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.layers + self.rest + self.head


def kept_bytes(
    shape: Architecture, adapter: AdapterShape, rows: Rows, settings: PassSettings
) -> Kept:
    """What one seat's rows keep for the backward.

    Args:
        shape: The base.
        adapter: The seat's adapter.
        rows: The seat's rows in the pass.
        settings: How the pass is computed.
    """
    is_live, found = False, []
    pack = settings.pack or (adapter,)
    named = [
        _by_layer(adapter.layers),
        _by_layer(name for one in pack for name in one.layers),
        _by_layer(name for one in pack if not one.has_dropout for name in one.layers),
    ]
    for number in range(shape.layers):
        part = _Part(shape=shape, rows=rows, settings=settings, number=number)
        adapted, touched, read = (names.get(number, frozenset()) for names in named)
        layer = _Layer(part, adapter, (adapted, touched, read), is_live)
        found.append(layer.total())
        is_live = layer.is_live
    layers = sum(found)
    if settings.has_checkpoints:
        layers = shape.layers * rows.tokens * shape.hidden * settings.form.compute
    return Kept(
        layers=layers,
        largest=max(found),
        rest=_rest(shape, rows, settings, is_live=is_live),
        head=hidden_gradient_bytes(rows.scored, shape.hidden, settings.form.compute)
        if is_live
        else 0,
    )


def _rest(shape: Architecture, rows: Rows, settings: PassSettings, *, is_live: bool) -> int:
    if not is_live:
        return 0
    angles = 2 * shape.ropes * rows.tokens * shape.head_size * settings.form.compute
    norm = norm_bytes(shape, rows.tokens, shape.hidden, settings.form.compute)
    return angles + norm + _INT64 * rows.scored


def norm_bytes(shape: Architecture, rows: int, width: int, compute: int) -> int:
    """What a norm of `rows` vectors keeps: its input, and one or two numbers for each vector."""
    if shape.norm == "layer":
        return rows * (width + 2) * compute
    weight = FLOAT32 * width if shape.norm == "rms_plus_one" else 0
    return FLOAT32 * rows * (width + 1) + weight


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One decoder layer in a pass of one seat's rows."""

    shape: Architecture
    rows: Rows
    settings: PassSettings
    number: int


def _by_layer(names: Iterable[str]) -> dict[int, frozenset[str]]:
    """Names within the decoder layers of full names, by number of the layer."""
    found: dict[int, set[str]] = {}
    for name in names:
        match = _NUMBERED.search(name)
        if match is not None:
            found.setdefault(int(match[1]), set()).add(match[2])
    return {number: frozenset(own) for number, own in found.items()}


class _Layer:
    """Sum over one decoder layer; `is_live` follows where gradients flow.

    Args:
        part: The layer, and the rows.
        adapter: The adapter of the rows' seat.
        names: Names within the layer of what the seat adapts, of what any seat adapts, and of what
            any seat adapts without dropout.
        is_live: Whether the layer's input has a gradient.
    """

    def __init__(
        self,
        part: _Part,
        adapter: AdapterShape,
        names: tuple[frozenset[str], frozenset[str], frozenset[str]],
        is_live: bool,
    ) -> None:
        self.shape, self.rows, self.settings = part.shape, part.rows, part.settings
        self.number, self.adapter, self.is_live = part.number, adapter, is_live
        self.compute, self.tokens = part.settings.form.compute, part.rows.tokens
        self.adapted, self.touched, self.read = names
        self.linears = {one.name: one for one in self.shape.linears(self.number)}

    def total(self) -> int:
        """Bytes of the layer."""
        return self._attention() + self._feed_forward()

    # ----------------------------------------------------------------------------- attention

    def _attention(self) -> int:
        total = self._norm(self.is_live)
        inputs = [one for name, one in self.linears.items() if self._reads_stream(name, "attn")]
        output = next(
            one for name, one in self.linears.items() if "attn" in name and one not in inputs
        )
        total += self._group(inputs, self.is_live)
        is_any = self.is_live or any(one.name in self.touched for one in inputs)
        if is_any:
            total += self._query_key_norms(inputs) + self._core()
        total += self._group([output], is_any, is_kept_anyway=self._is_output_kept(is_any))
        is_added = is_any or output.name in self.touched
        if self.shape.norms == 4:
            total += self._norm(is_added)
        self.is_live = self.is_live or is_added
        return total

    def _reads_stream(self, name: str, part: str) -> bool:
        one = self.linears[name]
        is_last = name.endswith(("o_proj", "attn.c_proj", "down_proj", "mlp.c_proj"))
        return part in name and not is_last and one.wide == self.shape.hidden

    def _is_output_kept(self, is_any: bool) -> bool:
        """Whether attention keeps its output where the output projection's branch reads it."""
        is_fused = self.settings.attention == "flash" and not self.shape.has_score_cap
        return is_any and is_fused and len(self.settings.pack) < 2 and self.compute == FLOAT32

    def _query_key_norms(self, inputs: list[Linear]) -> int:
        if not self.shape.has_qk_norm:
            return 0
        total = 0
        for one, heads in zip(inputs, (self.shape.heads, self.shape.kv_heads), strict=False):
            if self.is_live or one.name in self.touched:
                vectors = self.tokens * heads
                total += norm_bytes(self.shape, vectors, self.shape.head_size, self.compute)
        return total

    def _core(self) -> int:
        """The product of queries, keys and values."""
        shape, length = self.shape, self.rows.length
        window = shape.window(self.number)
        is_masked = window is not None and length >= window
        queries = self.tokens * shape.query_width * self.compute
        scores = self.tokens * length * shape.heads
        if shape.has_score_cap:
            copy = self.compute if self.compute < FLOAT32 else 0
            return 3 * queries + scores * (self.compute + FLOAT32 + copy) + 2 * length * length
        if self.settings.attention == "math":
            return 4 * queries + scores * self.compute
        mask = length * length * self.compute if is_masked else 0
        pairs = queries if is_masked else self.tokens * shape.kv_width * self.compute
        return 2 * queries + 2 * pairs + FLOAT32 * self.tokens * shape.heads + mask

    # -------------------------------------------------------------------------- feed-forward

    def _feed_forward(self) -> int:
        total = self._norm(self.is_live)
        is_added = self.is_live
        if self.shape.has_experts(self.number):
            total += self._experts() if self.is_live else 0
        else:
            added, is_added = self._dense_feed_forward()
            total += added
        if self.shape.norms == 4:
            total += self._norm(is_added)
        self.is_live = self.is_live or is_added
        return total

    def _dense_feed_forward(self) -> tuple[int, bool]:
        *inputs, output = (one for name, one in self.linears.items() if "mlp" in name)
        total = self._group(inputs, self.is_live)
        lives = [self.is_live or one.name in self.touched for one in inputs]
        wide = self.tokens * self.shape.intermediate * self.compute
        if lives[0]:
            # The activation's own tensors, and the other factor of its product.
            total += wide * (self.shape.act_tensors + (1 if self.shape.is_gated else 0))
        if self.shape.is_gated and lives[-1]:
            total += wide
        total += self._group([output], any(lives))
        return total, any(lives) or output.name in self.touched

    def _experts(self) -> int:
        experts = self.shape.experts
        if experts is None:
            return 0
        chosen = self.tokens * experts.chosen
        router = self.tokens * experts.count * FLOAT32 + chosen * _INT64
        weight = self.compute
        if experts.is_renormed:
            router += FLOAT32 * (self.tokens + chosen)
            weight = FLOAT32
        order = 3 * _INT64 * chosen
        inner = 3 * chosen * experts.intermediate * self.compute
        outer = chosen * (self.shape.hidden * self.compute + weight)
        return router + order + inner + outer

    # --------------------------------------------------------------------------------- parts

    def _norm(self, is_live: bool) -> int:
        if not is_live:
            return 0
        return norm_bytes(self.shape, self.tokens, self.shape.hidden, self.compute)

    def _group(self, linears: list[Linear], is_live: bool, *, is_kept_anyway: bool = False) -> int:
        """What layers with the same input keep.

        Args:
            linears: The layers.
            is_live: Whether their input has a gradient.
            is_kept_anyway: Whether another operation keeps the input.
        """
        adapted = [one for one in linears if one.name in self.adapted]
        total = sum(self._branch(one, is_live) for one in adapted)
        wide = self.tokens * linears[0].wide
        reads = self.compute == FLOAT32 and any(one.name in self.read for one in linears)
        is_held = self.settings.keeps_inputs and is_live
        if (reads or is_held) and not is_kept_anyway:
            total += wide * self.compute
        return total

    def _branch(self, one: Linear, is_live: bool) -> int:
        """What one adapter branch keeps, without an input in float32 that others share."""
        total = FLOAT32 * self.tokens * self.adapter.rank
        if self.adapter.has_dropout:
            masks = 1 if is_live else 0
            total += FLOAT32 * self.tokens * one.wide * (1 + masks)
        elif self.compute < FLOAT32:
            total += FLOAT32 * self.tokens * one.wide
        if self.adapter.has_magnitude:
            frozen = FLOAT32 if self.adapter.has_dropout else self.compute
            total += self.tokens * one.high * (frozen + FLOAT32) + 3 * FLOAT32 * one.high
        return total
