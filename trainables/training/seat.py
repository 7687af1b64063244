"""Seat of one trial: adapter and optimizer, fresh or restored from a checkpoint.

Tensors are named `<layer>/<leaf>`, where a leaf is a parameter of
`trainables.packing.kernels.Branch`; the optimizer's moments of a leaf are
`<layer>/<leaf>/<moment>`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import torch
from torch import nn

from trainables.errors import StateError
from trainables.memory.forecast import RowLengths
from trainables.packing.batches import Batch, build_passes
from trainables.packing.kernels import Branch, PackedLinear, layer_shape, row_norms
from trainables.packing.lora import initial_weights
from trainables.rows.data import Splits
from trainables.rows.epochs import batch_rows, longest_rows
from trainables.spec import TrialSpec
from trainables.training.kinds import EngineKind
from trainables.training.optim import build_optimizer, moments_of, restore_moments
from trainables.training.state import SeatState


@dataclass(kw_only=True)
class Seat:
    """A trial in training.

    Attributes:
        branches: Adapter branches by full layer name.
        splits: Rows for training and evaluation.
        lengths: Tokens of each training row.
        inputs: Digests of the base and the rows, as `SeatState` has them.
        passes: Forward passes per micro-batch.
        trained_by: `batched` if a batched engine took any of the steps.
        step: Optimizer steps taken.
        tokens: Tokens trained on, without padding.
        parameters: Parameters of all branches in PEFT's order, the order of summing a gradient's
            norm.
    """

    spec: TrialSpec
    branches: dict[str, Branch]
    optimizer: torch.optim.Optimizer
    splits: Splits
    lengths: tuple[int, ...]
    inputs: Mapping[str, str | None] = field(default_factory=dict)
    passes: int = 1
    trained_by: EngineKind = "exact"
    step: int = 0
    tokens: int = 0
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for branch in self.branches.values() for p in branch.parameters()]

    @property
    def micro_batch_size(self) -> int:
        """Rows of a micro-batch."""
        return self.spec.optim.micro_batch_size or self.spec.optim.batch_size

    @cached_property
    def longest_rows(self) -> list[int]:
        """Positions of the training rows of the largest micro-batch to come."""
        optim = self.spec.optim
        first = min(self.step, optim.steps - 1)
        return longest_rows(
            self.lengths,
            optim.batch_size,
            self.micro_batch_size,
            self.spec.seed,
            range(first, optim.steps),
        )

    @cached_property
    def row_lengths(self) -> RowLengths:
        """Most tokens and most answer tokens of a row to come, for forecasts of memory."""
        train, evaluated = self.splits.train.rows, self.splits.validation.rows
        return RowLengths(
            train=max(self.lengths[row] for row in self.longest_rows),
            evaluation=max(len(row.input_ids) for row in evaluated),
            train_answers=max(int(row.is_answer.sum()) for row in train),
            evaluation_answers=max(int(row.is_answer.sum()) for row in evaluated),
        )


def fresh_branches(
    spec: TrialSpec,
    layers: Mapping[str, PackedLinear],
    directions: Mapping[str, torch.Tensor],
) -> dict[str, Branch]:
    """Adapter branches with their initial weights.

    Args:
        spec: The trial.
        layers: Target layers by full name.
        directions: `A` (rank, in_features) of layers that do not start at random.
    """
    lora, branches = spec.lora, {}
    for name, packed in layers.items():
        base, device = packed.base, packed.base.weight.device
        a, b = initial_weights(lora, name, *layer_shape(base), spec.seed)
        a, b = directions.get(name, a).to(device), b.to(device)
        magnitude = row_norms(base, a, b, lora.scaling) if lora.dora else None
        branches[name] = Branch(name, a, b, lora.scaling, lora.dropout, magnitude)
    return branches


def restored_branches(
    spec: TrialSpec, layers: Mapping[str, PackedLinear], state: SeatState
) -> dict[str, Branch]:
    """Adapter branches restored from a checkpoint.

    Raises:
        StateError: The checkpoint has no such weights, or weights of another shape.
    """
    lora, branches = spec.lora, {}
    for name, packed in layers.items():
        device = packed.base.weight.device
        wide, high = layer_shape(packed.base)
        shapes: dict[str, tuple[int, ...]] = {"a": (lora.rank, wide), "b": (high, lora.rank)}
        if lora.dora:
            shapes["magnitude"] = (high,)
        leaves = {
            leaf: _saved(state, f"{name}/{leaf}", shape).to(device, copy=True)
            for leaf, shape in shapes.items()
        }
        branches[name] = Branch(
            name,
            leaves["a"],
            leaves["b"],
            lora.scaling,
            lora.dropout,
            leaves.get("magnitude"),
        )
    return branches


def build_seat(
    spec: TrialSpec,
    splits: Splits,
    branches: dict[str, Branch],
    state: SeatState | None = None,
    passes: int = 1,
    inputs: Mapping[str, str | None] = MappingProxyType({}),
    kind: EngineKind = "exact",
) -> Seat:
    """A seat at the start of its training, or restored from a checkpoint."""
    seat = Seat(
        spec=spec,
        branches=branches,
        splits=splits,
        optimizer=build_optimizer(
            [branch.a for branch in branches.values()],
            [p for one in branches.values() for p in one.parameters() if p is not one.a],
            spec.optim,
            is_fused=kind == "batched",
        ),
        lengths=tuple(len(row.input_ids) for row in splits.train.rows),
        inputs=inputs,
        passes=passes,
    )
    if state is not None:
        seat.step, seat.tokens, seat.trained_by = state.step, state.tokens, state.trained_by
        moments: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        for name, tensor in state.tensors.items():
            leaf, _, moment = name.rpartition("/")
            moments[leaf][moment] = tensor
        for name, parameter in _leaves(seat):
            restore_moments(seat.optimizer, parameter, moments[name], state.step)
    return seat


def step_batches(name: str, seat: Seat, device: torch.device) -> list[Batch]:
    """The batches of a seat's next step, one for each forward pass."""
    optim, size = seat.spec.optim, seat.micro_batch_size
    rows = batch_rows(seat.lengths, optim.batch_size, seat.spec.seed, seat.step)
    batches = []
    for start in range(0, len(rows), size):
        batches += _passes(name, seat, rows[start : start + size], device, start // size)
    return batches


def longest_batch(name: str, seat: Seat, device: torch.device) -> Batch:
    """The largest pass that a seat still has before it."""
    passes = _passes(name, seat, seat.longest_rows, device, 0)
    return max(passes, key=lambda batch: batch.block.tokens)


def _passes(
    name: str, seat: Seat, rows: Sequence[int], device: torch.device, micro_step: int
) -> list[Batch]:
    """Batches of a micro-batch, as many as the token limit and the memory ask for."""
    most, least = seat.spec.optim.max_tokens_per_pass, 1
    if most is not None:
        longest = max(seat.lengths[row] for row in rows)
        least = -(-len(rows) // max(1, most // longest))
    return build_passes(
        name,
        [seat.splits.train.rows[row] for row in rows],
        device,
        key=(seat.spec.seed, seat.step, micro_step),
        passes=max(seat.passes, least),
    )


def snapshot(seat: Seat) -> SeatState:
    """Complete checkpoint of a seat, as a copy on the CPU."""
    tensors = {}
    for name, parameter in _leaves(seat):
        tensors[name] = _kept(parameter)
        for moment, value in moments_of(seat.optimizer, parameter):
            tensors[f"{name}/{moment}"] = _kept(value)
    return SeatState(
        spec=seat.spec,
        step=seat.step,
        tokens=seat.tokens,
        tensors=tensors,
        inputs=seat.inputs,
        trained_by=seat.trained_by,
    )


def _leaves(seat: Seat) -> Iterator[tuple[str, nn.Parameter]]:
    for layer, branch in seat.branches.items():
        for leaf, parameter in branch.named_parameters():
            yield f"{layer}/{leaf}", parameter


def _saved(state: SeatState, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    tensor = state.tensors.get(name)
    if tensor is None or tuple(tensor.shape) != shape:
        found = "no weights" if tensor is None else f"weights of shape {tuple(tensor.shape)}"
        raise StateError(
            f"the saved state of step {state.step}: it has {found} for {name}; allowed: the shape "
            f"{shape} of this trial. Choose another storage for the sweep."
        )
    return tensor


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
