"""Files that no adapter version needs: of registrations that were cut short, of deleted versions.

A version's files are those of an MLflow logged model, made and filled before the version is. What
a killed process leaves of that, and what a deleted version leaves, stays until it is collected.
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

from registry.connection import is_missing, plain_errors
from registry.errors import TrackingError
from registry.search import PAGE_SIZE, all_pages
from registry.versions import DIGEST_TAG, MODEL_TAG, VERSION_TAG

logger = logging.getLogger(__name__)

_OURS = "name = 'adapter'"
_EXPERIMENTS_AT_ONCE = 100
_MODELS_AT_ONCE = 100  # what a server gives per page at most


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """A logged model that no version points at.

    Attributes:
        model_id: MLflow's id of it.
        digest: Of the bundle it was made for.
        run_id: Run that trained that, if it was recorded.
        location: Where its files are.
        changed_at: When anything was last done to it.
        bytes: Size of its files.
    """

    model_id: str
    digest: str
    run_id: str | None
    location: str
    changed_at: datetime
    bytes: int


def find_garbage(client: MlflowClient, *, older_than_s: float = 86400) -> list[Garbage]:
    """Logged models made for adapters that no version of any registered model points at.

    Args:
        client: Of the server.
        older_than_s: Models that were touched since are left out: they may be on their way to a
            version.

    Returns:
        The oldest first. Models that others made are never among them.

    Raises:
        TrackingError: The server cannot be used.
    """
    with plain_errors(client.tracking_uri):
        # The models before the versions: one that becomes a version meanwhile is not missed.
        models = [model for model in find_models(client) if _age_s(model) >= older_than_s]
        needed = _find_needed(client)
        garbage = [
            _describe(client, model) for model in models if not _is_needed(client, model, needed)
        ]
    return sorted(garbage, key=lambda one: (one.changed_at, one.model_id))


def collect_garbage(client: MlflowClient, found: Sequence[Garbage]) -> list[Garbage]:
    """Delete files and records of garbage, each after another look whether a version needs it.

    The record, which says where the files are, goes last: interrupted, the rest is found again.

    Args:
        client: Of the server.
        found: Of `find_garbage`.

    Returns:
        What was deleted; what has come into use since, or is gone already, is not among it.

    Raises:
        TrackingError: The server cannot be used, or does not let you delete.
    """
    deleted = []
    with plain_errors(client.tracking_uri):
        for one in found:
            model = _look_up(client, one.model_id)
            if model is None or not _is_ours(model):
                continue
            if _ms(model) != round(one.changed_at.timestamp() * 1000):
                logger.info("%s: was touched meanwhile and stays", one.model_id)
            elif _is_needed(client, model, _find_needed(client)):
                logger.info("%s: a version points at it by now", one.model_id)
            else:
                _delete(client, model)
                deleted.append(one)
    return deleted


def find_models(client: MlflowClient, page_size: int = _MODELS_AT_ONCE) -> Iterator[LoggedModel]:
    """Every logged model that was made for an adapter, in whatever experiment.

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
    """All that versions of any registered model, ours or not, say of where their files are."""
    versions = all_pages(functools.partial(client.search_model_versions, max_results=PAGE_SIZE))
    return "\n".join(
        place or ""
        for version in versions
        for place in (version.source, version.model_id, version.tags.get(MODEL_TAG))
    )


def _is_needed(client: MlflowClient, model: LoggedModel, needed: str) -> bool:
    # A source is the place of the files, or models:/ID: either holds the id.
    if model.model_id in needed or model.artifact_location in needed:
        return True
    name, _, number = model.tags.get(VERSION_TAG, "").rpartition("/")
    if not name:
        return False
    try:
        client.get_model_version(name, number)
    except MlflowException as error:
        # A server with users lists only what one may read: what it refuses can be there.
        return not is_missing(error)
    return True


def _is_ours(model: LoggedModel) -> bool:
    return model.name == "adapter" and DIGEST_TAG in model.params


def _look_up(client: MlflowClient, model_id: str) -> LoggedModel | None:
    try:
        return client.get_logged_model(model_id)
    except MlflowException as error:
        if is_missing(error):
            return None
        raise


def _describe(client: MlflowClient, model: LoggedModel) -> Garbage:
    return Garbage(
        model_id=model.model_id,
        digest=model.params[DIGEST_TAG],
        run_id=model.source_run_id or None,  # a server says "" for none
        location=model.artifact_location,
        changed_at=datetime.fromtimestamp(_ms(model) / 1000, UTC),
        bytes=_size(client, model.model_id),
    )


def _size(client: MlflowClient, model_id: str, folder: str | None = None) -> int:
    """Bytes of a model's files."""
    files = client.list_logged_model_artifacts(model_id, folder)
    return sum(
        _size(client, model_id, file.path) if file.is_dir else int(file.file_size or 0)
        for file in files
    )


def _ms(model: LoggedModel) -> int:
    """Milliseconds since the epoch of its last change."""
    return int(max(model.creation_timestamp, model.last_updated_timestamp))


def _age_s(model: LoggedModel) -> float:
    return time.time() - _ms(model) / 1000


def _delete(client: MlflowClient, model: LoggedModel) -> None:
    repository = get_artifact_repository(model.artifact_location, client.tracking_uri)
    try:
        repository.delete_artifacts()
    except OSError as error:  # those of the HTTP client are such, too
        raise TrackingError(
            f"model {model.model_id}: its files at {model.artifact_location} cannot be deleted "
            f"({error}); allowed: deleting them. Check that you may delete there."
        ) from error
    client.delete_logged_model(model.model_id)
    logger.info("%s: deleted, with its files", model.model_id)
