"""Lower the rank of a trained adapter: truncated SVD of each layer's update, `scaling * B A`.

By the Eckart-Young theorem the truncation is the closest update of the lower rank in the spectral
and in the Frobenius norm (C. Eckart and G. Young, "The approximation of one matrix by another of
lower rank", Psychometrika 1, 1936); the error is the tail of the singular values. The update, as
large as a layer, is never built: with the QR decompositions `B = Q R` and `A^T = P T` its singular
values are those of the small core `R T^T` (recompression of low-rank matrices: M. Bebendorf,
"Hierarchical Matrices", Springer 2008, chapter 1).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from trainables.contract import ADAPTER_FILES
from trainables.errors import BundleError, SpecError
from trainables.training.bundle import read_manifest, write_files

_A, _B = ".lora_A.weight", ".lora_B.weight"


class _Factors(NamedTuple):
    """Singular value decomposition of `B A` in float64; singular values descend.

    Attributes:
        left: (out_features, rank), orthonormal columns.
        values: (rank,), zero beyond the smaller dimension of the layer.
        right: (rank, in_features), orthonormal rows.
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor


def shrink_bundle(
    bundle: Path, rank: int, folder: Path, *, metrics: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Write a bundle with the best adapter of a lower rank.

    `alpha`, targets and the scaling rule stay; the change of the scaling with the rank is folded
    into the weights, evenly into A and B. The singular values are split evenly, too, so A and B
    have equal norms. With DoRA the magnitudes stay: every row of the adapted weight keeps its
    trained norm, and the truncation changes only its direction.

    Args:
        bundle: An exported adapter.
        rank: From 1 to the adapter's rank; the adapter's own rank keeps the update.
        folder: Folder of the new bundle, written whole or not at all; an older one is replaced.
        metrics: Measurements of the new adapter; the old adapter's no longer hold.

    Returns:
        The new manifest; `derived` names the source adapter.

    Raises:
        SpecError: The rank is outside the range, or the folder is the bundle's own.
        BundleError: The bundle is missing or changed, or its layers differ in rank.
    """
    manifest = read_manifest(bundle)
    own = manifest["lora"]["rank"]
    if not 1 <= rank <= own:
        raise SpecError(
            f"rank: got {rank}; allowed: 1 to {own}, the rank of the adapter. Choose a rank in "
            "that range."
        )
    if folder.resolve() == bundle.resolve():
        raise SpecError(
            f"folder: got {str(folder)!r}, the bundle itself; allowed: another folder. Keep the "
            "trained adapter and write the smaller one beside it."
        )
    tensors = _load_tensors(bundle)
    lora = {**manifest["lora"], "rank": rank}
    lora["scaling"] = lora["alpha"] / (math.sqrt(rank) if lora["rslora"] else rank)
    fold = manifest["lora"]["scaling"] / lora["scaling"]
    for layer, factors in _decompose(tensors, manifest):
        root = (factors.values[:rank] * fold).sqrt()
        tensors[layer + _A] = (root[:, None] * factors.right[:rank]).float()
        tensors[layer + _B] = (factors.left[:, :rank] * root).float()
    config = json.loads((bundle / ADAPTER_FILES[0]).read_text())
    derived = {"from": manifest["digest"], "method": "svd", "rank": rank}
    new = {**manifest, "lora": lora, "derived": derived, "metrics": dict(metrics or {})}
    return write_files(folder, config={**config, "r": rank}, tensors=tensors, manifest=new)


def energy(bundle: Path) -> dict[int, float]:
    """Share of the update's energy within each rank: squared singular values over all layers.

    Returns:
        Share in [0, 1] by rank, from 1 to the adapter's rank; 1 for an update of zero.

    Raises:
        BundleError: The bundle is missing or changed, or its layers differ in rank.
    """
    manifest = read_manifest(bundle)
    squares = torch.zeros(manifest["lora"]["rank"], dtype=torch.float64)
    for _, factors in _decompose(_load_tensors(bundle), manifest):
        squares += factors.values**2
    total = float(squares.sum())
    shares = (squares.cumsum(0) / total).tolist() if total else [1.0] * len(squares)
    return {rank: min(1.0, share) for rank, share in enumerate(shares, 1)}


def choose_smallest(
    reference: float,
    candidates: Mapping[int, float],
    mode: Literal["min", "max"],
    tolerance: float,
) -> int | None:
    """The smallest rank whose measure is within a tolerance of the whole adapter's.

    Args:
        reference: Measure of the whole adapter.
        candidates: Measure by rank; a rank with a non-finite value is never chosen.
        mode: `min` where less is better, `max` where more is better.
        tolerance: In units of the measure, at least 0.

    Returns:
        The rank; `None` when every candidate is worse.

    Raises:
        SpecError: The reference is not finite, or the tolerance is negative.
    """
    if not math.isfinite(reference):
        raise SpecError(
            f"reference: got {reference}; allowed: a finite value. Evaluate the whole adapter on "
            "the same rows first."
        )
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise SpecError(
            f"tolerance: got {tolerance}; allowed: a finite number >= 0. Use 0 to accept no loss."
        )
    sign = 1.0 if mode == "min" else -1.0
    good = [
        rank
        for rank, value in candidates.items()
        if math.isfinite(value) and sign * (value - reference) <= tolerance
    ]
    return min(good, default=None)


def _load_tensors(bundle: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(bundle / ADAPTER_FILES[1])
    return tensors


def _decompose(
    tensors: Mapping[str, torch.Tensor], manifest: Mapping[str, Any]
) -> Iterator[tuple[str, _Factors]]:
    """Decomposed update of each layer, without its scaling.

    Raises:
        BundleError: A layer's rank differs from the manifest, or a weight is not finite.
    """
    own = manifest["lora"]["rank"]
    for name in [name for name in tensors if name.endswith(_A)]:
        layer = name.removesuffix(_A)
        a, b = tensors[name].double(), tensors[layer + _B].double()
        if a.shape[0] != own or b.shape[1] != own:
            raise BundleError(
                f"{layer}: has rank {a.shape[0]}; allowed: {own}, as the manifest says of every "
                "layer. Export the adapter again."
            )
        if not (a.isfinite().all() and b.isfinite().all()):
            raise BundleError(
                f"{layer}: holds weights that are not finite; allowed: finite weights. The "
                "adapter diverged: choose another one."
            )
        yield layer, _factorize(a, b)


def _factorize(a: torch.Tensor, b: torch.Tensor) -> _Factors:
    """Decompose `b @ a` through the small core between two orthonormal bases.

    Args:
        a: (rank, in_features).
        b: (out_features, rank).
    """
    q_left, r_left = torch.linalg.qr(b)
    q_right, r_right = torch.linalg.qr(a.mT)
    left, values, right = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
    missing = len(a) - len(values)  # a layer with fewer inputs or outputs than the rank
    return _Factors(
        F.pad(q_left @ left, (0, missing)),
        F.pad(values, (0, missing)),
        F.pad(right @ q_right.mT, (0, 0, 0, missing)),
    )
