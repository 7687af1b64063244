"""Merged weights, quantized like the base that the adapter was trained on.

`requantize` quantizes a whole merged model. For several adapters on one base most of that work
repeats, because an adapter changes a few layers only. `quantize_layers` quantizes single layers,
and `exchanged` puts them into a base in its quantized form. Each tensor is quantized by itself, by
the same code and from the same numbers, so both ways give the same model, bit for bit.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from safetensors import safe_open
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from trainables.base.loading import settle_types

QuantizedLayer = Mapping[str, torch.Tensor]
"""Weight of a 4-bit layer and its scaling constants, as files store them, on the CPU."""


def requantize(
    plain: Path, stored: Path, record: Mapping[str, Any], tokenizer: Any, device: torch.device
) -> None:
    """Quantize a saved model as a base's record describes.

    Args:
        plain: Folder of the model, as `save_pretrained` writes it.
        stored: Folder of the result.
        record: Record of the base in a manifest.
        tokenizer: Tokenizer of the base; saved with the result.
        device: Device that quantizes.
    """
    quantized = AutoModelForCausalLM.from_pretrained(
        plain,
        dtype="auto",
        device_map={"": device},
        local_files_only=True,
        quantization_config=_bits_and_bytes(record),
    )
    quantized.save_pretrained(stored)
    tokenizer.save_pretrained(stored)
    del quantized
    gc.collect()


def quantized_names(folder: Path) -> frozenset[str]:
    """Names of the 4-bit layers of a stored form.

    Args:
        folder: Folder of the stored form.
    """
    mark = ".weight.quant_state.bitsandbytes__"
    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            found |= {name.partition(mark)[0] for name in tensors.keys() if mark in name}  # noqa: SIM118
    return frozenset(found)


@torch.no_grad()
def quantize_layers(
    model: Any, names: Iterable[str], record: Mapping[str, Any]
) -> dict[str, QuantizedLayer]:
    """Quantize single layers of an unquantized model, as `requantize` quantizes all of them.

    Args:
        model: The unquantized model.
        names: Full names of linear layers.
        record: Record of the base in a manifest, with a 4-bit quantization.
    """
    config = _bits_and_bytes(record)
    found: dict[str, QuantizedLayer] = {}
    for name in names:
        layer = model.get_submodule(name)
        weight = layer.weight.data
        if isinstance(layer, Conv1D):  # stored as (inputs, outputs)
            weight = weight.T
        quantized = Linear4bit(
            weight.shape[1],
            weight.shape[0],
            bias=False,
            compute_dtype=config.bnb_4bit_compute_dtype,
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
            quant_storage=config.bnb_4bit_quant_storage,
            device="meta",
        )
        parameter = Params4bit(weight, requires_grad=False, **quantized.weight.__dict__)
        quantized.weight = parameter.to(weight.device)
        found[name] = {part: tensor.cpu() for part, tensor in quantized.state_dict().items()}
    return found


@contextmanager
def exchanged(
    model: Any, layers: Mapping[str, QuantizedLayer], compute_dtype: torch.dtype
) -> Iterator[None]:
    """Put quantized layers into a quantized base; the base's own come back at the end.

    Args:
        model: A base in its 4-bit form.
        layers: New weights by the full name of their layer.
        compute_dtype: Type that the model computes in.
    """
    own: dict[str, tuple[Any, Any]] = {}
    try:
        for name, layer in layers.items():
            module = model.get_submodule(name)
            own[name] = module.weight, module.quant_state
            parts = dict(layer)
            module.weight = Params4bit.from_prequantized(
                data=parts.pop("weight"),
                quantized_stats=parts,
                requires_grad=False,
                device=module.weight.device,
                module=module,
            )
        settle_types(model, compute_dtype)
        yield
    finally:
        for name, (weight, state) in own.items():
            module = model.get_submodule(name)
            module.weight, module.quant_state = weight, state


def _bits_and_bytes(record: Mapping[str, Any]) -> BitsAndBytesConfig:
    config = {**record["quantization_config"], "bnb_4bit_compute_dtype": "float32"}
    config.pop("quant_method", None)
    return BitsAndBytesConfig(**config)
