"""A client of one tracking server: quiet, without telemetry or pickles, with plain errors."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.telemetry import set_telemetry_client

from registry.errors import TrackingError

_SWITCHES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's client repeats a POST whose answer was lost, which makes a run or a version twice:
    # whoever asks again must look first whether it is there. Its 7 tries would also take minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # Of silence, instead of 120: with no tries left, a server that hangs is found out in a
    # minute, and one that stores a large adapter before it answers has that long.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
# What MLflow says at INFO while it lays out a new database.
_CHATTY = ("alembic", "mlflow.store.db.utils")


def connect(tracking_uri: str) -> MlflowClient:
    """A client for tracking and registry alike; lays out the tables of a new database.

    Raises:
        TrackingError: The database cannot be opened.
    """
    prepare()
    with plain_errors(tracking_uri), _quiet():
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        if not is_server(tracking_uri):
            client.search_experiments(max_results=1)
    return client


def prepare() -> None:
    """Set MLflow's switches where it reads them, in the environment, unless the user has."""
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    set_telemetry_client()  # MLflow read the switch when it was imported: read it again


def is_server(tracking_uri: str) -> bool:
    """Whether the address is an MLflow server's rather than a database's."""
    return tracking_uri.startswith(("http://", "https://"))


@contextmanager
def plain_errors(tracking_uri: str) -> Iterator[None]:
    """Turn MLflow's errors into `TrackingError`, with the server's address and a remedy.

    So are those of its artifact store, which come as they are: of HTTP, of a disk, of S3.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(error, MlflowException | OSError) or _is_of_s3(error)):
            raise
        raise TrackingError(
            f"tracking server {without_secrets(tracking_uri)}: {without_secrets(str(error))} "
            "Check that it runs and that you may write to it, or set MLFLOW_TRACKING_URI."
        ) from error


def _is_of_s3(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in ("boto3", "botocore")


def is_missing(error: MlflowException) -> bool:
    """Whether MLflow says that what was asked for does not exist."""
    return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")


def is_already_there(error: MlflowException) -> bool:
    """Whether MLflow says that what was to be made exists."""
    return bool(error.error_code == "RESOURCE_ALREADY_EXISTS")


def without_secrets(text: str) -> str:
    """The text without users and passwords in addresses, and without MLflow's credentials."""
    for name in _SECRETS:
        secret = os.environ.get(name)
        if secret and len(secret) > 3:  # a shorter one is in half of all words
            text = text.replace(secret, "***")
    return re.sub(r"(?<=://)[^/\s]+@", "", text)


@contextmanager
def _quiet() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
