"""A bundle is what its manifest says and nothing else, or it is refused."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.bundles.integrity import read_bundle
from registry.errors import IntegrityError
from tests.support.bundles import write_manifest

Build = Callable[..., Path]


def test_whole_bundle_is_read(new_bundle: Build) -> None:
    folder = new_bundle()
    (folder / "card.md").write_text("# A card\n")
    assert read_bundle(folder)["seed"] == 7


def spoil_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def spoil_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')


def lose_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def edit_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["base"]["model"] = "another/base"
    (folder / "manifest.json").write_text(json.dumps(manifest))


def age_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": "other/9"}))


def add_pickle(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(pickle.dumps([1]))


def add_folder(folder: Path) -> None:
    (folder / "code").mkdir()


def link_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (spoil_weights, "adapter_model.safetensors has"),
        (spoil_config, "adapter_config.json has"),
        (lose_weights, "adapter_model.safetensors is missing"),
        (lose_manifest, "manifest.json cannot be read"),
        (edit_manifest, "manifest.json was changed"),
        (age_manifest, "other/9"),
        (add_pickle, "unexpected file 'adapter_model.bin'"),
        (add_folder, "unexpected folder 'code'"),
        (link_weights, "unexpected link 'adapter_model.safetensors'"),
    ],
)
def test_spoilt_bundle_is_refused(
    new_bundle: Build, spoil: Callable[[Path], None], named: str
) -> None:
    folder = new_bundle()
    spoil(folder)
    with pytest.raises(IntegrityError, match=named):
        read_bundle(folder)


def test_pickle_under_a_good_name_is_refused(
    new_bundle: Build,
) -> None:
    folder = new_bundle()
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps({"w": list(range(50))}))
    write_manifest(folder)
    with pytest.raises(IntegrityError, match="not in safetensors format"):
        read_bundle(folder)


def test_a_file_outside_of_the_folder_is_refused(new_bundle: Build, tmp_path: Path) -> None:
    """A manifest can be made that is true to itself and names a file elsewhere."""
    bundle, outside = new_bundle(), tmp_path / "secret"
    outside.write_text("secret")
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    record = {"sha256": hashlib.sha256(b"secret").hexdigest(), "bytes": 6}
    write_manifest(bundle, files={**files, "../secret": record})
    with pytest.raises(IntegrityError, match=r"files adapter_config\.json"):
        read_bundle(bundle)
