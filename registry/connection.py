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
    # MLflow's own 7 tries take minutes (3 took 13 s) while a sweep waits; who cannot deliver
    # keeps what it has and tries again later.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
# What MLflow says at INFO while it lays out a new database.
_CHATTY = ("alembic", "mlflow.store.db.utils")


def connect(tracking_uri: str) -> MlflowClient:
    """A client for tracking and registry alike; lays out the tables of a new database.

    MLflow reads its switches from the environment, so they are set there, where the user has not
    set them.

    Raises:
        TrackingError: The database cannot be opened.
    """
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    set_telemetry_client()  # MLflow read the switch when it was imported: read it again
    with plain_errors(tracking_uri), _quiet():
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        if not is_server(tracking_uri):
            client.search_experiments(max_results=1)
    return client


def is_server(tracking_uri: str) -> bool:
    """Whether the address is an MLflow server's rather than a database's."""
    return tracking_uri.startswith(("http://", "https://"))


@contextmanager
def plain_errors(tracking_uri: str) -> Iterator[None]:
    """Turn MLflow's errors into `TrackingError`, with the server's address and a remedy."""
    try:
        yield
    except MlflowException as error:
        raise TrackingError(
            f"tracking server {without_secrets(tracking_uri)}: {without_secrets(str(error))} "
            "Check that it runs and that you may write to it, or set MLFLOW_TRACKING_URI."
        ) from error


def is_missing(error: MlflowException) -> bool:
    """Whether MLflow says that what was asked for does not exist."""
    return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")


def is_already_there(error: MlflowException) -> bool:
    """Whether MLflow says that what was to be made exists."""
    return bool(error.error_code == "RESOURCE_ALREADY_EXISTS")


def without_secrets(text: str) -> str:
    """The text with user and password taken out of its addresses."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


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
