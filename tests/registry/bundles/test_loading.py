"""What is pulled is what was registered, whole, or nothing is there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from registry import Registry
from registry.errors import AdapterNotFoundError, IntegrityError

Build = Callable[..., Path]


def stored_files(client: MlflowClient, name: str) -> Path:
    return Path(client.get_model_version_download_uri(name, "1").removeprefix("file://"))


def test_pulled_bundle_is_the_registered_one(
    adapters: Registry, new_bundle: Build, name: str, tmp_path: Path
) -> None:
    bundle = new_bundle()
    adapters.register(bundle, name)
    destination = tmp_path / "new" / "adapter"
    for _ in range(2):
        assert adapters.pull(f"{name}/1", destination) == destination
    for file in bundle.iterdir():
        assert (destination / file.name).read_bytes() == file.read_bytes()
    assert [path.name for path in destination.parent.iterdir()] == ["adapter"]


def test_other_destination_is_left_alone(
    adapters: Registry, new_bundle: Build, name: str, tmp_path: Path
) -> None:
    adapters.register(new_bundle(), name)
    for destination in (new_bundle(seed=8), tmp_path):
        before = sorted(path.name for path in destination.iterdir())
        with pytest.raises(IntegrityError, match=f"it exists and is not {name}/1"):
            adapters.pull(name, destination)
        assert sorted(path.name for path in destination.iterdir()) == before


def change_weights(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def add_pickle(adapter: Path) -> None:
    (adapter / "optimizer.pt").write_bytes(b"\x80\x04.")


def lose_config(adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()


@pytest.mark.parametrize("spoil", [change_weights, add_pickle, lose_config])
def test_spoilt_store_leaves_nothing_behind(
    adapters: Registry,
    client: MlflowClient,
    new_bundle: Build,
    name: str,
    tmp_path: Path,
    spoil: Callable[[Path], None],
) -> None:
    adapters.register(new_bundle(), name)
    spoil(stored_files(client, name) / "artifacts" / "adapter")
    with pytest.raises(IntegrityError):
        adapters.pull(name, tmp_path / "in" / "adapter")
    assert list((tmp_path / "in").iterdir()) == []


def test_another_whole_bundle_in_the_store_is_refused(
    adapters: Registry, client: MlflowClient, new_bundle: Build, name: str, tmp_path: Path
) -> None:
    adapters.register(new_bundle(), name)
    for file in new_bundle(seed=8).iterdir():
        (stored_files(client, name) / "artifacts/adapter" / file.name).write_bytes(
            file.read_bytes()
        )
    with pytest.raises(IntegrityError, match="as registered"):
        adapters.pull(name, tmp_path / "adapter")


def test_changed_code_is_not_run(
    adapters: Registry, client: MlflowClient, new_bundle: Build, name: str, tmp_path: Path
) -> None:
    adapters.register(new_bundle(), name)
    trap = tmp_path / "ran"
    (stored_files(client, name) / "flavor.py").write_text(f"open({str(trap)!r}, 'w')\n")
    with pytest.raises(IntegrityError, match="its stored files have digest"):
        adapters.load(name)
    assert not trap.exists()


def test_missing_adapter_is_named(adapters: Registry, tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFoundError, match="no-such-adapter@champion"):
        adapters.pull("no-such-adapter@champion", tmp_path / "a")


def test_an_earlier_step_is_pulled_where_it_was_kept(
    adapters: Registry, client: MlflowClient, new_bundle: Build, name: str, tmp_path: Path
) -> None:
    kept = new_bundle(seed=7, steps=40).rename(tmp_path / "kept")
    adapters.register(new_bundle(seed=7), name, checkpoints={40: kept})
    pulled = adapters.pull(f"{name}/1@step-40", tmp_path / "pulled")
    assert (pulled / "manifest.json").read_text() == (kept / "manifest.json").read_text()
    with pytest.raises(AdapterNotFoundError, match="40"):
        adapters.pull(f"{name}/1@step-60", tmp_path / "other")
    change_weights(stored_files(client, name) / "checkpoints" / "step-40")
    with pytest.raises(IntegrityError):
        adapters.pull(f"{name}/1@step-40", tmp_path / "again")
    assert not (tmp_path / "again").exists()
