"""Summary of a base before its weights are loaded, and a check of adapter targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainables.base.presence import layers_of_files, require_base
from trainables.base.stored import StoredForm, stored_form
from trainables.base.targets import resolve_targets
from trainables.errors import SpecError
from trainables.spec import BaseSpec

Targets = str | Sequence[str]


@dataclass(frozen=True, kw_only=True)
class BaseSummary:
    """Properties of a base, read from its files.

    Attributes:
        model: The base, as named in the spec.
        stored: Quantized form of the files; `None` for plain weights.
        layers: Full names of the linear layers; `None` if they are not known yet.
        experts: Routed experts in each block; 0 for a dense model.
    """

    model: str
    stored: StoredForm | None
    layers: tuple[str, ...] | None
    experts: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"prequantized": self.stored is not None, "experts": self.experts}

    def lines(self) -> list[str]:
        """Sentences for the user, one for each fact to know before training starts."""
        lines = []
        if self.stored is not None:
            lines.append(
                f"The files of the base {self.model} are stored in {self.stored} already: they "
                "are used unchanged, and adapters have only the serving form trained."
            )
        if self.experts:
            lines.append(
                f"The base {self.model} has {self.experts} routed experts in a block: experts "
                "stay unquantized and get no adapter; base.quantization and lora.targets apply to "
                "the other linear layers."
            )
        return lines

    def refusal(self, targets: Targets) -> str:
        """Reason why no adapter fits the targets; empty if one fits or the layers are unknown."""
        if self.layers is None:
            return ""
        try:
            resolve_targets(self.layers, targets)
        except SpecError as error:
            return str(error)
        return ""


def glance_at_base(base: BaseSpec) -> BaseSummary:
    """Summary of a base from the headers of its files: nothing is imported, layers may be unknown.

    Raises:
        BaseModelError: The base cannot be had, or its files cannot be trained on.
    """
    require_base(base)
    return BaseSummary(
        model=base.model, stored=stored_form(base), layers=layers_of_files(base), experts=0
    )


def inspect_base(base: BaseSpec) -> BaseSummary:
    """Summary of a base, from its files alone.

    Raises:
        BaseModelError: The base cannot be trained on.
    """
    # Imported here: importing torch takes seconds.
    from trainables.base.layers import describe_layers

    stored = stored_form(base)
    # A .gguf file that was never unpacked has no layers of transformers yet.
    layers, experts = describe_layers(base) or (layers_of_files(base), 0)
    return BaseSummary(model=base.model, stored=stored, layers=layers, experts=experts)
