"""Training of many adapters on one frozen base, in one forward and backward pass.

Each trial has a seat: its own adapter, optimizer, schedule, data order and randomness. A step of
several seats concatenates their rows and gives each seat the same numbers as a solo step, bit for
bit (`trainables.packing.kernels` says how); a solo trial is a pack of one.

No random state is kept: initial weights, data order and dropout are pure functions of (seed,
step), so adapter, optimizer moments and step count are a complete checkpoint.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from trainables.base.loading import LoadedBase, load_base
from trainables.base.stops import tokens_of
from trainables.base.targets import resolve_targets, short_targets
from trainables.errors import SpecError
from trainables.memory.calibration import Calibration
from trainables.memory.loss_bytes import LOGITS_PER_CHUNK
from trainables.packing.batches import Batch, batches_by_length, build_batch
from trainables.packing.head import LossShare
from trainables.packing.lora import peft_tensors
from trainables.rows.chat_summary import chats_of
from trainables.rows.data import (
    EncodedRow,
    Split,
    Splits,
    cut_train,
    load_splits,
    require_known_tokens,
    tokenizer_digest,
)
from trainables.rows.data_summary import summarize
from trainables.rows.sampling import sample
from trainables.spec import BaseSpec, DataSpec, TrialSpec
from trainables.training.bundle import write_bundle
from trainables.training.eva import first_rows, observed_directions
from trainables.training.foresight import Foresight, device_memory
from trainables.training.kinds import EngineKind
from trainables.training.optim import apply_gradients
from trainables.training.own_metric import OwnMetric
from trainables.training.packed_model import PackedModel
from trainables.training.pages import free_pages
from trainables.training.row_scores import RowScores, in_order, row_scores
from trainables.training.seat import (
    Seat,
    build_seat,
    fresh_branches,
    longest_batch,
    restored_branches,
    snapshot,
    step_batches,
)
from trainables.training.state import SeatState, require_inputs
from trainables.training.thrift import Thrift

SplitName = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Result of an optimizer step for one seat.

    Attributes:
        step: Optimizer steps taken so far.
        loss: Mean negative log-likelihood of the batch's answer tokens, in nats.
        tokens: Tokens trained on so far, without padding.
        is_finite: Whether loss and gradient were finite; if not, the seat is unchanged.
    """

    step: int
    loss: float
    tokens: int
    is_finite: bool


