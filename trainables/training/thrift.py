"""What an engine keeps in memory to be fast, and gives up where memory is short."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainables.errors import SpecError
from trainables.spec import TrialSpec
from trainables.training.foresight import Foresight
from trainables.training.packed_model import PackedModel
from trainables.training.seat import Seat


class Thrift:
    """Decides on a dense copy of the base, and on computing decoder layers again.

    In that order they are given up: a dense copy costs time where it is missing, checkpoints cost
    a third more computation. No number of a trial depends on either.

    Args:
        model: The base's model.
        foresight: Forecasts of the seats' memory.
        seats: The taken seats by name; the owner adds and removes them.
    """

    def __init__(
        self, model: PackedModel, foresight: Foresight, seats: Mapping[str, Seat]
    ) -> None:
        self._model, self._foresight, self._seats = model, foresight, seats

    def require_possible(self, spec: TrialSpec) -> None:
        """Raise `SpecError` if a trial asks for checkpoints that its base cannot have."""
        if spec.optim.gradient_checkpointing is True and not self._model.can_checkpoint:
            raise SpecError(
                f"optim.gradient_checkpointing: got true; allowed: auto or false with "
                f"{self._model.kind}, as transformers cannot compute its layers again. Use auto."
            )

    def settle(self, spec: TrialSpec) -> None:
        """Adjust to a seat that was just taken: as fast as the memory is forecast to allow."""
        is_first, asked = len(self._seats) == 1, spec.base.dense
        has_room = asked == "auto" and is_first and self._foresight.has_room_for_dense()
        if asked is True or has_room:
            self._keep_dense(True)
        while self._foresight.exceeds() and self.save():
            pass

    def save(self) -> bool:
        """Free the dense copy, or else checkpoint; both only for trials that leave it open.

        Returns:
            Whether that is new, and possible with this base.
        """
        is_asked = any(seat.spec.base.dense is True for seat in self._seats.values())
        if self._model.is_dense and not is_asked:
            self._keep_dense(False)
            return True
        is_new = self._model.can_checkpoint and not self._foresight.saves_memory
        self._foresight.saves_memory = self._model.can_checkpoint
        return is_new

    def has_checkpoints(self, seats: Iterable[str]) -> bool:
        """Whether a pass of seats computes layers again; one seat asks for all of them."""
        saves = self._foresight.saves_memory
        asked = (self._seats[seat].spec.optim.gradient_checkpointing for seat in seats)
        return self._model.can_checkpoint and any(
            saves if one == "auto" else one is True for one in asked
        )

    def _keep_dense(self, value: bool) -> None:
        self._model.is_dense = self._foresight.is_dense = value
