"""Settings of an adapter's registered versions, as start points of a search."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from pathlib import Path
from typing import Any, Literal

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from registry.bundles.packaging import ADAPTER_IN_MODEL
from registry.tracking.connection import plain_errors
from registry.versions.aliases import CHAMPION
from registry.versions.versions import AdapterVersion, list_versions
from trainables.contract import MANIFEST

logger = logging.getLogger(__name__)

_SECTIONS = ("base", "lora", "optim", "seed")


def best_specs(
    client: MlflowClient,
    name: str,
    limit: int = 4,
    *,
    metric: str = "eval_loss",
    mode: Literal["min", "max"] = "min",
) -> list[dict[str, Any]]:
    """Settings of an adapter's versions: of the champion first, then of the best by a metric.

    Args:
        client: Of the server.
        name: Registered model; an unknown model has no versions.
        limit: Largest number of versions.
        metric: Orders the versions after the champion; versions without the metric come last.
        mode: Whether less or more is better.

    Returns:
        For each version `base`, `lora`, `optim` and `seed` of its manifest, with target layers as
        the training run named them, if a run is recorded. Versions without a readable manifest
        are left out.

    Raises:
        RefError: MLflow does not allow the name.
        TrackingError: The server cannot be used.
    """
    sign = 1.0 if mode == "min" else -1.0

    def order(version: AdapterVersion) -> tuple[bool, float, int]:
        value = sign * version.metrics.get(metric, math.nan)
        is_champion = CHAMPION in version.aliases
        return not is_champion, value if math.isfinite(value) else math.inf, -version.version

    versions = sorted(list_versions(client, name), key=order)
    specs: list[dict[str, Any]] = []
    with plain_errors(client.tracking_uri):
        for version in versions[:limit]:
            manifest = _read_manifest(client, version)
            # A shrunk adapter was not trained with the settings in its manifest.
            if manifest is not None and "derived" not in manifest:
                spec = {key: manifest[key] for key in _SECTIONS if key in manifest}
                specs.append(_with_named_targets(spec, client, version))
    return specs


def _read_manifest(client: MlflowClient, version: AdapterVersion) -> dict[str, Any] | None:
    stored = client.get_model_version_download_uri(version.name, str(version.version))
    uri = f"{stored.rstrip('/')}/{ADAPTER_IN_MODEL}/{MANIFEST}"
    try:
        with tempfile.TemporaryDirectory() as work:
            arrived = mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=work, tracking_uri=client.tracking_uri
            )
            manifest = json.loads(Path(arrived).read_text())
    except (MlflowException, OSError, ValueError) as error:
        logger.warning("adapter %s: its manifest cannot be read (%s)", version.ref, error)
        return None
    return manifest if isinstance(manifest, dict) else None


def _with_named_targets(
    spec: dict[str, Any], client: MlflowClient, version: AdapterVersion
) -> dict[str, Any]:
    """The settings with the searched name of the targets (`attention`) in place of the layers."""
    if version.run_id is None or "lora" not in spec:
        return spec
    try:
        params = client.get_run(version.run_id).data.params
    except MlflowException as error:
        logger.info("adapter %s: its run is gone (%s)", version.ref, error)
        return spec
    named = params.get("lora.targets")
    if named is None:
        return spec
    targets = named.split("+") if "+" in named else named
    return {**spec, "lora": {**spec["lora"], "targets": targets}}
