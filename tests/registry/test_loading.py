"""What is pulled is what was registered, whole, or nothing is there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from registry.errors import AdapterNotFoundError, IntegrityError
from registry.loading import load, pull
from registry.registration import register

Build = Callable[..., Path]


def stored_files(client: MlflowClient, name: str) -> Path:
    return Path(client.get_model_version_download_uri(name, "1").removeprefix("file://"))


def test_pulled_bundle_is_the_registered_one(
    tracking_uri: str, new_bundle: Build, name: str, tmp_path: Path
) -> None:
    bundle = new_bundle()
    register(bundle, name, tracking_uri=tracking_uri)
    destination = tmp_path / "new" / "adapter"
    for _ in range(2):
        assert pull(f"{name}/1", destination, tracking_uri=tracking_uri) == destination
    for file in bundle.iterdir():
        assert (destination / file.name).read_bytes() == file.read_bytes()
    assert [path.name for path in destination.parent.iterdir()] == ["adapter"]


def test_other_destination_is_left_alone(
    tracking_uri: str, new_bundle: Build, name: str, tmp_path: Path
) -> None:
    register(new_bundle(), name, tracking_uri=tracking_uri)
    for destination in (new_bundle(seed=8), tmp_path):
        before = sorted(path.name for path in destination.iterdir())
        with pytest.raises(IntegrityError, match=f"it exists and is not {name}/1"):
            pull(name, destination, tracking_uri=tracking_uri)
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
    tracking_uri: str,
    client: MlflowClient,
    new_bundle: Build,
    name: str,
    tmp_path: Path,
    spoil: Callable[[Path], None],
) -> None:
    register(new_bundle(), name, tracking_uri=tracking_uri)
    spoil(stored_files(client, name) / "artifacts" / "adapter")
    with pytest.raises(IntegrityError):
        pull(name, tmp_path / "in" / "adapter", tracking_uri=tracking_uri)
    assert list((tmp_path / "in").iterdir()) == []


def test_another_whole_bundle_in_the_store_is_refused(
    tracking_uri: str, client: MlflowClient, new_bundle: Build, name: str, tmp_path: Path
) -> None:
    register(new_bundle(), name, tracking_uri=tracking_uri)
    for file in new_bundle(seed=8).iterdir():
        (stored_files(client, name) / "artifacts/adapter" / file.name).write_bytes(
            file.read_bytes()
        )
    with pytest.raises(IntegrityError, match="as registered"):
        pull(name, tmp_path / "adapter", tracking_uri=tracking_uri)


def test_changed_code_is_not_run(
    tracking_uri: str, client: MlflowClient, new_bundle: Build, name: str, tmp_path: Path
) -> None:
    register(new_bundle(), name, tracking_uri=tracking_uri)
    trap = tmp_path / "ran"
    (stored_files(client, name) / "flavor.py").write_text(f"open({str(trap)!r}, 'w')\n")
    with pytest.raises(IntegrityError, match="its stored files have digest"):
        load(name, tracking_uri=tracking_uri)
    assert not trap.exists()


def test_missing_adapter_is_named(tracking_uri: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFoundError, match="no-such-adapter@champion"):
        pull("no-such-adapter@champion", tmp_path / "a", tracking_uri=tracking_uri)


def test_an_earlier_step_is_pulled_where_it_was_kept(
    tracking_uri: str, client: MlflowClient, new_bundle: Build, name: str, tmp_path: Path
) -> None:
    kept = new_bundle(seed=7, steps=40).rename(tmp_path / "kept")
    register(new_bundle(seed=7), name, tracking_uri=tracking_uri, checkpoints={40: kept})
    pulled = pull(f"{name}/1@step-40", tmp_path / "pulled", tracking_uri=tracking_uri)
    assert (pulled / "manifest.json").read_text() == (kept / "manifest.json").read_text()
    with pytest.raises(AdapterNotFoundError, match="40"):
        pull(f"{name}/1@step-60", tmp_path / "other", tracking_uri=tracking_uri)
    change_weights(stored_files(client, name) / "checkpoints" / "step-40")
    with pytest.raises(IntegrityError):
        pull(f"{name}/1@step-40", tmp_path / "again", tracking_uri=tracking_uri)
    assert not (tmp_path / "again").exists()
