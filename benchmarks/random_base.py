"""Bases of real shapes with random weights, made on their device without any download."""

from __future__ import annotations

import importlib.metadata
import platform
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainables.base.layers import linear_layers
from trainables.base.loading import BaseRecord, LoadedBase, default_device, pick_compute_dtype
from trainables.spec import BaseSpec, DataSpec

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2048},
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
"""Llama's shapes: of a test, of SmolLM2-135M, of Llama-3.2-1B and of Llama-3-8B."""

LONGEST = 8192


def build_base(shape: str, quantization: str, compute_dtype: str = "auto") -> LoadedBase:
    """A random base in a stored form on the first GPU, or on the CPU without one."""
    device = default_device()
    dtype = pick_compute_dtype(compute_dtype, device)
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape], max_position_embeddings=LONGEST, tie_word_embeddings=True
    )
    with _created_as(dtype), device:
        model: Any = LlamaForCausalLM(config)
    model.requires_grad_(False).eval()
    parameters = sum(each.numel() for each in model.parameters())
    if quantization in ("nf4", "fp4"):
        for name, linear in linear_layers(model).items():
            model.set_submodule(name, _quantized(linear, quantization, dtype, device))
    elif quantization != "none":
        raise SystemExit(f"--forms: got {quantization}; allowed: nf4, fp4, none")
    return LoadedBase(
        model=model,
        tokenizer=_build_tokenizer(),
        record=BaseRecord(
            model=f"random-{shape}",
            revision=None,
            source="folder",
            digest="sha256:" + "0" * 64,
            quantization=quantization,
            double_quant=True,
            quantization_config=None,
            compute_dtype=str(dtype).removeprefix("torch."),
            parameters=parameters,
        ),
        device=device,
        compute_dtype=dtype,
    )


def base_spec(base: LoadedBase) -> BaseSpec:
    """The base as a trial names it; nothing is loaded from the name."""
    return BaseSpec(
        model=base.record.model,
        quantization=base.record.quantization,  # type: ignore[arg-type]
        compute_dtype=base.record.compute_dtype,  # type: ignore[arg-type]
    )


def rows_of(tokens: int, count: int, seed: int = 0) -> DataSpec:
    """Rows of exactly so many tokens each, half of them learned."""
    dice = random.Random(seed)

    def text(length: int) -> str:
        return "".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=length))

    learned = max(1, tokens // 2)
    rows = [
        {"prompt": text(tokens - learned - 1), "completion": text(learned)} for _ in range(count)
    ]
    return DataSpec(train=rows, validation=rows[:2], max_tokens=tokens)


def machine() -> str:
    """Device, processor and versions in one line."""
    names = ("torch", "transformers", "peft", "bitsandbytes")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    device = default_device()
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}; {versions}"
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = next((line for line in cpu.splitlines() if line.startswith("model name")), "")
    name = model.partition(":")[2].strip() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads; {versions}"


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _created_as(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _quantized(linear: Any, kind: str, dtype: torch.dtype, device: torch.device) -> Any:
    layer = bitsandbytes.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, quant_type=kind,
        device="meta",
    )  # fmt: skip
    layer.weight = bitsandbytes.nn.Params4bit(
        linear.weight.data, requires_grad=False, quant_type=kind, compress_statistics=True
    ).to(device)
    layer.support_avx512bf16_for_cpu = False
    return layer


def _build_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(["<pad>", "<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>"
    )
