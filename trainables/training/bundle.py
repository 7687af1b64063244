"""Bundle of a trial: a folder with a PEFT adapter and its description, `manifest.json`.

The bundle is the contract between training and the registry:

    adapter_config.json        PEFT's file, canonical: sorted keys and targets, no local paths
    adapter_model.safetensors  float32, PEFT's names
    manifest.json              base, lora, optim, data, seed, steps, tokens, engine, metrics,
                               packages, files {name: {sha256, bytes}}, digest
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from trainables.base.loading import BaseRecord
from trainables.claims import show
from trainables.contract import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    ADAPTER_WEIGHTS,
    BUNDLE_FORMAT,
    MANIFEST,
    file_record,
    identity_digest,
    manifest_flaw,
)
from trainables.errors import BundleError, SpecError
from trainables.packing.lora import leaf_tensors
from trainables.spec import LoraSpec, OptimSpec, TrialSpec
from trainables.training.kinds import recorded_engine
from trainables.training.state import SeatState
from trainables.whole import new_folder

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")


def write_bundle(
    folder: Path,
    *,
    tensors: Mapping[str, torch.Tensor],
    spec: TrialSpec,
    base: BaseRecord,
    targets: Sequence[str],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a bundle; the folder appears whole or not at all, replacing an older one.

    Args:
        folder: Path of the bundle.
        tensors: Adapter weights under PEFT's names.
        spec: The trained spec.
        base: Record of the base.
        targets: Target names in PEFT's form.
        facts: `steps` and `tokens` trained, the `engine` that trained them, `metrics` last
            measured, and `data`: digests of the splits, template and tokenizer.

    Returns:
        The manifest.
    """
    manifest = {
        "format": BUNDLE_FORMAT,
        "base": base.to_dict(),
        "lora": {
            **dataclasses.asdict(spec.lora),
            "targets": sorted(targets),
            "scaling": spec.lora.scaling,
        },
        "optim": spec.optim.deciding(),
        "seed": spec.seed,
        **facts,
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    config = adapter_config(spec.lora, base, targets)
    return write_files(folder, config=config, tensors=tensors, manifest=manifest)


def write_files(
    folder: Path,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a bundle's three files; the folder appears whole or not at all.

    Args:
        folder: Path of the bundle; an older one is replaced.
        config: Content of PEFT's `adapter_config.json`.
        tensors: Adapter weights under PEFT's names.
        manifest: Description of the adapter; `files` and `digest` are added here.

    Returns:
        The complete manifest.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with new_folder(folder) as writing:
        (writing / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        save_file(plain, writing / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        files = {name: file_record(writing / name) for name in ADAPTER_FILES}
        whole: dict[str, Any] = {**manifest, "files": files}
        whole["digest"] = identity_digest(whole)
        (writing / MANIFEST).write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n")
    return whole


def read_manifest(folder: Path) -> dict[str, Any]:
    """Manifest of a bundle, after checking its files.

    Raises:
        BundleError: The manifest or a file is missing, of another format, or changed.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{folder}: no readable {MANIFEST} ({error}); export it again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != BUNDLE_FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise BundleError(
            f"{folder}/{MANIFEST}: format is {show(found)}; allowed: {BUNDLE_FORMAT!r}. Export "
            "the adapter again with this version."
        )
    flaw = manifest_flaw(manifest)
    if flaw:
        raise BundleError(
            f"{folder}/{MANIFEST}: {flaw}; allowed: a manifest that training wrote. Export the "
            "adapter again."
        )
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file() or file_record(path) != expected:
            raise BundleError(f"{path}: differs from its manifest; export the adapter again")
    if identity_digest(manifest) != manifest.get("digest"):
        raise BundleError(f"{folder}/{MANIFEST}: changed since it was written; export it again")
    return manifest


def load_bundle(folder: Path, spec: TrialSpec) -> tuple[SeatState, dict[str, float]]:
    """A trial's adapter and last metrics from its bundle, for an evaluation.

    The weights are those of the exported state, bit for bit. The optimizer's moments are not in a
    bundle, so the trial cannot be trained further from it.

    Raises:
        BundleError: The bundle is damaged, or of another trial.
    """
    manifest = read_manifest(folder)
    if (manifest["seed"], _settings(manifest["optim"])) != (spec.seed, spec.optim.deciding()):
        raise BundleError(f"{folder}: the adapter is of another trial; export it again")
    data = manifest["data"]
    state = SeatState(
        spec=spec,
        step=manifest["steps"],
        tokens=manifest["tokens"],
        tensors=leaf_tensors(load_file(folder / ADAPTER_WEIGHTS)),
        inputs={
            "base": manifest["base"]["digest"],
            "training rows": data["train"],
            "validation rows": data["validation"],
            "chat template": data["template_digest"],
            "tokenizer": data["tokenizer_digest"],
        },
        trained_by=recorded_engine(manifest.get("engine")),
    )
    return state, dict(manifest["metrics"])


def adapter_config(lora: LoraSpec, base: BaseRecord, targets: Sequence[str]) -> dict[str, Any]:
    """PEFT's `adapter_config.json` as plain values; equal adapters give equal values."""
    config = LoraConfig(
        r=lora.rank,
        # PEFT writes whole numbers as integers.
        lora_alpha=int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(targets),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        # PEFT refuses `orthogonal` on a 4-bit base, even where trained weights are loaded next.
        init_lora_weights="gaussian" if lora.init == "gaussian" else True,
        task_type="CAUSAL_LM",
        inference_mode=True,
        # A local path means nothing on another machine; a hub id means the same everywhere.
        base_model_name_or_path=base.model if base.source == "hub" else None,
        revision=base.revision,
    )
    values: dict[str, Any] = config.to_dict()
    values["target_modules"] = sorted(targets)
    plain: dict[str, Any] = json.loads(json.dumps(values, default=_plain))
    return plain


def _plain(value: object) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"adapter_config: {value!r} is no JSON value")


def _settings(optim: Mapping[str, Any]) -> dict[str, Any] | None:
    """Deciding settings of a manifest; those that its version did not know have their defaults."""
    try:
        return OptimSpec(**optim).deciding()
    except (TypeError, SpecError):  # of a version that knows more
        return None
