"""Garbage: stored models without a version, after a crash or a deletion.

The files of a version belong to an MLflow logged model, which is made before the version. A killed
registration and a deleted version leave such a model behind until it is collected.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from registry.errors import TrackingError
from registry.tracking.connection import if_exists, is_missing, plain_errors
from registry.tracking.search import PAGE_SIZE, all_pages
from registry.versions.versions import DIGEST_TAG, MODEL_TAG, VERSION_TAG

logger = logging.getLogger(__name__)

_OURS = "name = 'adapter'"
_EXPERIMENTS_AT_ONCE = 100
_MODELS_AT_ONCE = 100  # most per page of a server


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """A logged model that no version points at.

    Attributes:
        model_id: MLflow's id of the model.
        digest: Digest of the bundle in the model.
        run_id: Run that trained the adapter, if one is recorded.
        location: Address of the files.
        changed_at: Time of the last change.
        bytes: Size of the files.
    """

    model_id: str
    digest: str
    run_id: str | None
    location: str
    changed_at: datetime
    bytes: int


def find_garbage(client: MlflowClient, *, older_than_s: float = 86400) -> list[Garbage]:
    """Logged models of adapters without any registered version.

    Args:
        client: Of the server.
        older_than_s: Models changed within this time are left out: their registration may be in
            progress.

    Returns:
        The oldest first; never a model that other software made.

    Raises:
        TrackingError: The server cannot be used.
    """
    with plain_errors(client.tracking_uri):
        # Models are listed before versions, so that a version made in between is seen.
        newest_ms = (time.time() - older_than_s) * 1000
        models = [model for model in find_models(client) if _changed_ms(model) <= newest_ms]
        needed = _find_needed(client)
        garbage = [
            Garbage(
                model_id=model.model_id,
                digest=model.params[DIGEST_TAG],
                run_id=model.source_run_id or None,  # a server says "" for none
                location=model.artifact_location,
                changed_at=datetime.fromtimestamp(_changed_ms(model) / 1000, UTC),
                bytes=_size(client, model.model_id),
            )
            for model in models
            if not _is_needed(client, model, needed)
        ]
    return sorted(garbage, key=lambda one: (one.changed_at, one.model_id))


def collect_garbage(client: MlflowClient, found: Sequence[Garbage]) -> list[Garbage]:
    """Delete garbage, after checking again that no version uses the model.

    The record of a model is deleted after its files, so that an interrupted call can be repeated.

    Args:
        client: Of the server.
        found: Result of `find_garbage`.

    Returns:
        The deleted models, without those that came into use or disappeared meanwhile.

    Raises:
        TrackingError: The server cannot be used, or forbids deletion.
    """
    deleted = []
    with plain_errors(client.tracking_uri):
        for one in found:
            model = if_exists(client.get_logged_model, one.model_id)
            if model is None or not _is_ours(model):
                continue
            if _changed_ms(model) != round(one.changed_at.timestamp() * 1000):
                logger.info("%s: changed meanwhile and kept", one.model_id)
            elif _is_needed(client, model, _find_needed(client)):
                logger.info("%s: used by a version now and kept", one.model_id)
            else:
                _delete(client, model)
                deleted.append(one)
    return deleted


def find_models(client: MlflowClient, page_size: int = _MODELS_AT_ONCE) -> Iterator[LoggedModel]:
    """All logged models of adapters, in all experiments.

    Raises:
        MlflowException: The server cannot be used.
    """
    listed = all_pages(functools.partial(client.search_experiments, max_results=PAGE_SIZE))
    experiments = [experiment.experiment_id for experiment in listed]
    for start in range(0, len(experiments), _EXPERIMENTS_AT_ONCE):
        search = functools.partial(
            client.search_logged_models,
            experiments[start : start + _EXPERIMENTS_AT_ONCE],
            filter_string=_OURS,
            max_results=page_size,
        )
        yield from filter(_is_ours, all_pages(search))


def _find_needed(client: MlflowClient) -> str:
    """File addresses of the versions of all registered models, ours or not."""
    versions = all_pages(functools.partial(client.search_model_versions, max_results=PAGE_SIZE))
    return "\n".join(
        place or ""
        for version in versions
        for place in (version.source, version.model_id, version.tags.get(MODEL_TAG))
    )


def _is_needed(client: MlflowClient, model: LoggedModel, needed: str) -> bool:
    # A source is the address of the files or models:/ID; both contain the id.
    if model.model_id in needed or model.artifact_location in needed:
        return True
    name, _, number = model.tags.get(VERSION_TAG, "").rpartition("/")
    if not name:
        return False
    try:
        client.get_model_version(name, number)
    except MlflowException as error:
        # A server lists only what the user may read: a refused version can exist.
        return not is_missing(error)
    return True


def _is_ours(model: LoggedModel) -> bool:
    return model.name == "adapter" and DIGEST_TAG in model.params


def _size(client: MlflowClient, model_id: str, folder: str | None = None) -> int:
    """Bytes of a model's files, in a folder or all."""
    files = client.list_logged_model_artifacts(model_id, folder)
    return sum(
        _size(client, model_id, file.path) if file.is_dir else int(file.file_size or 0)
        for file in files
    )


def _changed_ms(model: LoggedModel) -> int:
    """Time of a model's last change in milliseconds since the epoch."""
    return int(max(model.creation_timestamp, model.last_updated_timestamp))


def _delete(client: MlflowClient, model: LoggedModel) -> None:
    repository = get_artifact_repository(model.artifact_location, client.tracking_uri)
    try:
        repository.delete_artifacts()
    except OSError as error:  # errors of the HTTP client included
        raise TrackingError(
            f"model {model.model_id}: its files at {model.artifact_location} cannot be deleted "
            f"({error}); allowed: deleting them. Check that you may delete there."
        ) from error
    client.delete_logged_model(model.model_id)
    logger.info("%s: deleted, with its files", model.model_id)
