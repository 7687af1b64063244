"""Register bundles as versions of a named adapter, and find them again."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException

from registry.bundle import read_bundle
from registry.connection import connect, is_already_there, is_missing, is_server, plain_errors
from registry.errors import AdapterNotFoundError
from registry.packaging import digest_model, write_model
from registry.refs import AdapterRef, require_alias, require_name
from registry.tracking import artifact_location_for, find_experiment

logger = logging.getLogger(__name__)

DIGEST_TAG = "lorchestra.digest"
MODEL_DIGEST_TAG = "lorchestra.model_digest"
MODEL_TAG = "lorchestra.model"
_METRIC_PREFIX = "metric."
NO_RUN_EXPERIMENT = "lorchestra-adapters"
"""Experiment of adapters that were trained outside a recorded sweep."""
_PAGE = 1000


@dataclass(frozen=True, kw_only=True)
class AdapterVersion:
    """One registered adapter.

    Attributes:
        name: Registered model name.
        version: Number from 1.
        aliases: Names that point at it now, sorted.
        digest: Identity of its bundle.
        run_id: MLflow run that trained it, if that was recorded.
        tags: What it is: base, adapter, data, seed.
        metrics: What was measured of it.
        created_at: When it was registered.
    """

    name: str
    version: int
    aliases: tuple[str, ...] = ()
    digest: str
    run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    created_at: datetime

    @property
    def ref(self) -> AdapterRef:
        """The reference that will always mean this version."""
        return AdapterRef(name=self.name, version=self.version)

    @property
    def model_id(self) -> str | None:
        """Id of the MLflow model that holds its files."""
        return self.tags.get(MODEL_TAG)

    def digest_at(self, step: int | None) -> str:
        """Digest of the version's bundle, or of the one that was kept at an earlier step."""
        return self.digest if step is None else self.tags[f"checkpoint.{step}"]


