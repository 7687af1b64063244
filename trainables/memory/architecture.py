"""Shape of a base: its layers and their sizes, from the values of a `config.json`.

The formulas of this room hold for the kinds of models in `FAMILIES`. A model of another kind has
no `Architecture`: its memory is unknown, and nothing is guessed from a similar name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from trainables.errors import BaseModelError

Norm = Literal["rms", "rms_plus_one", "layer"]


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One linear layer of a decoder layer.

    Attributes:
        name: Name within the decoder layer, such as `self_attn.q_proj`.
        wide: Input features.
        high: Output features.
        has_bias: Whether a bias is added.
    """

    name: str
    wide: int
    high: int
    has_bias: bool = False

    @property
    def weights(self) -> int:
        """Number of weights without the bias."""
        return self.wide * self.high


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Routed experts of a mixture-of-experts layer (arXiv:2401.04088, section 2.1).

    Attributes:
        count: Experts of a layer.
        chosen: Experts that compute each token.
        intermediate: Inner width of an expert.
        layers: Numbers of the decoder layers with experts.
        is_renormed: Whether the weights of the chosen experts are divided by their sum.
    """

    count: int
    chosen: int
    intermediate: int
    layers: frozenset[int]
    is_renormed: bool


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a decoder-only transformer.

    Attributes:
        model_type: Its kind in transformers.
        hidden: Width of the residual stream.
        layers: Decoder layers.
        heads: Query heads.
        kv_heads: Heads of keys and values.
        head_size: Features of a head.
        intermediate: Inner width of a feed-forward layer.
        vocabulary: Rows of the embeddings.
        is_tied: Whether the head shares the embeddings.
        qkv_bias: Whether query, key and value projections have a bias.
        output_bias: Whether the output projection of attention has one.
        mlp_bias: Whether feed-forward layers have one.
        is_gated: Whether the feed-forward layer multiplies two projections (arXiv:2002.05202).
        norm: Kind of the norms.
        norms: Norms of a decoder layer on the residual stream or its additions.
        has_qk_norm: Whether queries and keys are normed by head.
        windows: Attention window in tokens, by layer; `None` for full attention.
        has_score_cap: Whether attention scores are bounded (arXiv:2408.00118, section 2).
        has_logit_cap: Whether logits are bounded.
        ropes: Kinds of rotary angles; 0 with learned positions.
        positions: Learned positions; 0 without.
        act_tensors: Tensors of the inner width that the activation keeps for the backward.
        experts: Routed experts; `None` for a dense model.
    """

    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    is_tied: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    is_gated: bool = True
    norm: Norm = "rms"
    norms: int = 2
    has_qk_norm: bool = False
    windows: tuple[int | None, ...] = field(default=(), repr=False)
    has_score_cap: bool = False
    has_logit_cap: bool = False
    ropes: int = 1
    positions: int = 0
    act_tensors: int = 1
    experts: Experts | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """The architecture that a `config.json` describes.

        Args:
            config: Values of the file.

        Raises:
            BaseModelError: The kind of model is not known here, or a size is missing.
        """
        kind = config.get("model_type")
        family = FAMILIES.get(str(kind))
        if family is None:
            raise BaseModelError(
                f"config.json: got model_type {kind!r}, whose memory is not known before it is "
                f"loaded; allowed: {', '.join(sorted(FAMILIES))}. Choose one of these kinds, or "
                "start the sweep without a forecast."
            )
        try:
            return family(_Values(str(kind), config))
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise BaseModelError(
                f"config.json: {error} is missing or no size; allowed: the config.json that "
                "save_pretrained writes. Download or save the base again."
            ) from error

    @property
    def query_width(self) -> int:
        """Features of all query heads."""
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        """Features of all key heads, and of all value heads."""
        return self.kv_heads * self.head_size

    def has_experts(self, layer: int) -> bool:
        """Whether the feed-forward part of a decoder layer is routed experts."""
        return self.experts is not None and layer in self.experts.layers

    def window(self, layer: int) -> int | None:
        """Attention window of a decoder layer in tokens; `None` for full attention."""
        return self.windows[layer] if self.windows else None

    def linears(self, layer: int) -> tuple[Linear, ...]:
        """Linear layers of one decoder layer that can carry an adapter, in the model's order."""
        if self.model_type == "gpt2":
            return _gpt2_linears(self)
        attention = (
            ("q_proj", self.hidden, self.query_width, self.qkv_bias),
            ("k_proj", self.hidden, self.kv_width, self.qkv_bias),
            ("v_proj", self.hidden, self.kv_width, self.qkv_bias),
            ("o_proj", self.query_width, self.hidden, self.output_bias),
        )
        mlp = (
            ("gate_proj", self.hidden, self.intermediate),
            ("up_proj", self.hidden, self.intermediate),
            ("down_proj", self.intermediate, self.hidden),
        )
        found = [
            Linear(name=f"self_attn.{name}", wide=wide, high=high, has_bias=has_bias)
            for name, wide, high, has_bias in attention
        ]
        if not self.has_experts(layer):
            found += [
                Linear(name=f"mlp.{name}", wide=wide, high=high, has_bias=self.mlp_bias)
                for name, wide, high in mlp
            ]
        return tuple(found)

    def named_linears(self) -> dict[str, Linear]:
        """Every linear layer that can carry an adapter, by full name, in the model's order."""
        prefix = "transformer.h" if self.model_type == "gpt2" else "model.layers"
        return {
            f"{prefix}.{layer}.{one.name}": one
            for layer in range(self.layers)
            for one in self.linears(layer)
        }

    def weights(self) -> int:
        """Number of weights of the whole model; a tied head counts once."""
        heads = 1 if self.is_tied else 2
        linears = sum(
            one.weights + (one.high if one.has_bias else 0)
            for one in self.named_linears().values()
        )
        return (
            heads * self.vocabulary * self.hidden
            + self.positions * self.hidden
            + linears
            + self.expert_weights()
            + self.norm_weights()
        )

    def expert_weights(self) -> int:
        """Weights of all routed experts and their routers."""
        if self.experts is None:
            return 0
        one = 3 * self.experts.intermediate * self.hidden
        router = self.experts.count * self.hidden
        return len(self.experts.layers) * (self.experts.count * one + router)

    def norm_weights(self) -> int:
        """Weights of all norms."""
        parts = 2 if self.norm == "layer" else 1
        by_head = 2 * self.head_size if self.has_qk_norm else 0
        return self.layers * (self.norms * self.hidden * parts + by_head) + self.hidden * parts


