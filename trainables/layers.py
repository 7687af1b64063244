"""The linear layers of a base, told from its description alone: no weights are loaded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainables.base import require_text_only
from trainables.errors import BaseModelError
from trainables.lora import linear_layers
from trainables.spec import BaseSpec
from trainables.stops import place_of

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def describe_layers(base: BaseSpec) -> tuple[tuple[str, ...], int] | None:
    """Full names of a base's linear layers, and how many routed experts each of its blocks has.

    `None` for a `.gguf` file that was never unpacked: its layers have other names there.

    Raises:
        BaseModelError: transformers does not know the architecture, or it is no causal language
            model of text.
    """
    place, options = place_of(base)
    if "gguf_file" in options:
        return None
    try:
        config = AutoConfig.from_pretrained(place, **options)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(_without_quantization(config))
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BaseModelError(
            f"base.model: {base.model!r} cannot be built as a causal language model ({reason}); "
            "allowed: an architecture that this transformers knows, without code of its own. "
            "Check config.json, or choose another base."
        ) from error
    require_text_only(model.config, base.model)
    return tuple(linear_layers(model)), _experts(model.config)


def _without_quantization(config: Any) -> Any:
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _experts(config: Any) -> int:
    found = [getattr(config, name, None) for name in _EXPERTS]
    return next((number for number in found if isinstance(number, int) and number > 1), 0)
