"""The MLflow model of a bundle: its requirements, digest, and files that name no local path."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from registry.bundles.packaging import digest_model, pip_requirements, write_model


def manifest_of(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("change", "others"),
    [
        ({}, ["accelerate"]),
        ({"base": {"source": "gguf"}}, ["accelerate", "gguf"]),
        ({"data": {"prompt_style": "chat"}}, ["accelerate", "jinja2"]),
    ],
    ids=["hub", "gguf", "chat"],
)
def test_requirements_are_those_of_training_and_of_loading(
    new_bundle: Callable[..., Path], change: dict[str, Any], others: list[str]
) -> None:
    manifest = manifest_of(new_bundle())
    manifest["packages"] = {"torch": "2.13.0+cpu", "peft": "0.21.2"}
    for record, values in change.items():
        manifest[record] |= values
    expected = [f"mlflow=={mlflow.__version__}", "peft==0.21.2", "torch==2.13.0", *others]
    assert pip_requirements(manifest) == expected


def test_a_model_holds_the_bundle_and_names_no_local_path(
    new_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    bundle, folder = new_bundle(), tmp_path / "model"
    write_model(bundle, manifest_of(bundle), folder, "m-1", None, form="merged", card="# Card\n")
    adapter = folder / "artifacts" / "adapter"
    assert (adapter / "card.md").read_text() == "# Card\n"
    for file in bundle.iterdir():
        assert (adapter / file.name).read_bytes() == file.read_bytes()
    text = (folder / "MLmodel").read_text()
    assert "form: merged" in text
    assert str(tmp_path) not in text
    assert str(Path.cwd()) not in text


def test_the_digest_of_a_model_follows_names_and_contents(tmp_path: Path) -> None:
    digests = set()
    for name, content in (("a", "1"), ("a", "2"), ("b", "1")):
        folder = tmp_path / f"{name}{content}"
        folder.mkdir()
        (folder / name).write_text(content)
        digests.add(digest_model(folder))
    assert len(digests) == 3
    assert all(digest.startswith("sha256:") for digest in digests)