class _Values:
    """Values of a config with the defaults of their kind of model."""

    def __init__(self, kind: str, config: Mapping[str, Any]) -> None:
        self.kind, self._config = kind, config

    def size(self, *names: str, default: int | None = None) -> int:
        """A positive whole number under the first of the names that the config has.

        Raises:
            KeyError: The config has none of the names, and there is no default.
            ValueError: The value is no size.
        """
        for name in names:
            value = self._config.get(name)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise ValueError(f"{name} = {value!r}")
                return value
        if default is None:
            raise KeyError(names[0])
        return default

    def flag(self, name: str, *, default: bool) -> bool:
        """A truth value."""
        value = self._config.get(name)
        return default if value is None else bool(value)

    def get(self, name: str, default: Any = None) -> Any:
        """The value as it is written; the default if the config does not have the name."""
        return self._config.get(name, default)


def _like_llama(values: _Values, **changes: Any) -> Architecture:
    """Sizes that all relatives of Llama have under the same names."""
    hidden, heads = values.size("hidden_size"), values.size("num_attention_heads")
    has_bias = values.flag("attention_bias", default=False)
    common = {
        "model_type": values.kind,
        "hidden": hidden,
        "layers": values.size("num_hidden_layers"),
        "heads": heads,
        "kv_heads": values.size("num_key_value_heads", default=heads),
        "head_size": values.size("head_dim", default=hidden // heads),
        "intermediate": values.size("intermediate_size"),
        "vocabulary": values.size("vocab_size"),
        "is_tied": values.flag("tie_word_embeddings", default=False),
        "qkv_bias": has_bias,
        "output_bias": has_bias,
    }
    return Architecture(**{**common, **changes})


def _llama(values: _Values) -> Architecture:
    return _like_llama(values, mlp_bias=values.flag("mlp_bias", default=False))


def _mistral(values: _Values) -> Architecture:
    layers = values.size("num_hidden_layers")
    # The default of transformers for a config without the key; null means full attention.
    window = values.get("sliding_window", 4096)
    return _like_llama(
        values,
        windows=(window,) * layers,
        qkv_bias=False,
        output_bias=False,
        kv_heads=values.size("num_key_value_heads", default=8),
    )


def _layer_windows(values: _Values, is_windowed: Mapping[int, bool]) -> tuple[int | None, ...]:
    """The window of each layer, from `layer_types` where the config has them."""
    kinds = values.get("layer_types")
    window = values.get("sliding_window", 4096)
    if isinstance(kinds, list):
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return tuple(window if windowed else None for _, windowed in sorted(is_windowed.items()))


def _qwen_windows(values: _Values) -> tuple[int | None, ...]:
    layers = values.size("num_hidden_layers")
    if not values.flag("use_sliding_window", default=False):
        return (None,) * layers
    first = values.get("max_window_layers", 28)
    return _layer_windows(values, {layer: layer >= first for layer in range(layers)})


def _qwen2(values: _Values) -> Architecture:
    return _like_llama(
        values, qkv_bias=True, output_bias=False, windows=_qwen_windows(values),
        kv_heads=values.size("num_key_value_heads", default=32),
        head_size=values.size("hidden_size") // values.size("num_attention_heads"),
    )  # fmt: skip


def _qwen3(values: _Values) -> Architecture:
    return _like_llama(
        values, has_qk_norm=True, windows=_qwen_windows(values),
        kv_heads=values.size("num_key_value_heads", default=32),
        head_size=values.size("head_dim", default=128),
    )  # fmt: skip


def _gemma(values: _Values, **changes: Any) -> Architecture:
    return _like_llama(
        values,
        **{
            "norm": "rms_plus_one",
            "is_tied": values.flag("tie_word_embeddings", default=True),
            "head_size": values.size("head_dim", default=256),
            "kv_heads": values.size("num_key_value_heads", default=16),
            **changes,
        },
    )


def _gemma2(values: _Values) -> Architecture:
    layers = values.size("num_hidden_layers")
    return _gemma(
        values,
        norms=4,
        kv_heads=values.size("num_key_value_heads", default=4),
        windows=_layer_windows(values, {n: n % 2 == 0 for n in range(layers)}),
        has_score_cap=values.get("attn_logit_softcapping", 50.0) is not None,
        has_logit_cap=values.get("final_logit_softcapping", 30.0) is not None,
    )


def _gemma3(values: _Values) -> Architecture:
    layers, every = values.size("num_hidden_layers"), values.get("sliding_window_pattern", 6)
    return _gemma(
        values,
        norms=4,
        has_qk_norm=True,
        ropes=2,
        heads=values.size("num_attention_heads", default=8),
        kv_heads=values.size("num_key_value_heads", default=4),
        vocabulary=values.size("vocab_size", default=262_208),
        windows=_layer_windows(values, {n: (n + 1) % every != 0 for n in range(layers)}),
        has_score_cap=values.get("attn_logit_softcapping") is not None,
        has_logit_cap=values.get("final_logit_softcapping") is not None,
    )


def _mixtral(values: _Values) -> Architecture:
    layers = values.size("num_hidden_layers")
    window = values.get("sliding_window")
    experts = Experts(
        count=values.size("num_local_experts", "num_experts", default=8),
        chosen=values.size("num_experts_per_tok", default=2),
        intermediate=values.size("intermediate_size"),
        layers=frozenset(range(layers)),
        is_renormed=True,
    )
    return _like_llama(
        values,
        experts=experts,
        windows=(window,) * layers,
        qkv_bias=False,
        output_bias=False,
        kv_heads=values.size("num_key_value_heads", default=8),
    )


def _qwen3_moe(values: _Values) -> Architecture:
    layers = values.size("num_hidden_layers")
    step, dense = (
        values.size("decoder_sparse_step", default=1),
        values.get("mlp_only_layers") or (),
    )
    experts = Experts(
        count=values.size("num_experts", "num_local_experts", default=128),
        chosen=values.size("num_experts_per_tok", default=8),
        intermediate=values.size("moe_intermediate_size", default=768),
        layers=frozenset(n for n in range(layers) if n not in dense and (n + 1) % step == 0),
        is_renormed=values.flag("norm_topk_prob", default=False),
    )
    is_windowed = values.flag("use_sliding_window", default=False)
    window = values.get("sliding_window", 4096) if is_windowed else None
    shape = _like_llama(
        values, has_qk_norm=True, kv_heads=values.size("num_key_value_heads", default=4)
    )
    return replace(shape, experts=experts, windows=(window,) * layers)


def _gpt2(values: _Values) -> Architecture:
    hidden, heads = values.size("n_embd", "hidden_size"), values.size("n_head")
    return Architecture(
        model_type=values.kind,
        hidden=hidden,
        layers=values.size("n_layer"),
        heads=heads,
        kv_heads=heads,
        head_size=hidden // heads,
        intermediate=values.size("n_inner", default=4 * hidden),
        vocabulary=values.size("vocab_size"),
        is_tied=values.flag("tie_word_embeddings", default=True),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        is_gated=False,
        norm="layer",
        ropes=0,
        positions=values.size("n_positions", default=1024),
        act_tensors=4,  # `gelu_new` is written out as four operations
    )


def _gpt2_linears(shape: Architecture) -> tuple[Linear, ...]:
    hidden, inner = shape.hidden, shape.intermediate
    sizes = (
        ("attn.c_attn", hidden, 3 * hidden),
        ("attn.c_proj", hidden, hidden),
        ("mlp.c_fc", hidden, inner),
        ("mlp.c_proj", inner, hidden),
    )
    return tuple(Linear(name=name, wide=w, high=h, has_bias=True) for name, w, h in sizes)


FAMILIES = {
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
}
"""Reader of a config, by kind of model."""
