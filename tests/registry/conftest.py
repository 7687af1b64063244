"""A tracking server and small bundles for the registry's tests."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from safetensors.numpy import save_file

from registry import Registry
from registry.connection import connect
from trainables.contract import ADAPTER_FILES, identity_digest

# Warnings of MLflow 3.17.2 about itself, which nothing here can mend.
THIRD_PARTY = [
    # MLflow's own queries: mlflow/store/tracking/sqlalchemy_store.py
    "ignore:The ``noload`` loader strategy is deprecated and will be removed in a future release."
    ":sqlalchemy.exc.SADeprecationWarning",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for warning in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a fresh database; laying it out takes seconds, so it is done once."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    connect(uri)
    return uri


@pytest.fixture(scope="session")
def artifact_location(tracking_uri: str) -> str:
    return (Path(tracking_uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()


@pytest.fixture
def adapters(tracking_uri: str) -> Registry:
    return Registry(tracking_uri)


@pytest.fixture
def client(tracking_uri: str) -> MlflowClient:
    return connect(tracking_uri)


def _file_record(path: Path) -> dict[str, Any]:
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }


@pytest.fixture(scope="session")
def write_manifest() -> Callable[..., dict[str, Any]]:
    return _write_manifest


def _write_manifest(folder: Path, **records: Any) -> dict[str, Any]:
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
        "files": {name: _file_record(folder / name) for name in ADAPTER_FILES},
        **records,
    }  # fmt: skip
    manifest["digest"] = identity_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest


@pytest.fixture
def new_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Makes a bundle of meaningless weights; its identity follows from the seed."""

    def build(seed: int = 7, metrics: Mapping[str, float] | None = None, **records: Any) -> Path:
        folder = tmp_path / f"bundle-{seed}"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        weights = np.full((4, 4), seed, dtype=np.float32)
        save_file({"w": weights}, folder / "adapter_model.safetensors")
        if metrics is not None:
            records["metrics"] = dict(metrics)
        _write_manifest(folder, seed=seed, **records)
        return folder

    return build


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """An adapter name of the test's own."""
    return re.sub(r"\W", "-", request.node.name)


@pytest.fixture
def new_document() -> Callable[..., dict[str, Any]]:
    """Makes the document of an evaluation from the losses of its rows."""
    return _new_document


def _new_document(
    losses: Sequence[float] | np.ndarray = (1.0, 2.0, 0.5),
    *,
    adapter: str = "sha256:a1",
    form: str = "trained",
    tokens: Sequence[int] | np.ndarray | None = None,
    data: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
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
