"""Tiny random bases of many architectures, stored as people store theirs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

VOCABULARY = 261

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,  # with the usual 0.02 all logits are alike
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}

_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": 1,
}

_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A kind of model of transformers.

    Attributes:
        model_type: Its name in transformers.
        config: Settings of its config.
        has_outliers: A few activations are far larger than the others, as in trained models
            (arXiv:2208.07339, section 3).
    """

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    has_outliers: bool = False


def _like_llama(model_type: str, **config: Any) -> Architecture:
    return Architecture(model_type=model_type, config={**_COMMON, **config})


def longrope(switch: int) -> Architecture:
    """Phi-3 whose rotary frequencies change beyond `switch` tokens."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": switch,
        "partial_rotary_factor": 1.0,
    }
    return _like_llama("phi3", original_max_position_embeddings=switch, rope_parameters=rope)


def dynamic_rope(positions: int) -> Architecture:
    """Llama whose rotary frequencies grow with sequences longer than `positions` tokens."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return _like_llama("llama", max_position_embeddings=positions, rope_parameters=rope)


DENSE = {
    "llama": _like_llama("llama", tie_word_embeddings=True),
    "llama, outliers": Architecture(model_type="llama", config=_COMMON, has_outliers=True),
    "llama, biases, untied head": _like_llama(
        "llama", tie_word_embeddings=False, attention_bias=True, mlp_bias=True
    ),
    "llama 3 rope": _like_llama(
        "llama",
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "dynamic rope": dynamic_rope(64),
    "qwen2, window in one layer": _like_llama(
        "qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "qwen3, q/k norm": _like_llama("qwen3", head_dim=16),
    "mistral, window": _like_llama("mistral", sliding_window=6),
    "gemma": _like_llama("gemma", head_dim=16),
    "gemma 2, bounded logits": _like_llama("gemma2", head_dim=16, sliding_window=6),
    "gemma 3, windows, q/k norm": _like_llama(
        "gemma3_text", head_dim=16, sliding_window=6, sliding_window_pattern=2
    ),
    "phi, LayerNorm": _like_llama("phi"),
    "phi 3, longrope": longrope(10),
    "gpt2, Conv1D": Architecture(
        model_type="gpt2", config={**_GPT2, "attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0}
    ),
    "gpt_neox": _like_llama("gpt_neox", tie_word_embeddings=False),
    "opt": Architecture(
        model_type="opt",
        config={
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "word_embed_proj_dim": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "dropout": 0.0,
            "init_std": 0.15,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 1,
        },
    ),
    "starcoder2": _like_llama("starcoder2", use_bias=True, sliding_window=6),
    "stablelm": _like_llama("stablelm"),
    "cohere": _like_llama("cohere"),
    "cohere 2, window": _like_llama("cohere2", sliding_window=6),
    "olmo 2": _like_llama("olmo2"),
    "olmo 3, window": _like_llama("olmo3", sliding_window=6),
    "granite": _like_llama("granite"),
    "smollm 3, layers without rope": _like_llama("smollm3"),
    "glm 4": _like_llama("glm4", head_dim=16),
    "nemotron": _like_llama("nemotron"),
    "exaone 4": _like_llama("exaone4", sliding_window=6, sliding_window_pattern=2),
}
"""Architectures that are trained as plain PEFT trains them, bit for bit."""

EXPERTS = {
    "mixtral": _like_llama("mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen 2 moe, windows": _like_llama(
        "qwen2_moe",
        num_experts=4,
        shared_expert_intermediate_size=64,
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=0,
        **_MOE,
    ),
    "qwen 3 moe": _like_llama("qwen3_moe", num_experts=4, head_dim=16, **_MOE),
    "deepseek 3": _like_llama(
        "deepseek_v3",
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=16,
        num_key_value_heads=4,
        first_k_dense_replace=1,
        **_MOE,
    ),
}
"""Architectures whose routed experts multiply the rows of all seats at once."""

REFUSED = {
    "bloom": (
        Architecture(
            model_type="bloom",
            config={"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        ),
        "its attention cannot be exchanged",
    ),
    "falcon": (
        Architecture(
            model_type="falcon",
            config={
                "vocab_size": VOCABULARY,
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "eos_token_id": 1,
                "bos_token_id": None,
            },
        ),
        "its attention cannot be exchanged",
    ),
    "gptj": (
        Architecture(model_type="gptj", config={**_GPT2, "rotary_dim": 16}),
        "its attention cannot be exchanged",
    ),
    "mamba": (
        Architecture(
            model_type="mamba",
            config={"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2},
        ),
        "cannot be trained here",
    ),
    "bert, encoder": (
        Architecture(
            model_type="bert",
            config={
                "vocab_size": VOCABULARY,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
            },
        ),
        "see the tokens behind them",
    ),
    "gemma 3, both directions": (
        _like_llama("gemma3_text", head_dim=16, use_bidirectional_attention=True),
        "see the tokens behind them",
    ),
    "lfm2, convolutions": (_like_llama("lfm2", full_attn_idxs=[1]), "see each other in a pack"),
    "gpt-oss, sinks": (
        _like_llama(
            "gpt_oss",
            head_dim=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=6,
        ),
        "see each other in a pack",
    ),
    "llama 4, temperature by position": (
        _like_llama(
            "llama4_text",
            intermediate_size_mlp=128,
            num_local_experts=2,
            num_experts_per_tok=1,
            attention_chunk_size=6,
            head_dim=16,
            no_rope_layer_interval=2,
        ),
        "counts positions over the whole pack",
    ),
}
"""Architectures that are refused, and a part of the reason."""


def save_base(folder: Path, architecture: Architecture, stored: str, tokenizer: Any) -> Path:
    """Write a random model of an architecture and its tokenizer, as `save_pretrained` does.

    Args:
        folder: Where to.
        architecture: Which kind.
        stored: Type of the numbers in the file, such as `bfloat16`.
        tokenizer: Of at most 261 tokens.
    """
    _random_model(architecture).to(getattr(torch, stored)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_quantized(source: Path, folder: Path, tokenizer: Any, **config: Any) -> Path:
    """Write a base as a bitsandbytes checkpoint, as people publish them.

    Args:
        source: The base, unquantized.
        folder: Where to.
        tokenizer: Of the base.
        config: Settings of `BitsAndBytesConfig`.
    """
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=BitsAndBytesConfig(**config), device_map={"": "cpu"}
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _random_model(architecture: Architecture) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture.model_type, **architecture.config)
    model = AutoModelForCausalLM.from_config(config)
    # transformers starts biases at zero and norms at one, where mistakes do not show.
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
        elif "norm" in name or "ln_" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
            if architecture.has_outliers:
                parameter.data[::16] *= 20
    return model
