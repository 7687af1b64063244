"""A tracking server and small bundles for the registry's tests."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from safetensors.numpy import save_file

from registry.bundle import ADAPTER_FILES, identity_digest
from registry.connection import connect

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
