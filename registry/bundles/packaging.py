"""Write a bundle as an MLflow model: code, adapter, signature, requirements; no pickle."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType

from trainables.contract import CARD, digest_file

ADAPTER_IN_MODEL = "artifacts/adapter"
"""Folder of the bundle among a version's files."""

_CODE = Path(__file__).parents[1] / "flavor.py"
_SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec("string", "prompt", required=False),
            ColSpec(AnyType(), "messages", required=False),
            ColSpec(AnyType(), "tools", required=False),
        ]
    ),
    outputs=Schema([ColSpec("string")]),
    params=ParamSchema([ParamSpec("max_new_tokens", "long", 64)]),
)


def write_model(  # noqa: PLR0913
    bundle: Path,
    manifest: Mapping[str, Any],
    folder: Path,
    model_id: str,
    run_id: str | None,
    *,
    form: str = "trained",
    checkpoints: Mapping[int, Path] | None = None,
    card: str = "",
) -> None:
    """Write the MLflow model that carries a bundle.

    Args:
        bundle: A checked bundle.
        manifest: The bundle's manifest.
        folder: Place of the model; must not exist.
        model_id: Logged model that the folder will be uploaded to.
        run_id: Run that trained the adapter.
        form: Serving form of a load without options.
        checkpoints: Checked bundles of the same training at earlier steps.
        card: Text of the bundle's `card.md`, in place of an existing one.
    """
    with tempfile.TemporaryDirectory() as stage:
        adapter, code = Path(stage) / "adapter", Path(stage) / _CODE.name
        shutil.copytree(bundle, adapter)
        if card:
            (adapter / CARD).write_text(card, encoding="utf-8")
        shutil.copyfile(_CODE, code)
        with warnings.catch_warnings():
            # The signature is given and needs no example to be inferred from.
            warnings.filterwarnings("ignore", ".*An input example was not provided", UserWarning)
            pyfunc().save_model(
                path=str(folder),
                mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
                python_model=str(code),
                artifacts={"adapter": str(adapter)},
                # Only options that differ between uses: the bundle itself holds the rest.
                model_config={
                    "base_model": manifest["base"]["model"],
                    "device": "auto",
                    "batch_size": 8,
                    "form": form,
                },
                signature=_SIGNATURE,
                pip_requirements=pip_requirements(manifest),
            )
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)
    for step, checkpoint in (checkpoints or {}).items():
        shutil.copytree(checkpoint, folder / checkpoint_folder(step))
    _forget_local_paths(folder)


def checkpoint_folder(step: int) -> str:
    """Folder of the bundle of an earlier step among a version's files."""
    return f"checkpoints/step-{step}"


def pyfunc() -> Any:
    """MLflow's pyfunc module, imported without its own warning."""
    with warnings.catch_warnings():
        # A type hint of MLflow's own: mlflow/types/responses.py
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        mlflow.pyfunc.save_model  # noqa: B018
    return mlflow.pyfunc


def digest_model(folder: Path) -> str:
    """`sha256:` over the names and contents of all files of a model folder."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    lines = [f"{path.relative_to(folder).as_posix()} {digest_file(path)}\n" for path in files]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def pip_requirements(manifest: Mapping[str, Any]) -> list[str]:
    """Packages for loading a version, pinned to the versions used in training."""
    # PyPI does not have builds such as 2.13.0+cpu.
    versions = {name: text.partition("+")[0] for name, text in manifest["packages"].items()}
    pinned = [f"{name}=={version}" for name, version in sorted(versions.items())]
    others = ["accelerate", "gguf"] if manifest["base"]["source"] == "gguf" else ["accelerate"]
    if manifest["data"].get("prompt_style") == "chat":
        others.append("jinja2")
    return [
        f"mlflow=={mlflow.__version__}",
        *pinned,
        *(name for name in others if name not in versions),
    ]


def _forget_local_paths(folder: Path) -> None:
    """Remove this machine's paths of code and artifacts; loading needs none of the paths."""
    model = Model.load(str(folder))
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = _CODE.name
    flavor["artifacts"]["adapter"]["uri"] = ADAPTER_IN_MODEL
    model.save(str(folder / "MLmodel"))
