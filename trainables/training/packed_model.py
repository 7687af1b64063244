"""A base whose layers carry the adapters of many seats, and its passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trainables.base.layers import linear_layers
from trainables.base.loading import LoadedBase
from trainables.memory.loss_bytes import LOGITS_PER_CHUNK, positions_per_chunk
from trainables.packing.attention import install_packed_attention
from trainables.packing.batched import BatchedLinear
from trainables.packing.batches import Batch
from trainables.packing.checkpoints import install_checkpoints
from trainables.packing.head import Finish, LossShare, PackedHead, Scored, find_finish
from trainables.packing.kernels import PackedLinear, drop_dense, keep_dense
from trainables.packing.pack import Layout
from trainables.packing.rope import install_packed_rotary, longest_row, rope_switch
from trainables.training.probe import Probe


class PackedModel:
    """The model of a base, whose rows of different seats never meet.

    Args:
        base: The base; its layers are replaced.
        logits_per_chunk: Most logits of a seat that exist at once.
        is_batched: Multiply the rows of all seats together in training.

    Attributes:
        linears: Linear layers by full name; seats add their branches to them.
        longest_row: Most tokens of a row; `None` without a limit.
        rope_switch: Length at which rotary frequencies change; `None` if they never do.
        can_checkpoint: Whether decoder layers can be computed again in the backward.
    """

    def __init__(
        self,
        base: LoadedBase,
        logits_per_chunk: int = LOGITS_PER_CHUNK,
        *,
        is_batched: bool = False,
    ) -> None:
        """Raises `BaseModelError` for a base whose rows influence each other in a pack."""
        self._base = base
        self._is_batched, self._is_dense = is_batched, False
        self._layout = Layout(is_batched=is_batched)
        kind = BatchedLinear if is_batched else PackedLinear
        self.linears: dict[str, PackedLinear] = {
            name: kind(module, self._layout) for name, module in linear_layers(base.model).items()
        }
        self.longest_row = longest_row(base.model)
        self.rope_switch = rope_switch(base.model.config)
        probe = Probe(base)
        self._head = PackedHead(base.model.get_output_embeddings(), self._layout)
        self._chunk = positions_per_chunk(self._head.vocabulary, logits_per_chunk)
        probe.require_installed(self._install)
        self.can_checkpoint = install_checkpoints(base.model, self._layout) > 0
        probe.require_apart(self.logits)
        self._finish = self._find_finish(probe.batches)

    def scored(self, batches: Sequence[Batch]) -> list[Scored]:
        """The scored positions of each batch, behind one pass of all of them.

        Args:
            batches: At most one batch of each seat.
        """
        finish = self._finish
        if finish is None:
            return [self._scored(one, _as_they_are) for one in self.logits(batches)]

        def to_logits(hidden: torch.Tensor) -> torch.Tensor:
            return finish(self._head.logits(hidden))

        return [self._scored(one, to_logits) for one in self.hidden(batches)]

    def losses(
        self, batches: Sequence[Batch], shares: Sequence[LossShare], *, is_checkpointed: bool
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Share of each batch in its seat's mean loss, and the sum to call backward on.

        Args:
            batches: At most one batch of each seat.
            shares: The share of each of them.
            is_checkpointed: Decoder layers keep only their input for the backward, which must come
                before the next pass.
        """
        self._layout.is_checkpointed = is_checkpointed
        try:
            found = self.scored(batches)
        finally:
            self._layout.is_checkpointed = False
        if self._is_batched:
            whole = self._scored(torch.cat([one.states for one in found]), found[0].to_logits)
            return whole.shared_loss(torch.cat([batch.targets for batch in batches]), shares)
        losses = [
            scored.loss(batch.targets, share.answers, share.scale)
            for batch, share, scored in zip(batches, shares, found, strict=True)
        ]
        total = torch.stack([scaled for _, scaled in losses]).sum()
        return [loss for loss, _ in losses], total

    def forget_weights(self) -> None:
        """Forget copies of the adapters' weights, which a step is about to change."""
        for linear in self.linears.values():
            if isinstance(linear, BatchedLinear):
                linear.forget()

    def _scored(self, states: torch.Tensor, to_logits: Finish) -> Scored:
        return Scored(states=states, to_logits=to_logits, chunk=self._chunk)

    @property
    def kind(self) -> str:
        """Name of the model's class."""
        return type(self._base.model).__name__

    @property
    def is_dense(self) -> bool:
        """Whether 4-bit weights are also kept dequantized."""
        return self._is_dense

    @is_dense.setter
    def is_dense(self, value: bool) -> None:
        self._is_dense = value
        for packed in self.linears.values():
            (keep_dense if value else drop_dense)(packed.base)

    def hidden(self, batches: Sequence[Batch]) -> list[torch.Tensor]:
        """Inputs of the head for each batch: (scored positions, hidden)."""
        self._head.gives_logits = False
        try:
            self._pass(batches)
        finally:
            self._head.gives_logits = True
        return self._head.take_hidden()

    def logits(self, batches: Sequence[Batch]) -> list[torch.Tensor]:
        """Logits of each batch: (scored positions, vocabulary)."""
        return list(self._pass(batches)[0].split(self._layout.answer_counts()))

    def _pass(self, batches: Sequence[Batch]) -> torch.Tensor:
        """What the model gives for all batches, packed: (1, scored positions, width)."""
        device = self._base.device
        self._layout.blocks = tuple(batch.block for batch in batches)
        starts = [0]
        for batch in batches:
            starts.append(starts[-1] + batch.block.tokens)
        self._layout.scored = torch.cat(
            [batch.scored + start for batch, start in zip(batches, starts, strict=False)]
        )
        positions = [
            torch.arange(batch.block.length, device=device).repeat(batch.block.rows)
            for batch in batches
        ]
        given: torch.Tensor = self._base.model(
            input_ids=torch.cat([batch.input_ids for batch in batches], dim=1),
            position_ids=torch.cat(positions).unsqueeze(0),
            use_cache=False,
        ).logits
        return given

    @torch.no_grad()
    def _find_finish(self, batches: Sequence[Batch]) -> Finish | None:
        """What the model does behind its head, if that is known.

        Behind anything else, losses are computed from the logits of whole passes.
        """
        logits, hidden = torch.cat(self.logits(batches)), torch.cat(self.hidden(batches))
        config = self._base.model.config.get_text_config()
        return find_finish(config, self._head, hidden, logits)

    def _install(self) -> None:
        """Replace the base's layers by layers that separate seats."""
        model = self._base.model
        places = {module: name for name, module in model.named_modules()}
        for name, packed in self.linears.items():
            model.set_submodule(name, packed)
        model.set_submodule(places[self._head.base], self._head)
        install_packed_rotary(model, self._layout)
        install_packed_attention(model, self._layout)


def _as_they_are(logits: torch.Tensor) -> torch.Tensor:
    return logits
