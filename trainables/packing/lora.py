"""Adapter weights: initial values and PEFT's tensor names."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import nn

from trainables.spec import LoraSpec

_PREFIX = "base_model.model."
_PEFT_NAMES = {
    "a": "lora_A.weight",
    "b": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
}


def initial_weights(
    lora: LoraSpec, layer: str, in_features: int, out_features: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random initial `A` (rank, in) and `B` (out, rank) of one layer, with a product of zero.

    The weights are a pure function of the seed and the layer's name, so other adapted layers do
    not change them. The distributions are PEFT's: kaiming uniform with a = sqrt(5), or normal with
    standard deviation 1 / rank, both with `B` zero; or `orthogonal`.
    """
    generator = torch.Generator().manual_seed(derive_seed("init", seed, layer))
    if lora.init == "orthogonal":
        # A and B in orthogonal halves of the inner space, so that B A is zero, as in PEFT:
        # https://datta0.github.io/posts/rethink-lora-init/
        half = lora.rank // 2
        q, _ = torch.linalg.qr(torch.randn(lora.rank, lora.rank, generator=generator))
        a = torch.randn(in_features, half, generator=generator).mm(q[0::2]).T / 10
        b = torch.randn(half, out_features, generator=generator).T.mm(q[1::2]) / 10
        return a.contiguous(), b.contiguous()
    a = torch.empty(lora.rank, in_features)
    if lora.init == "gaussian":
        nn.init.normal_(a, std=1 / lora.rank, generator=generator)
    else:
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
    return a, torch.zeros(out_features, lora.rank)


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that is a pure function of `parts`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def peft_tensors(weights: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Adapter weights under the names of a PEFT `adapter_model.safetensors`.

    Args:
        weights: Tensors by full layer name: `a` (rank, in_features), `b` (out_features, rank) and,
            with DoRA, `magnitude` (out_features,).
    """
    return {
        f"{_PREFIX}{layer}.{_PEFT_NAMES[leaf]}": tensor
        for layer, leaves in weights.items()
        for leaf, tensor in leaves.items()
    }


def leaf_tensors(adapter: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by `<layer>/<leaf>` from those under PEFT's names; the inverse of `peft_tensors`."""
    leaves = {f".{name}": leaf for leaf, name in _PEFT_NAMES.items()}
    return {
        f"{name.removeprefix(_PREFIX).removesuffix(ending)}/{leaf}": tensor
        for name, tensor in adapter.items()
        for ending, leaf in leaves.items()
        if name.endswith(ending)
    }
