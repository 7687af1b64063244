"""Bring an adapter version to this machine: as a checked folder or a loaded model."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.artifacts
from mlflow import MlflowClient

from registry.bundles.integrity import read_bundle
from registry.bundles.packaging import ADAPTER_IN_MODEL, checkpoint_folder, digest_model, pyfunc
from registry.errors import IntegrityError
from registry.tracking.connection import plain_errors
from registry.versions.refs import AdapterRef
from registry.versions.versions import MODEL_DIGEST_TAG, AdapterVersion, get_version
from trainables.whole import new_folder


def pull(client: MlflowClient, ref: AdapterRef | str, destination: str | Path) -> Path:
    """Copy a version's bundle to a folder, which appears whole and checked or not at all.

    `name/7@step-400` gives the bundle of an earlier step, if one was kept.

    Returns:
        `destination`, a plain PEFT adapter folder. If it holds the bundle already, nothing is
        copied.

    Raises:
        AdapterNotFoundError: There is no such version.
        IntegrityError: The files differ from the registered ones, or `destination` holds
            something else.
        RefError: The reference cannot be read.
        TrackingError: The server cannot be used.
    """
    version = get_version(client, ref)
    ref = replace(version.ref, step=AdapterRef.parse(ref).step)
    digest = version.digest_at(ref.step)
    destination = Path(destination)
    if destination.exists() or destination.is_symlink():
        _require_same_bundle(destination, ref, digest)
        return destination
    with new_folder(destination, replaces=False) as filling:
        bundle = _download(client, version, _bundle_folder(ref), filling.parent / "arriving")
        _require_registered(bundle, ref, digest)
        bundle.rename(filling)
    return destination


def load(
    client: MlflowClient,
    ref: AdapterRef | str,
    *,
    base_model: str | None = None,
    form: str | None = None,
) -> Any:
    """A version as an MLflow model: `.predict({"prompt": ["..."]})` gives completions.

    A version carries the code that loads it: load versions only from a registry you trust. Code
    and files are checked against their registered digests before the code runs.

    Args:
        client: Of the server.
        ref: The version.
        base_model: Path of the base on this machine, if the bundle names another place.
        form: `trained`, `unquantized`, `merged` or `requantized`; `None` is the version's own.

    Raises:
        AdapterNotFoundError: There is no such version.
        IntegrityError: The files or the base differ from the registered ones.
        RefError: The reference cannot be read.
        TrackingError: The server cannot be used.
        ValueError: There is no such form.
    """
    version = get_version(client, ref)
    ref = replace(version.ref, step=AdapterRef.parse(ref).step)
    with tempfile.TemporaryDirectory() as work:
        model = _download(client, version, "", Path(work))
        expected, found = version.tags.get(MODEL_DIGEST_TAG), digest_model(model)
        if found != expected:
            raise IntegrityError(
                f"adapter {version.ref}: its stored files have digest {found}; allowed: "
                f"{expected}, as registered. Restore the artifact store, or register it again "
                "under another name."
            )
        bundle = model / _bundle_folder(ref)
        _require_registered(bundle, ref, version.digest_at(ref.step))
        if ref.step is not None:
            shutil.rmtree(model / ADAPTER_IN_MODEL)
            bundle.rename(model / ADAPTER_IN_MODEL)
        options = {"base_model": base_model, "form": form}
        given = {key: value for key, value in options.items() if value}
        try:
            return pyfunc().load_model(str(model), model_config=given or None)
        except RuntimeError as error:
            # The class comes from the code in the version, not from this package.
            if type(error).__name__ == "RecordMismatchError":
                raise IntegrityError(str(error)) from error
            raise


def _bundle_folder(ref: AdapterRef) -> str:
    return ADAPTER_IN_MODEL if ref.step is None else checkpoint_folder(ref.step)


def _download(client: MlflowClient, version: AdapterVersion, part: str, folder: Path) -> Path:
    with plain_errors(client.tracking_uri):
        stored = client.get_model_version_download_uri(version.name, str(version.version))
        uri = f"{stored.rstrip('/')}/{part}".rstrip("/")
        try:
            arrived = mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=str(folder), tracking_uri=client.tracking_uri
            )
        except OSError as error:
            raise IntegrityError(
                f"adapter {version.ref}: its files cannot be read from {uri} ({error}); allowed: "
                "the files it was registered with. Restore the artifact store."
            ) from error
    return Path(arrived)


def _require_registered(bundle: Path, ref: AdapterRef, digest: str) -> None:
    found = read_bundle(bundle)["digest"]
    if found != digest:
        raise IntegrityError(
            f"adapter {ref}: its stored bundle has digest {found}; allowed: {digest}, as "
            "registered. Restore the artifact store."
        )


def _require_same_bundle(destination: Path, ref: AdapterRef, digest: str) -> None:
    try:
        found = read_bundle(destination)["digest"]
    except IntegrityError as error:
        found = str(error)
    if found != digest:
        raise IntegrityError(
            f"{destination}: it exists and is not {ref} ({found}); allowed: a new folder. "
            "Remove it or pull to another."
        )