def register(
    bundle: Path,
    name: str,
    *,
    tracking_uri: str,
    run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> AdapterVersion:
    """Register a bundle as the next version of an adapter.

    The same bundle registered again under the same name is the same version; tags and metrics that
    are new since then are added to it.

    Args:
        bundle: Folder of an exported adapter.
        name: Adapter it becomes a version of.
        tracking_uri: MLflow server or database.
        run_id: Run that trained it.
        tags: More tags; none of them can replace what the manifest says.

    Raises:
        IntegrityError: The bundle is not what its manifest says, or holds anything else.
        RefError: MLflow cannot hold the name.
        TrackingError: The server cannot be used.
    """
    require_name(name)
    manifest = read_bundle(bundle)
    wanted = {**(tags or {}), **_tags(manifest)}
    client = connect(tracking_uri)
    with plain_errors(tracking_uri):
        _ensure_name(client, name)
        known = [found for found in _versions(client, name) if found.digest == manifest["digest"]]
        if known:
            version = known[0].version
            recorded = client.get_model_version(name, str(version)).tags
            for key, value in wanted.items():
                if recorded.get(key) != value:
                    client.set_model_version_tag(name, str(version), key, value)
        else:
            version = _create(client, bundle, name, manifest, run_id, wanted)
            logger.info("registered %s/%s from %s", name, version, bundle)
    return get(AdapterRef(name=name, version=version), tracking_uri=tracking_uri)


def get(ref: AdapterRef | str, *, tracking_uri: str) -> AdapterVersion:
    """The version that a reference points at now.

    Raises:
        AdapterNotFoundError: There is none; the message says what there is.
        RefError: The reference cannot be read.
        TrackingError: The server cannot be used.
    """
    ref = AdapterRef.parse(ref)
    versions = list_adapters(tracking_uri=tracking_uri, name=ref.name)
    if ref.alias is not None:
        versions = [version for version in versions if ref.alias in version.aliases]
    elif ref.version is not None:
        versions = [version for version in versions if version.version == ref.version]
    if not versions:
        raise AdapterNotFoundError(_what_there_is(ref, tracking_uri))
    return versions[0]


def list_adapters(*, tracking_uri: str, name: str | None = None) -> list[AdapterVersion]:
    """All adapter versions, by name, the newest first; an unknown name has none.

    Models that were not registered from a bundle are left out.

    Raises:
        TrackingError: The server cannot be used.
    """
    client = connect(tracking_uri)
    with plain_errors(tracking_uri):
        names = _names(client) if name is None else [name]
        return [version for one in names for version in _versions(client, one)]


def set_alias(ref: AdapterRef | str, alias: str, *, tracking_uri: str) -> AdapterVersion:
    """Point an alias at a version, away from any other version of that adapter.

    Raises:
        AdapterNotFoundError: There is no such version.
        RefError: The reference or the alias cannot be read.
        TrackingError: The server cannot be used.
    """
    require_alias(alias)
    version = get(ref, tracking_uri=tracking_uri)
    client = connect(tracking_uri)
    with plain_errors(tracking_uri):
        client.set_registered_model_alias(version.name, alias, str(version.version))
    return get(version.ref, tracking_uri=tracking_uri)


def drop_alias(name: str, alias: str, *, tracking_uri: str) -> None:
    """Take an alias away from an adapter; nothing happens when it has none of that name.

    Raises:
        TrackingError: The server cannot be used.
    """
    client = connect(tracking_uri)
    with plain_errors(tracking_uri):
        client.delete_registered_model_alias(name, alias)


def _ensure_name(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if not is_already_there(error):
            raise


def _create(
    client: MlflowClient,
    bundle: Path,
    name: str,
    manifest: Mapping[str, Any],
    run_id: str | None,
    tags: Mapping[str, str],
) -> int:
    # Through the client and not mlflow.pyfunc.log_model, which works on a process-wide server
    # and run. A crash on the way leaves a logged model that no version points at.
    if run_id is None:
        location = artifact_location_for(client.tracking_uri)
        experiment_id = find_experiment(client, NO_RUN_EXPERIMENT, location)
    else:
        experiment_id = client.get_run(run_id).info.experiment_id
    params = {key: value for key, value in tags.items() if not key.startswith(_METRIC_PREFIX)}
    logged = client.create_logged_model(
        experiment_id, name="adapter", source_run_id=run_id, params=params
    )
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        write_model(bundle, manifest, folder, logged.model_id, run_id)
        model_digest = digest_model(folder)
        client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    if run_id is not None:
        outputs = [LoggedModelOutput(logged.model_id, manifest["steps"])]
        client.log_outputs(run_id, models=outputs)
    # Writing to a database, MLflow looks logged models up at a process-wide server instead.
    is_known = run_id is not None or is_server(client.tracking_uri)
    created = client.create_model_version(
        name,
        source=logged.artifact_location,
        run_id=run_id,
        tags={**tags, MODEL_DIGEST_TAG: model_digest, MODEL_TAG: logged.model_id},
        model_id=logged.model_id if is_known else None,
        await_creation_for=0,  # the version is there at once, as its files are
    )
    return int(created.version)


def _tags(manifest: Mapping[str, Any]) -> dict[str, str]:
    base, lora, data = manifest["base"], manifest["lora"], manifest["data"]
    values = {
        DIGEST_TAG: manifest["digest"],
        "quantization": base["quantization"],
        "lora.targets": ",".join(lora["targets"]),
        "seed": manifest["seed"],
        "steps": manifest["steps"],
        "tokens": manifest["tokens"],
        "optim.learning_rate": manifest["optim"].get("learning_rate"),
        **{f"base.{key}": base[key] for key in ("model", "revision", "digest", "compute_dtype")},
        **{f"lora.{key}": lora[key] for key in ("rank", "alpha", "dropout", "rslora")},
        **{f"data.{key}": value for key, value in data.items()},
        **{_METRIC_PREFIX + key: float(value) for key, value in manifest["metrics"].items()},
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def _names(client: MlflowClient) -> list[str]:
    names: list[str] = []
    token: str | None = ""
    while token is not None:
        page = client.search_registered_models(max_results=_PAGE, page_token=token or None)
        names += [model.name for model in page]
        token = page.token or None
    return sorted(names)


def _versions(client: MlflowClient, name: str) -> list[AdapterVersion]:
    """Versions of one adapter, the newest first."""
    require_name(name)
    try:
        aliases: Mapping[str, Any] = client.get_registered_model(name).aliases
    except MlflowException as error:
        if is_missing(error):
            return []
        raise
    found: list[AdapterVersion] = []
    token: str | None = ""
    while token is not None:
        page = client.search_model_versions(
            f"name = '{name}'", max_results=_PAGE, page_token=token or None
        )
        found += [_version(entry, aliases) for entry in page if DIGEST_TAG in entry.tags]
        token = page.token or None
    return sorted(found, key=lambda version: -version.version)


def _version(entry: Any, aliases: Mapping[str, Any]) -> AdapterVersion:
    metrics = {
        key.removeprefix(_METRIC_PREFIX): float(value)
        for key, value in entry.tags.items()
        if key.startswith(_METRIC_PREFIX)
    }
    return AdapterVersion(
        name=entry.name,
        version=int(entry.version),
        aliases=tuple(sorted(k for k, v in aliases.items() if int(v) == int(entry.version))),
        digest=entry.tags[DIGEST_TAG],
        run_id=entry.run_id or None,
        tags={k: v for k, v in entry.tags.items() if not k.startswith(_METRIC_PREFIX)},
        metrics=metrics,
        created_at=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
    )


def _what_there_is(ref: AdapterRef, tracking_uri: str) -> str:
    versions = list_adapters(tracking_uri=tracking_uri, name=ref.name)
    if versions:
        there = [str(version.ref) for version in versions[:10]]
        there += [f"{ref.name}@{alias}" for version in versions for alias in version.aliases]
        return f"adapter {ref}: not found; allowed: {', '.join(there)}. Choose one of these."
    names = sorted({version.name for version in list_adapters(tracking_uri=tracking_uri)})
    return (
        f"adapter {ref}: not found; allowed: {', '.join(names[:20]) or '(none registered yet)'}. "
        "Choose one of these or register it."
    )
