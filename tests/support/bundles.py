"""Bundles of meaningless weights, and evaluation documents from the losses of rows."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from trainables.contract import ADAPTER_FILES, identity_digest


def write_bundle(
    folder: Path, seed: int, metrics: Mapping[str, float] | None = None, **records: Any
) -> Path:
    """Write a bundle that can be registered; its identity follows from the seed."""
    if metrics is not None:
        records["metrics"] = dict(metrics)
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    weights = np.full((4, 4), seed, dtype=np.float32)
    save_file({"w": weights}, folder / "adapter_model.safetensors")
    write_manifest(folder, seed=seed, **records)
    return folder


def write_manifest(folder: Path, **records: Any) -> dict[str, Any]:
    """Write the manifest of the adapter files in a folder, as training does."""
    manifest = {
        "format": "lorchestra.bundle/1",
        "base": {
            "model": "owner/name", "revision": "c0ffee", "source": "hub",
            "digest": "sha256:00", "quantization": "nf4", "double_quant": True,
            "quantization_config": {"load_in_4bit": True}, "compute_dtype": "float32",
            "parameters": 1000,
        },
        "lora": {
            "rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj"], "dropout": 0.0,
            "rslora": False, "init": "kaiming", "scaling": 2.0,
        },
        "optim": {"learning_rate": 0.001, "steps": 80},
        "data": {
            "train": "sha256:aa", "validation": "sha256:bb", "test": "sha256:cc",
            "prompt_style": "plain", "template_digest": None, "tokenizer_digest": "sha256:dd",
            "max_tokens": 64,
        },
        "seed": 7, "steps": 80, "tokens": 1234,
        "metrics": {"eval_loss": 1.5, "test_loss": 1.25},
        "packages": {
            name: importlib.metadata.version(name)
            for name in ("torch", "transformers", "peft", "bitsandbytes")
        },
        "files": {name: file_record(folder / name) for name in ADAPTER_FILES},
        **records,
    }  # fmt: skip
    manifest["digest"] = identity_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def file_record(path: Path) -> dict[str, Any]:
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }


def new_document(
    losses: Sequence[float] | np.ndarray = (1.0, 2.0, 0.5),
    *,
    adapter: str = "sha256:a1",
    form: str = "trained",
    tokens: Sequence[int] | np.ndarray | None = None,
    data: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The document of an evaluation from the losses of its rows."""
    rows = len(losses)
    counts = [2] * rows if tokens is None else [int(count) for count in tokens]
    examples: dict[str, list[Any]] = {
        "loss_sum": [float(loss) for loss in losses],
        "answer_tokens": counts,
        "answer_bytes": [3 * count for count in counts],
        "correct_tokens": [row % 3 % 2 for row in range(rows)],
        "accuracy": [row % 2 for row in range(rows)],
        "exact_match": [row % 2 for row in range(rows)],
        "prediction": [f"text {row}" for row in range(rows)],
        "reference": [f"answer {row}" for row in range(rows)],
    }

    def measure(of: str, per: str | None, scale: str, mode: str) -> dict[str, Any]:
        ratio = sum(examples[of]) / (rows if per is None else sum(examples[per]))
        scales = {"identity": lambda x: x, "exp": np.exp, "bits": lambda x: x / np.log(2)}
        value = float(scales[scale](ratio))
        return {"value": value, "of": of, "per": per, "scale": scale, "mode": mode}

    return {
        "format": "lorchestra.evaluation/1",
        "adapter": adapter,
        "form": form,
        "data": {
            "digest": "sha256:cc", "name": "test", "rows": rows,
            "tokenizer_digest": "sha256:dd", "template_digest": None, "prompt_style": "plain",
            "max_tokens": 64, **(data or {}),
        },
        "generation": {
            "max_new_tokens": 64, "pattern": None, "choices": None, **(generation or {}),
        },
        "measures": {
            "loss": measure("loss_sum", "answer_tokens", "identity", "min"),
            "perplexity": measure("loss_sum", "answer_tokens", "exp", "min"),
            "bits_per_byte": measure("loss_sum", "answer_bytes", "bits", "min"),
            "token_accuracy": measure("correct_tokens", "answer_tokens", "identity", "max"),
            "accuracy": measure("accuracy", None, "identity", "max"),
            "exact_match": measure("exact_match", None, "identity", "max"),
            "mean_loss": measure("loss_sum", None, "identity", "min"),
        },
        "examples": examples,
        "seconds": 1.5, "rows_per_s": rows / 1.5, "tokens_per_s": 40.0, "peak_memory_gib": 0.5,
        "model_bytes": 123456, "adapter_bytes": 1234, "packages": {"torch": "2.13.0"},
    }  # fmt: skip
