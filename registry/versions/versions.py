"""Versions of named adapters: read from MLflow's model registry."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient

from registry.errors import AdapterNotFoundError
from registry.tracking.connection import if_exists, plain_errors
from registry.tracking.search import PAGE_SIZE, all_pages
from registry.versions.refs import AdapterRef, require_name
from registry.versions.tags import METRIC_PREFIX, unfold

DIGEST_TAG = "lorchestra.digest"
MODEL_DIGEST_TAG = "lorchestra.model_digest"
MODEL_TAG = "lorchestra.model"
VERSION_TAG = "lorchestra.version"
RETIRED_TAG = "lorchestra.retired"
FORM_TAG = "serving.form"
CHECKPOINTS_TAG = "checkpoints"
_CHECKPOINT_PREFIX = "checkpoint."


@dataclass(frozen=True, kw_only=True)
class AdapterVersion:
    """One registered version of an adapter.

    Attributes:
        name: Registered model name.
        version: Number from 1.
        aliases: Aliases of this version, sorted.
        digest: Identity of the bundle.
        run_id: MLflow run that trained the adapter, if one is recorded.
        tags: Base, LoRA settings, data, seed and further tags.
        metrics: Metrics in the bundle's manifest.
        retired: Reason, user and time of retirement; empty while the version is in use.
        created_at: Time of registration.
    """

    name: str
    version: int
    aliases: tuple[str, ...] = ()
    digest: str
    run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    retired: str = ""
    created_at: datetime

    @property
    def ref(self) -> AdapterRef:
        """Reference by name and number, which never points at another version."""
        return AdapterRef(name=self.name, version=self.version)

    @property
    def model_id(self) -> str | None:
        """Id of the MLflow model that holds the files."""
        return self.tags.get(MODEL_TAG)

    @property
    def form(self) -> str:
        """Serving form in which the version is used."""
        return self.tags.get(FORM_TAG, "trained")

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Earlier steps with a kept adapter, in order."""
        return tuple(int(step) for step in self.tags.get(CHECKPOINTS_TAG, "").split(",") if step)

    def digest_at(self, step: int | None) -> str:
        """Digest of the version's bundle, or of the bundle kept at an earlier step.

        Raises:
            AdapterNotFoundError: No bundle was kept at `step`.
        """
        if step is None:
            return self.digest
        if step not in self.checkpoints:
            there = ", ".join(str(replace(self.ref, step=one)) for one in self.checkpoints)
            raise AdapterNotFoundError(
                f"adapter {self.ref}: nothing was kept at step {step}; allowed: "
                f"{there or '(no earlier step was kept)'}. Choose one of these, or {self.ref}."
            )
        return self.tags[checkpoint_tag(step)]


def checkpoint_tag(step: int) -> str:
    """Tag with the digest of the bundle of an earlier step."""
    return f"{_CHECKPOINT_PREFIX}{step}"


def get_version(client: MlflowClient, ref: AdapterRef | str) -> AdapterVersion:
    """The version that a reference points at now.

    Raises:
        AdapterNotFoundError: There is none; the message lists versions and aliases.
        RefError: The reference cannot be read.
        TrackingError: The server cannot be used.
    """
    ref = AdapterRef.parse(ref)
    with plain_errors(client.tracking_uri):
        versions = find_versions(client, ref.name, alias=ref.alias, number=ref.version)
    if not versions:
        raise AdapterNotFoundError(_not_found_message(client, ref))
    versions[0].digest_at(ref.step)  # refuses a step without a bundle
    return versions[0]


def list_versions(client: MlflowClient, name: str | None = None) -> list[AdapterVersion]:
    """All versions of one adapter or of all, by name, newest first; none for an unknown name.

    Models without a bundle are left out.

    Raises:
        TrackingError: The server cannot be used.
    """
    with plain_errors(client.tracking_uri):
        if name is not None:
            return find_versions(client, name)
        # Two searches for any number of names.
        search = functools.partial(client.search_registered_models, max_results=PAGE_SIZE)
        aliases = {model.name: model.aliases for model in all_pages(search)}
        found = [_version(entry, aliases.get(entry.name, {})) for entry in _entries(client, None)]
    return sorted(found, key=lambda version: (version.name, -version.version))


def find_versions(
    client: MlflowClient,
    name: str,
    *,
    digest: str | None = None,
    alias: str | None = None,
    number: int | None = None,
) -> list[AdapterVersion]:
    """Versions of one adapter, newest first; MLflow's errors pass through.

    The server selects, so that one version among many is found as fast as among few.

    Args:
        client: Of the server.
        name: Of the adapter.
        digest: Only versions of the bundle with this digest.
        alias: Only the version with this alias.
        number: Only the version with this number.
    """
    require_name(name)
    model = if_exists(client.get_registered_model, name)
    if model is None:
        return []
    if alias is not None:
        if alias not in model.aliases:
            return []
        number = int(model.aliases[alias])
    wanted = f"name = '{name}'"
    if number is not None:
        wanted += f" and version_number = {number}"
    if digest is not None:
        wanted += f" and tags.`{DIGEST_TAG}` = '{digest}'"
    found = [_version(entry, model.aliases) for entry in _entries(client, wanted)]
    return sorted(found, key=lambda version: -version.version)


def _entries(client: MlflowClient, wanted: str | None) -> list[Any]:
    """MLflow's entries of versions with a bundle."""
    entries = all_pages(
        functools.partial(client.search_model_versions, wanted, max_results=PAGE_SIZE)
    )
    return [entry for entry in entries if DIGEST_TAG in entry.tags]


def _version(entry: Any, aliases: Mapping[str, Any]) -> AdapterVersion:
    tags = unfold(entry.tags)
    metrics = {
        key.removeprefix(METRIC_PREFIX): float(value)
        for key, value in tags.items()
        if key.startswith(METRIC_PREFIX)
    }
    return AdapterVersion(
        name=entry.name,
        version=int(entry.version),
        aliases=tuple(sorted(k for k, v in aliases.items() if int(v) == int(entry.version))),
        digest=entry.tags[DIGEST_TAG],
        run_id=entry.run_id or None,
        tags={k: v for k, v in tags.items() if not k.startswith(METRIC_PREFIX)},
        metrics=metrics,
        retired=_retirement(entry.tags.get(RETIRED_TAG)),
        created_at=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
    )


def _retirement(tag: str | None) -> str:
    if tag is None:
        return ""
    try:
        record = json.loads(tag)
        return f"{record['reason']} ({record['who']}, {record['at']})"
    except (ValueError, TypeError, KeyError):
        return tag or "(no reason)"  # somebody set the tag by hand


def _not_found_message(client: MlflowClient, ref: AdapterRef) -> str:
    """Message with the adapter's versions and aliases, or else with the adapters that exist."""
    versions = list_versions(client, ref.name)
    if versions:
        known = [str(version.ref) for version in versions[:10]]
        known += [f"{ref.name}@{alias}" for version in versions for alias in version.aliases]
        return f"adapter {ref}: not found; allowed: {', '.join(known)}. Choose one of these."
    names = sorted({version.name for version in list_versions(client)})
    return (
        f"adapter {ref}: not found; allowed: {', '.join(names[:20]) or '(none registered yet)'}. "
        "Choose one of these or register it."
    )
