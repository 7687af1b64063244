"""Adapters in general: which layers they sit on, how they start, and PEFT's names for them."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn
from transformers.pytorch_utils import Conv1D

from trainables.errors import SpecError
from trainables.spec import TARGET_GROUPS, LoraSpec

_ATTENTION = ("attn", "attention")
_MLP = ("mlp", "ffn", "feed_forward", "feedforward")

_LINEAR = (nn.Linear, Conv1D, Linear4bit, Linear8bitLt)

_PEFT_NAMES = {
    "a": "lora_A.weight",
    "b": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
}


def linear_layers(model: Any) -> dict[str, nn.Linear | Conv1D]:
    """Every linear layer that an adapter may sit on, by full name, in the model's order.

    The output head is left out, as in PEFT's `all-linear`, and so are layers that do more than
    multiply, such as the routers of Llama 4.
    """
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in _LINEAR and module is not head
    }


def resolve_targets(layers: Sequence[str], targets: str | Sequence[str]) -> tuple[str, ...]:
    """Full names of the layers that `targets` means, in the model's order.

    Args:
        layers: Full names of all linear layers.
        targets: `attention`, `mlp`, `all-linear`, or layer names matched as PEFT matches them: the
            full name or its end after a dot.

    Raises:
        SpecError: Nothing matches; the message lists what there is.
    """
    if isinstance(targets, str):
        return _resolve_group(layers, targets)
    for target in targets:
        if not any(_matches(name, target) for name in layers):
            known = leaf_names(layers)
            near = difflib.get_close_matches(target, [*known, *TARGET_GROUPS], n=1)
            remedy = f"Did you mean {near[0]}?" if near else "Correct the name."
            raise SpecError(
                f"lora.targets: got {target!r}, which is no linear layer of this base; allowed: "
                f"{', '.join(known)}, attention, mlp, all-linear. {remedy}"
            )
    return tuple(name for name in layers if any(_matches(name, target) for target in targets))


def short_targets(layers: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """The shortest sorted list of target names that PEFT would resolve to exactly `chosen`."""
    leaves = leaf_names(chosen)
    if resolve_targets(layers, leaves) == tuple(chosen):
        return leaves
    return sorted(chosen)


def leaf_names(names: Iterable[str]) -> list[str]:
    """Sorted last parts of dotted names, each once."""
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def initial_weights(
    lora: LoraSpec, layer: str, in_features: int, out_features: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A random start on one layer: `A` (rank, in) and `B` (out, rank), whose product is zero.

    A pure function of the seed and the layer's name, so it does not depend on which other layers
    are adapted. The distributions are PEFT's: kaiming uniform with a = sqrt(5), or normal with
    standard deviation 1 / rank, both with `B` zero; or `orthogonal`.
    """
    generator = torch.Generator().manual_seed(derive_seed("init", seed, layer))
    if lora.init == "orthogonal":
        return _orthogonal_weights(lora.rank, in_features, out_features, generator)
    a = torch.empty(lora.rank, in_features)
    if lora.init == "gaussian":
        nn.init.normal_(a, std=1 / lora.rank, generator=generator)
    else:
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
    return a, torch.zeros(out_features, lora.rank)


def _orthogonal_weights(
    rank: int, in_features: int, out_features: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random `A` and `B` in orthogonal halves of the inner space, so that `B A` is zero.

    As PEFT's `init_lora_weights="orthogonal"`: https://datta0.github.io/posts/rethink-lora-init/
    """
    q, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator))
    a = torch.randn(in_features, rank // 2, generator=generator).mm(q[0::2]).T / 10
    b = torch.randn(rank // 2, out_features, generator=generator).T.mm(q[1::2]) / 10
    return a.contiguous(), b.contiguous()


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that is a pure function of `parts`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def peft_tensors(weights: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Adapter weights under the names of a PEFT `adapter_model.safetensors`.

    Args:
        weights: By full layer name: `a` (rank, in_features), `b` (out_features, rank) and, with
            DoRA, `magnitude` (out_features,).
    """
    return {
        f"base_model.model.{layer}.{_PEFT_NAMES[leaf]}": tensor
        for layer, leaves in weights.items()
        for leaf, tensor in leaves.items()
    }


def _resolve_group(layers: Sequence[str], group: str) -> tuple[str, ...]:
    parts = {"attention": _ATTENTION, "mlp": _MLP, "all-linear": ()}[group]
    chosen = tuple(
        name for name in layers if not parts or any(part in _parent(name) for part in parts)
    )
    if not chosen:
        raise SpecError(
            f"lora.targets: got {group!r}, but this base has no such layers; allowed: a list from "
            f"{', '.join(leaf_names(layers)) or '(no linear layer at all)'}. Name them one by one."
        )
    return chosen


def _parent(name: str) -> str:
    return name.rpartition(".")[0].rpartition(".")[2].lower()


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)
