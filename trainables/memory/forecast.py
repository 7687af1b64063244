"""Forecast of the bytes that a host takes: base, seats, a pass, an evaluation.

    lasting    base, dense copy, adapters, gradients, optimizer state
    passing    activations, logits and workspace of a training pass, or the largest batch of an
               evaluation, whichever takes more
    context    the process itself: libraries, CUDA's context

The numbers come from shapes alone: nothing is loaded, and torch is not imported. The activations
are exact for the engine of this version; workspace is an upper estimate of the largest moment of
the backward, fitted to passes of small models (docs/memory.md).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainables.memory.activations import Attention, Kept, PassSettings, Rows, kept_bytes
from trainables.memory.adapter_bytes import (
    AdapterShape,
    adapter_bytes,
    adapter_of,
    optimizer_bytes,
)
from trainables.memory.architecture import Architecture
from trainables.memory.loss_bytes import chunk_bytes, positions_per_chunk
from trainables.memory.stored_bytes import (
    FLOAT32,
    Form,
    base_bytes,
    dense_bytes,
    form_of,
    largest_dense_bytes,
)
from trainables.spec import TrialSpec

STATED_ERROR = 0.1
"""Relative error that the forecast of a whole host is stated with. Base, adapters, optimizer state
and activations are within 5 % of measured tensors; the rest is the workspace."""

CPU_CONTEXT = 810_000_000
"""Bytes of a host process on a CPU beside its tensors, as measured (docs/memory.md)."""
CUDA_CONTEXT = 1_300_000_000
"""Bytes of CUDA's context and kernels, from transformers' page `model_memory_anatomy`."""

_NORM_TENSORS = 5
"""Float32 tensors of the residual's size in the backward of a norm."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a forecast has to know about the device of a host.

    Attributes:
        is_cuda: A GPU, not a CPU.
        has_bfloat16: Whether it multiplies bfloat16: then `compute_dtype: auto` is bfloat16.
    """

    is_cuda: bool
    has_bfloat16: bool = True

    @property
    def automatic(self) -> int:
        """Bytes of a number of the compute type `auto`."""
        return 2 if self.has_bfloat16 else FLOAT32

    @property
    def context(self) -> int:
        """Bytes of the process itself, in the device's memory."""
        return CUDA_CONTEXT if self.is_cuda else CPU_CONTEXT


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How the engine trains.

    Attributes:
        dense: Whether quantized weights are also kept dequantized.
        saves_memory: What the engine does after memory ran out: trials with
            `gradient_checkpointing: auto` compute layers again in the backward, and a pass has a
            single row.
        has_whole_logits: Logits of all scored positions exist at once, as with transformers' own
            loss; to compare the forecast with figures of other trainers.
    """

    dense: bool = False
    saves_memory: bool = False
    has_whole_logits: bool = False


@dataclass(frozen=True, kw_only=True)
class RowLengths:
    """Lengths of the rows of a trial, in tokens.

    Attributes:
        train: Padded length of a micro-batch.
        evaluation: Longest row that is evaluated.
        train_answers: Tokens of a training row that are learned; `None` for all.
        evaluation_answers: Tokens of an evaluated row that are scored; `None` for all.
    """

    train: int
    evaluation: int
    train_answers: int | None = None
    evaluation_answers: int | None = None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Bytes of one host with its seats taken.

    Attributes:
        base: The base in its stored form.
        dense: Dequantized copy of quantized weights.
        adapters: Weights of all adapters, in float32.
        gradients: Their gradients, in float32, as far as they exist beside the activations: with
            one pass in a step, they take the place of activations that are no longer needed.
        optimizer: State of all optimizers.
        activations: Kept for the backward, without logits.
        logits: Logits of one chunk with their gradients, and the gradient of hidden states.
        workspace: Passing tensors of the backward beyond the logits.
        evaluation: What the largest batch of an evaluation needs beyond a training pass.
        context: The process itself.
    """

    base: int
    dense: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int
    evaluation: int
    context: int

    @property
    def passing(self) -> int:
        """Bytes of a forward and backward pass, gradients of the adapters included."""
        return self.gradients + self.activations + self.logits + self.workspace

    @property
    def tensors(self) -> int:
        """All bytes without the process itself."""
        return self.total - self.context

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.to_dict().values())

    def to_dict(self) -> dict[str, Any]:
        """Bytes by part."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _SeatShape:
    adapter: AdapterShape
    optimizer: int
    rows: Rows
    kept: Kept
    evaluated: Rows
    has_one_pass: bool


def forecast_host(
    shape: Architecture,
    trials: Sequence[TrialSpec],
    lengths: RowLengths | Sequence[RowLengths],
    device: Device,
    choices: Choices | None = None,
) -> Forecast:
    """Bytes of a host that trains the given trials at once.

    Args:
        shape: Their base.
        trials: One trial for each taken seat; their bases and forms are equal.
        lengths: Lengths of their rows; or those of each trial.
        device: The host's device.
        choices: How the engine trains.

    Raises:
        SpecError: A target matches no layer of the base.
    """
    choices = choices or Choices()
    form = form_of(trials[0].base, device.automatic, is_dense=choices.dense)
    each = [lengths] * len(trials) if isinstance(lengths, RowLengths) else lengths
    unlike = list({id(trial): trial for trial in trials}.values())
    pack = [adapter_of(shape, trial.lora) for trial in unlike]
    settings = PassSettings(
        form=form,
        attention=_attention(shape, form, device),
        pack=(*pack, *pack[:1]) if len(trials) > 1 else (),
        keeps_inputs=device.is_cuda and form.quantization == "int8",
        has_checkpoints=any(_is_checkpointed(trial, choices) for trial in unlike),
    )
    seat_of = functools.cache(
        lambda number, rows: _seat(shape, by_id[number], rows, settings, choices, device)
    )
    by_id = {id(trial): trial for trial in unlike}
    seats = [seat_of(id(trial), rows) for trial, rows in zip(trials, each, strict=True)]
    activations, logits, workspace = _training(shape, seats, settings, choices)
    passing = activations + logits + workspace
    evaluation = max(_evaluation(shape, seat, form) for seat in seats)
    adapters = sum(adapter_bytes(seat.adapter) for seat in seats)
    return Forecast(
        base=base_bytes(shape, form),
        dense=dense_bytes(shape, form),
        adapters=adapters,
        gradients=sum(_gradients(seat) for seat in seats),
        optimizer=sum(seat.optimizer for seat in seats),
        activations=activations,
        logits=logits,
        workspace=workspace,
        evaluation=max(0, evaluation - passing),
        context=device.context,
    )


def rows_of_pass(trial: TrialSpec, lengths: RowLengths, choices: Choices) -> Rows:
    """The rows of a trial's largest pass."""
    rows = trial.optim.micro_batch_size or trial.optim.batch_size
    if choices.saves_memory:
        rows = 1
    elif trial.optim.max_tokens_per_pass is not None:
        rows = max(1, min(rows, trial.optim.max_tokens_per_pass // lengths.train))
    return _rows(rows, lengths.train, lengths.train_answers)


def _is_checkpointed(trial: TrialSpec, choices: Choices) -> bool:
    asked = trial.optim.gradient_checkpointing
    return choices.saves_memory if asked == "auto" else asked is True


def _rows(count: int, length: int, answers: int | None) -> Rows:
    scored = length if answers is None else min(length, answers)
    return Rows(count=count, length=length, scored=count * scored)


def _seat(
    shape: Architecture,
    trial: TrialSpec,
    lengths: RowLengths,
    settings: PassSettings,
    choices: Choices,
    device: Device,
) -> _SeatShape:
    adapter = adapter_of(shape, trial.lora)
    rows = rows_of_pass(trial, lengths, choices)
    return _SeatShape(
        adapter=adapter,
        optimizer=optimizer_bytes(adapter.tensors, trial.optim.optimizer, can_page=device.is_cuda),
        rows=rows,
        kept=kept_bytes(shape, adapter, rows, settings),
        evaluated=_rows(trial.eval.batch_size, lengths.evaluation, lengths.evaluation_answers),
        has_one_pass=rows.count >= trial.optim.batch_size,
    )


def _gradients(seat: _SeatShape) -> int:
    whole = adapter_bytes(seat.adapter)
    return max(0, whole - seat.kept.layers) if seat.has_one_pass else whole


def _attention(shape: Architecture, form: Form, device: Device) -> Attention:
    # torch's fused kernels for CUDA take float32 only with as many key as query heads.
    is_math = device.is_cuda and form.compute == FLOAT32 and shape.kv_heads != shape.heads
    return "math" if is_math else "flash"


def _training(
    shape: Architecture, seats: Sequence[_SeatShape], settings: PassSettings, choices: Choices
) -> tuple[int, int, int]:
    """Activations, logits and workspace of one pass of all seats."""
    activations = sum(seat.kept.layers + seat.kept.rest for seat in seats)
    compute = settings.form.compute
    # The losses of seats are computed one after another, once all layers are.
    chunk = max(
        chunk_bytes(
            seat.rows.scored,
            shape.vocabulary,
            compute,
            has_cap=shape.has_logit_cap,
            is_whole=choices.has_whole_logits,
        )
        for seat in seats
    )
    logits = chunk + sum(seat.kept.head for seat in seats)
    tokens = sum(seat.rows.tokens for seat in seats)
    has_magnitude = any(seat.adapter.has_magnitude for seat in seats)
    needed = _workspace(shape, tokens, settings.form, has_magnitude=has_magnitude)
    if settings.has_checkpoints:
        needed += sum(seat.kept.largest for seat in seats)
    return activations, logits, max(0, needed - chunk)


def _workspace(shape: Architecture, tokens: int, form: Form, *, has_magnitude: bool) -> int:
    """Passing tensors of the largest moment of the backward, the loss apart."""
    norm = _NORM_TENSORS * FLOAT32 * tokens * shape.hidden
    inner = shape.intermediate if shape.experts is None else _expert_width(shape)
    # Two gradients of the inner width: in float32 beside the compute type, or both in float32.
    width = FLOAT32 + form.compute
    if has_magnitude:
        width += FLOAT32
    product = tokens * (inner * width + shape.hidden * FLOAT32)
    return max(norm, product + largest_dense_bytes(shape, form))


def _expert_width(shape: Architecture) -> int:
    experts = shape.experts
    return 0 if experts is None else 2 * experts.chosen * experts.intermediate


def _evaluation(shape: Architecture, seat: _SeatShape, form: Form) -> int:
    """Passing tensors of the largest batch of an evaluation: one layer, then the logits."""
    rows = seat.evaluated
    scored = min(rows.scored, positions_per_chunk(shape.vocabulary))
    logits = scored * shape.vocabulary * (form.compute + 2 * FLOAT32)
    inner = shape.intermediate if shape.experts is None else _expert_width(shape)
    layer = rows.tokens * (inner * (3 * form.compute + FLOAT32) + 2 * shape.hidden * form.compute)
    return max(logits, layer + largest_dense_bytes(shape, form))
