"""A tiny Llama in one .gguf file, quantized to Q4_1 like those that Python packages ship."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from tokenizers import pre_tokenizers

_SPECIALS = ("<pad>", "<|end|>", "<|user|>", "<|assistant|>")
_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_HIDDEN, _LAYERS, _HEADS, _GROUPS, _INNER = 64, 2, 4, 2, 128


def save_gguf_base(path: Path) -> Path:
    """Write the file and give its path."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(_HIDDEN)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_GROUPS)
    writer.add_rope_dimension_count(_HIDDEN // _HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    _add_tokenizer(writer)
    random = np.random.default_rng(0)
    for name, shape in _shapes().items():
        values = random.normal(0, 0.15, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, 1 + values)
            continue
        kind = gguf.GGMLQuantizationType.Q4_1
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokens = [*_SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in _SPECIALS else normal for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(1)
    writer.add_chat_template(_TEMPLATE)


def _shapes() -> dict[str, tuple[int, ...]]:
    vocabulary = len(_SPECIALS) + 257
    keys = _HIDDEN // _HEADS * _GROUPS
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, _HIDDEN),
        "output_norm.weight": (_HIDDEN,),
    }
    for layer in range(_LAYERS):
        parts = {
            "attn_norm": (_HIDDEN,),
            "attn_q": (_HIDDEN, _HIDDEN),
            "attn_k": (keys, _HIDDEN),
            "attn_v": (keys, _HIDDEN),
            "attn_output": (_HIDDEN, _HIDDEN),
            "ffn_norm": (_HIDDEN,),
            "ffn_gate": (_INNER, _HIDDEN),
            "ffn_up": (_INNER, _HIDDEN),
            "ffn_down": (_HIDDEN, _INNER),
        }
        shapes |= {f"blk.{layer}.{part}.weight": shape for part, shape in parts.items()}
    return shapes
