"""Registered adapters are found again, once each, and say what they are."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from registry import Registry
from registry.errors import AdapterNotFoundError

Build = Callable[..., Path]


def test_version_says_what_it_is(adapters: Registry, new_bundle: Build, name: str) -> None:
    bundle = new_bundle()
    version = adapters.register(bundle, name, tags={"team": "a", "seed": "9"})
    assert (version.name, version.version, version.aliases) == (name, 1, ())
    assert version.digest == json.loads((bundle / "manifest.json").read_text())["digest"]
    assert version.metrics == {"eval_loss": 1.5, "test_loss": 1.25}
    expected = {
        "base.model": "owner/name", "base.revision": "c0ffee", "base.digest": "sha256:00",
        "quantization": "nf4", "lora.rank": "4", "lora.alpha": "8", "seed": "7", "steps": "80",
        "lora.targets": "q_proj,v_proj", "data.test": "sha256:cc", "team": "a",
    }  # fmt: skip
    assert expected.items() <= version.tags.items()
    assert str(version.ref) == f"{name}/1"


def test_stored_model_knows_no_local_paths_and_holds_no_pickle(
    adapters: Registry, client: MlflowClient, new_bundle: Build, name: str
) -> None:
    adapters.register(new_bundle(), name)
    source = client.get_model_version_download_uri(name, "1")
    folder = Path(source.removeprefix("file://"))
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert "artifacts/adapter/adapter_model.safetensors" in files
    assert "flavor.py" in files
    assert not [file for file in files if file.endswith((".pkl", ".pickle", ".bin", ".pyc"))]
    text = (folder / "MLmodel").read_text()
    assert "/tmp" not in text
    assert str(Path.cwd()) not in text
    assert "peft==" in (folder / "requirements.txt").read_text()
    assert "+cpu" not in (folder / "requirements.txt").read_text()


@pytest.mark.parametrize("suffix", ["", "/1", "@blue"])
def test_reference_finds_its_version(
    adapters: Registry, new_bundle: Build, name: str, suffix: str
) -> None:
    for seed in (1, 2):
        adapters.register(new_bundle(seed=seed), name)
    adapters.set_alias(f"{name}/1", "blue")
    found = adapters.get(name + suffix)
    assert found.version == (1 if suffix else 2)
    assert found.aliases == (("blue",) if suffix else ())


def test_missing_version_names_what_there_is(
    adapters: Registry, new_bundle: Build, name: str
) -> None:
    adapters.register(new_bundle(), name)
    with pytest.raises(AdapterNotFoundError, match=rf"allowed: {name}/1\."):
        adapters.get(f"{name}@champion")
    adapters.register(new_bundle(), "a-name")  # among the first of all names, which are listed
    with pytest.raises(AdapterNotFoundError, match=r"allowed: .*a-name"):
        adapters.get("nothing-of-the-kind")


def test_all_adapters_are_listed_and_other_models_left_out(
    adapters: Registry, client: MlflowClient, new_bundle: Build, name: str
) -> None:
    adapters.register(new_bundle(), name)
    client.create_registered_model("z-other")
    client.create_model_version("z-other", source="s3://bucket/elsewhere")
    adapters.set_alias(name, "blue")
    aliases = {one.name: one.aliases for one in adapters.versions()}
    assert aliases[name] == ("blue",)
    assert "z-other" not in aliases
