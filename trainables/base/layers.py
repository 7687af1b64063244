"""Linear layers of a base: of a loaded model, or from its description alone."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from trainables.base.stops import place_of
from trainables.errors import BaseModelError
from trainables.spec import BaseSpec

_LINEAR = (nn.Linear, Conv1D, Linear4bit, Linear8bitLt)

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def describe_layers(base: BaseSpec) -> tuple[tuple[str, ...], int] | None:
    """Full names of a base's linear layers, and the number of routed experts in each block.

    `None` for a `.gguf` file that was never unpacked: the file names layers differently.

    Raises:
        BaseModelError: transformers does not know the architecture, or the model is no causal
            language model of text.
    """
    model = _empty_model(base)
    if model is None:
        return None
    require_text_only(model.config, base.model)
    found = [getattr(model.config, name, None) for name in _EXPERTS]
    experts = next((number for number in found if isinstance(number, int) and number > 1), 0)
    return tuple(linear_layers(model)), experts


def build_empty(base: BaseSpec) -> tuple[list[tuple[int, int]], int]:
    """Weights and output features of each linear layer, and all weights of the model.

    The weights of a tied head count once. The model is built on torch's `meta` device.

    Raises:
        BaseModelError: transformers does not know the architecture, or the file is a `.gguf`.
    """
    model = _empty_model(base)
    if model is None:
        raise BaseModelError(
            f"base.model: the layers of {base.model!r} are not known before it is unpacked; "
            "allowed: a base with a config.json. Name the original weights."
        )
    linears = [
        (int(one.weight.numel()), int(one.weight.shape[1 if isinstance(one, Conv1D) else 0]))
        for one in linear_layers(model).values()
    ]
    return linears, sum(int(one.numel()) for one in model.parameters())


def _empty_model(base: BaseSpec) -> Any:
    """The model without memory; `None` for a `.gguf` file that was never unpacked.

    Raises:
        BaseModelError: transformers does not know the architecture.
    """
    place, options = place_of(base)
    if "gguf_file" in options:
        return None
    config = None
    try:
        config = AutoConfig.from_pretrained(place, **options)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError) as error:
        if config is not None:
            require_text_only(config, base.model)
        # The rest of transformers' message lists every known architecture.
        said = " ".join(str(error).split()).partition(" Model type should be")[0]
        reason = said[:300] or type(error).__name__
        raise BaseModelError(
            f"base.model: {base.model!r} cannot be built as a causal language model ({reason}); "
            "allowed: an architecture of the installed transformers, without custom code. Check "
            "config.json, or choose another base."
        ) from error
    return model


def linear_layers(model: Any) -> dict[str, nn.Linear | Conv1D]:
    """Every linear layer that can carry an adapter, by full name, in the model's order.

    The output head is left out, as in PEFT's `all-linear`. Layers that do more than multiply, such
    as the routers of Llama 4, are left out, too.
    """
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in _LINEAR and module is not head
    }


def require_text_only(config: Any, model: str) -> None:
    """Refuse a model of text and pictures or sound.

    The language model of such a base is only a part of the whole model.

    Args:
        config: Configuration of the model that transformers loads as a causal language model.
        model: Name of the base in messages.

    Raises:
        BaseModelError: The model also reads pictures or sound.
    """
    has_more = any(getattr(config, f"{kind}_config", None) for kind in ("vision", "audio"))
    if has_more or config.get_text_config() is not config:
        raise BaseModelError(
            f"base.model: {model!r} is a model of text and pictures or sound "
            f"({config.model_type}), whose language model cannot be trained by itself; allowed: "
            "a causal language model of text alone. Name the text-only checkpoint of its family."
        )