class Engine:
    """Trainer of several seats on one frozen base.

    Args:
        base: The base; the engine owns it and replaces its layers.
        logits_per_chunk: Most logits of a seat that exist at once. A trial whose passes need more
            has another order of sums.
        memory: Bytes of the device's memory; when not given, a GPU's, and no limit on a CPU.
        calibration: What hosts of the same base and form have measured.
        kind: `exact`, or `batched`: products of all seats at once, equal but for rounding.

    Attributes:
        foresight: Forecasts of the seats' memory.
        widest_pass: Most tokens of a training pass so far, padding included.
    """

    def __init__(
        self,
        base: LoadedBase,
        logits_per_chunk: int = LOGITS_PER_CHUNK,
        memory: int | None = None,
        calibration: Calibration | None = None,
        kind: EngineKind = "exact",
    ) -> None:
        """Raises `BaseModelError` for a base whose rows influence each other in a pack."""
        self.base = base
        self._tokenizer_digest = tokenizer_digest(base.tokenizer)
        self._seats: dict[str, Seat] = {}
        self._load_splits = functools.lru_cache(maxsize=16)(self._read_splits)
        self._kind = kind
        self._model = PackedModel(base, logits_per_chunk, is_batched=kind == "batched")
        limit = memory or device_memory(base.device)
        self.foresight = Foresight(base, self._seats, limit, calibration)
        self._thrift = Thrift(self._model, self.foresight, self._seats)
        self.widest_pass = 0

    @property
    def seats(self) -> tuple[str, ...]:
        """Names of the taken seats, in the order of joining."""
        return tuple(self._seats)

    @property
    def is_dense(self) -> bool:
        """Whether 4-bit weights of the base are also kept dequantized."""
        return self._model.is_dense

    def join(
        self, seat: str, spec: TrialSpec, state: SeatState | None = None, passes: int = 1
    ) -> None:
        """Take a seat with a fresh adapter, or resume from a checkpoint.

        Args:
            seat: A free name.
            spec: The trial.
            state: Checkpoint to resume from; `None` starts a fresh adapter.
            passes: Forward passes per micro-batch, more than 1 to save memory; results differ only
                by the rounding of sums.

        Raises:
            SpecError: The seat is taken, or the base has no such target layers.
            DataError: The data cannot be used.
            StateError: The checkpoint was trained on another base or other rows, or has weights
                of other shapes.
        """
        if seat in self._seats:
            raise SpecError(f"seat: {seat!r} is taken; allowed: a free name. Leave it first.")
        self._thrift.require_possible(spec)
        splits = self._splits(spec.data)
        self._require_short_rows(splits)
        targets = resolve_targets(tuple(self._model.linears), spec.lora.targets)
        layers = {name: self._model.linears[name] for name in targets}
        inputs = self._inputs(splits)
        if state is not None:
            require_inputs(state, inputs)
            branches = restored_branches(spec, layers, state)
        else:
            directions = {}
            if spec.lora.init == "eva":  # the initial A depends on the data
                rows = first_rows(splits.train.rows)
                batches = [build_batch(None, [row], self.base.device) for row in rows]
                directions = observed_directions(
                    layers, spec.lora.rank, lambda: self._model.hidden(batches)
                )
            branches = fresh_branches(spec, layers, directions)
        taken = build_seat(spec, splits, branches, state, passes, inputs, kind=self._kind)
        for name, branch in branches.items():
            self._model.linears[name].branches[seat] = branch
        self._seats[seat] = taken
        self._thrift.settle(spec)

    def leave(self, seat: str) -> None:
        """Free a seat; its adapter is lost without an earlier export or snapshot."""
        left = self._seats.pop(seat)
        for name in left.branches:
            del self._model.linears[name].branches[seat]
        free_pages(left.optimizer)

    def step(self, seats: Sequence[str]) -> dict[str, StepResult]:
        """Take one optimizer step in each of `seats`, packed.

        A seat with a non-finite loss or gradient keeps its weights and reports the event; its
        neighbours are not affected.
        """
        passes = {seat: self._passes(seat) for seat in seats}
        answers = {
            seat: sum(batch.block.answers for batch in batches) for seat, batches in passes.items()
        }
        losses = dict.fromkeys(seats, 0.0)
        try:
            for number in range(max(len(batches) for batches in passes.values())):
                batches = [own[number] for own in passes.values() if number < len(own)]
                for batch, loss in zip(batches, self._backward(batches, answers), strict=True):
                    losses[str(batch.block.seat)] += loss
        finally:
            self._model.forget_weights()
        tokens = {
            seat: sum(batch.real_tokens for batch in batches) for seat, batches in passes.items()
        }
        return {
            seat: self._update(seat, losses[seat], tokens[seat], answers[seat]) for seat in seats
        }

    def evaluate(self, seat: str, split: SplitName = "validation") -> dict[str, float]:
        """Loss, accuracies and `eval.metric` of a seat; `eval.max_rows` limits validation rows."""
        taken = self._seats[seat]
        return self._measure(seat, taken.spec, taken.splits, split)

    def evaluate_rows(self, seat: str, split: SplitName = "validation") -> RowScores:
        """Scores of each row for a seat's adapter."""
        taken = self._seats[seat]
        return self._evaluate_rows(seat, taken.spec, taken.splits, split)

    def evaluate_base(self, spec: TrialSpec, split: SplitName = "validation") -> dict[str, float]:
        """Loss, accuracies and `eval.metric` of the bare base on the data of `spec`."""
        return self._measure(None, spec, self._splits(spec.data), split)

    def save_memory(self) -> bool:
        """Use less memory from now on, with the same numbers; gives whether that is new."""
        return self._thrift.save()

    def rehearse(self, seats: Sequence[str]) -> bool:
        """Pass the longest rows of each seat forward and backward, and drop the gradients.

        What will run out of memory does so here, before the first step, and the forecast of
        memory is corrected by the bytes that the pass takes. No number of a trial changes.

        Returns:
            Whether there was a pass: only where a limit of the memory is known.
        """
        if self.foresight.memory is None:
            return False
        batches = [longest_batch(seat, self._seats[seat], self.base.device) for seat in seats]
        answers = {str(batch.block.seat): batch.block.answers for batch in batches}
        try:
            self.foresight.learn(seats, batches, lambda: self._backward(batches, answers))
        finally:
            for seat in seats:
                self._seats[seat].optimizer.zero_grad(set_to_none=True)
        return True

    def snapshot(self, seat: str) -> SeatState:
        """Complete checkpoint of a seat, as a copy."""
        return snapshot(self._seats[seat])

    def export(self, seat: str, folder: Path, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Write the seat's adapter as a bundle and return its manifest."""
        taken = self._seats[seat]
        weights = {
            name: dict(branch.named_parameters()) for name, branch in taken.branches.items()
        }
        splits, data = taken.splits, taken.spec.data
        chats = chats_of(splits, self.base.tokenizer)
        record = {
            "train": splits.train.digest,
            "validation": splits.validation.digest,
            "test": None if splits.test is None else splits.test.digest,
            "prompt_style": splits.prompt_style,
            "template_digest": splits.template_digest,
            "tokenizer_digest": self._tokenizer_digest,
            "max_tokens": data.max_tokens,
            "train_max_tokens": data.train_max_tokens,
            **summarize(splits.raw, splits, chats=chats).to_dict(),
        }
        return write_bundle(
            folder,
            tensors=peft_tensors(weights),
            spec=taken.spec,
            base=self.base.record,
            targets=short_targets(tuple(self._model.linears), tuple(taken.branches)),
            facts={
                "data": record,
                "engine": taken.trained_by,
                "steps": taken.step,
                "tokens": taken.tokens,
                "metrics": dict(metrics),
            },
        )

    def trainable_params(self, seat: str) -> int:
        """Number of weights in the seat's adapter."""
        return sum(parameter.numel() for parameter in self._seats[seat].parameters)

    # --------------------------------------------------------------------------- preparation

    def _require_short_rows(self, splits: Splits) -> None:
        if self._model.longest_row is None:
            return
        every = (splits.train, splits.validation, splits.test)
        rows = [row for split in every if split is not None for row in split.rows]
        longest = max(len(row.input_ids) for row in rows)
        if longest > self._model.longest_row:
            raise SpecError(
                f"data.max_tokens: a row has {longest} tokens; allowed: at most "
                f"{self._model.longest_row} with {type(self.base.model).__name__}, because longer "
                "rows have no positions, or positions that depend on other rows. Set "
                f"data.max_tokens to {self._model.longest_row}."
            )

    def _inputs(self, splits: Splits) -> dict[str, str | None]:
        return {
            "base": self.base.record.digest,
            "training rows": splits.train.digest,
            "validation rows": splits.validation.digest,
            "chat template": splits.template_digest,
            "tokenizer": self._tokenizer_digest,
        }

    # ------------------------------------------------------------------------------ one step

    def _passes(self, seat: str) -> list[Batch]:
        """The batches of the seat's next step, one for each forward pass."""
        return step_batches(seat, self._seats[seat], self.base.device)

    def _backward(self, batches: Sequence[Batch], answers: Mapping[str, int]) -> list[float]:
        """Add the gradients of a pass; returns the share of each batch in its seat's mean loss.

        Args:
            batches: At most one batch of each seat.
            answers: Number of scored positions of the seat's whole step, the divisor of its mean.
        """
        shares = [
            LossShare(
                positions=batch.block.answers,
                answers=answers[str(batch.block.seat)],
                scale=self._gradient_scale(answers[str(batch.block.seat)]),
            )
            for batch in batches
        ]
        is_checkpointed = self._thrift.has_checkpoints(str(one.block.seat) for one in batches)
        losses, total = self._model.losses(batches, shares, is_checkpointed=is_checkpointed)
        total.backward()
        tokens = sum(batch.block.tokens for batch in batches)
        self.widest_pass = max(self.widest_pass, tokens)
        return [loss.item() for loss in losses]

    def _gradient_scale(self, answers: int) -> float:
        """Factor on the loss that keeps float16 gradients of a mean from rounding to zero."""
        return float(answers) if self.base.compute_dtype == torch.float16 else 1.0

    def _update(self, seat: str, loss: float, tokens: int, answers: int) -> StepResult:
        taken = self._seats[seat]
        optim = taken.spec.optim
        if not math.isfinite(loss):
            taken.optimizer.zero_grad(set_to_none=True)
            return StepResult(step=taken.step, loss=loss, tokens=taken.tokens, is_finite=False)
        scale = self._gradient_scale(answers)
        is_finite = apply_gradients(taken.optimizer, taken.parameters, optim, taken.step, scale)
        if is_finite:
            taken.tokens += tokens
            taken.step += 1
            taken.trained_by = self._kind if taken.trained_by == "exact" else taken.trained_by
        return StepResult(step=taken.step, loss=loss, tokens=taken.tokens, is_finite=is_finite)

    # ---------------------------------------------------------------------------- evaluation

    def _measure(
        self, seat: str | None, spec: TrialSpec, splits: Splits, name: SplitName
    ) -> dict[str, float]:
        scores = self._evaluate_rows(seat, spec, splits, name)
        if spec.eval.metric is None:
            return scores.metrics()
        stops = tokens_of(self.base.model.generation_config)
        ends = {*splits.train.learned.ends, *stops, self.base.tokenizer.eos_token_id}
        longest = getattr(
            self.base.model.config.get_text_config(), "max_position_embeddings", None
        )
        own = OwnMetric(how=spec.eval, tokenizer=self.base.tokenizer, ends=ends, longest=longest)
        rows = rows_of(splits, name, spec.eval.max_rows)
        size = spec.eval.batch_size
        asked = own.measure(rows, scores, lambda rows: self._next_tokens(seat, rows, size))
        return {**scores.metrics(), **asked}

    @torch.no_grad()
    def _next_tokens(
        self, seat: str | None, rows: Sequence[EncodedRow], batch_size: int
    ) -> list[int]:
        """The most likely token at the single scored position of each row."""
        found = [0] * len(rows)
        lengths = [len(row.input_ids) for row in rows]
        for chosen in batches_by_length(lengths, batch_size, self._model.rope_switch):
            batch = build_batch(seat, [rows[i] for i in chosen], self.base.device)
            (scored,) = self._model.scored([batch])
            for number, token in zip(chosen, scored.likeliest().tolist(), strict=True):
                found[number] = token
        return found

    @torch.no_grad()
    def _evaluate_rows(
        self, seat: str | None, spec: TrialSpec, splits: Splits, name: SplitName
    ) -> RowScores:
        rows = rows_of(splits, name, spec.eval.max_rows)
        lengths = [len(row.input_ids) for row in rows]
        parts = []
        for chosen in batches_by_length(lengths, spec.eval.batch_size, self._model.rope_switch):
            batch = build_batch(seat, [rows[i] for i in chosen], self.base.device)
            (scored,) = self._model.scored([batch])
            is_whole = [not rows[i].is_cut for i in chosen]
            scores = row_scores(*scored.score(batch.targets), batch.row_answers, is_whole)
            parts.append((chosen, scores))
        return in_order(parts)

    # ---------------------------------------------------------------------------------- rows

    def _splits(self, spec: DataSpec) -> Splits:
        sources = (spec.train, spec.validation, spec.test)
        is_hashable = all(source is None or isinstance(source, str) for source in sources)
        return self._load_splits(spec) if is_hashable else self._read_splits(spec)

    def _read_splits(self, spec: DataSpec) -> Splits:
        if spec.train_max_tokens is None:
            stops = tokens_of(self.base.model.generation_config)
            splits = load_splits(spec, self.base.tokenizer, stops)
            known = self.base.model.get_input_embeddings().weight.shape[0]
            require_known_tokens(splits, known, self.base.tokenizer)
            return splits
        # Trials that differ only in the training limit share the tokens of all other rows.
        return cut_train(self._splits(replace(spec, train_max_tokens=None)), spec.train_max_tokens)


def build_engine(base: BaseSpec, kind: EngineKind = "exact") -> Engine:
    """Engine on a freshly loaded base.

    Raises:
        BaseModelError: The base cannot be found, read or quantized.
    """
    return Engine(load_base(base), kind=kind)


def rows_of(splits: Splits, name: SplitName, max_rows: int | None) -> Sequence[EncodedRow]:
    """Rows of a split to evaluate on: every test row, or at most `max_rows` validation rows.

    Raises:
        SpecError: The trial has no test rows.
    """
    split: Split | None = splits.validation if name == "validation" else splits.test
    if split is None:
        raise SpecError(
            "data.test: got None, but the test split was requested; allowed: a file or "
            "data.test_fraction > 0. Give test rows."
        )
    if name == "test" or max_rows is None:
        return split.rows
    return [split.rows[position] for position in sample(len(split.rows), max_rows, split.digest)]
