"""What is known of a base before its weights are loaded, and whether a sweep's adapters fit it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainables.base.stored import StoredForm, stored_form
from trainables.base.targets import resolve_targets
from trainables.errors import SpecError
from trainables.spec import BaseSpec

Targets = str | Sequence[str]


@dataclass(frozen=True, kw_only=True)
class BaseSummary:
    """What a base is.

    Attributes:
        model: Which base.
        stored: Form that its own files are quantized in; `None` for plain weights.
        layers: Full names of its linear layers; `None` where that is not known yet.
        experts: Routed experts of each of its blocks; 0 for a dense model.
    """

    model: str
    stored: StoredForm | None
    layers: tuple[str, ...] | None
    experts: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"prequantized": self.stored is not None, "experts": self.experts}

    def lines(self) -> list[str]:
        """A sentence for each fact that a user should know before training starts."""
        said = []
        if self.stored is not None:
            said.append(
                f"The files of the base {self.model} are stored in {self.stored} already: they "
                "are used as they are, and adapters are served in the form trained alone."
            )
        if self.experts:
            said.append(
                f"The base {self.model} has {self.experts} routed experts in a block: they stay "
                "unquantized and get no adapter; base.quantization and lora.targets hold for its "
                "other linear layers."
            )
        return said

    def refusal(self, targets: Targets) -> str:
        """Why an adapter cannot sit on these layers; empty where it can, or nothing is known."""
        if self.layers is None:
            return ""
        try:
            resolve_targets(self.layers, targets)
        except SpecError as error:
            return str(error)
        return ""


def inspect_base(base: BaseSpec) -> BaseSummary:
    """What the files of a base say of it.

    Raises:
        BaseModelError: It cannot be trained on.
    """
    # Imported here: torch takes seconds.
    from trainables.base.layers import describe_layers

    stored = stored_form(base)
    layers, experts = describe_layers(base) or (None, 0)
    return BaseSummary(model=base.model, stored=stored, layers=layers, experts=experts)
