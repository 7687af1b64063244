"""The connection to MLflow: its address, a quiet client without telemetry, plain errors."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.telemetry import set_telemetry_client

from registry.errors import TrackingError
from registry.tracking.database import ARTIFACTS_FOLDER, SQLITE, fit_for_use, sqlite_file

_SWITCHES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # After a lost answer MLflow's client repeats a POST, and may create a run or version twice:
    # callers must search for the run or version before trying again. MLflow's 7 tries also take
    # minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # Instead of 120 s: a hanging server is noticed within a minute; a server that stores a large
    # adapter before answering must finish in this time.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
# Loggers that report at INFO while MLflow creates the tables of a new database.
_CHATTY = ("alembic", "mlflow.store.db.utils")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def connect(tracking_uri: str) -> MlflowClient:
    """A client for tracking and registry; creates the tables of a new database.

    Several processes can do so at once; see `registry.tracking.database`.

    Raises:
        TrackingError: The address is of no server and no database, or the database cannot be
            opened.
    """
    require_address(tracking_uri)
    prepare()
    database = sqlite_file(tracking_uri)
    if database is not None:
        # MLflow keeps a store for each address: a relative one is stale after a change of folder.
        tracking_uri = f"{SQLITE}{database}"
    opening = nullcontext() if database is None else fit_for_use(database)
    with plain_errors(tracking_uri), _quiet(), opening:
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        if not is_server(tracking_uri):
            client.search_experiments(max_results=1)
    return client


def prepare() -> None:
    """Set MLflow's switches in the environment; the user's own settings stay."""
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    set_telemetry_client()  # MLflow read the switch when it was imported: read it again


def is_server(tracking_uri: str) -> bool:
    """Whether an address belongs to an MLflow server, not to a database."""
    return tracking_uri.startswith(("http://", "https://"))


def require_address(tracking_uri: str) -> None:
    """Refuse an address that is neither of a server nor of a database.

    Raises:
        TrackingError: The address is refused.
    """
    kind = tracking_uri.partition("://")[0].partition("+")[0]
    if not is_server(tracking_uri) and ("://" not in tracking_uri or kind not in _DATABASES):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI: got {without_secrets(tracking_uri)!r}; allowed: http:// or "
            "https:// and a server, sqlite:/// and a file, or the address of a PostgreSQL, MySQL "
            "or SQL Server database. Correct it, or unset it to record in a file."
        )


def tracking_uri_for(runs_dir: Path) -> tuple[str, str | None]:
    """Address of MLflow: `$MLFLOW_TRACKING_URI`, else a SQLite file in `runs_dir`.

    Returns:
        The tracking URI, and the address for artifacts (`None` for the server's choice).
    """
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named, artifact_location_for(named)
    folder = runs_dir.expanduser().resolve()
    tracking_uri = f"{SQLITE}{folder / 'mlflow.db'}"
    return tracking_uri, artifact_location_for(tracking_uri)


def artifact_location_for(tracking_uri: str) -> str | None:
    """Address for artifacts: `mlartifacts` beside a SQLite file, `None` for a server's choice.

    MLflow itself would put the artifacts of a SQLite file below the current folder.
    """
    database = sqlite_file(tracking_uri)
    return None if database is None else (database.resolve().parent / ARTIFACTS_FOLDER).as_uri()


@contextmanager
def plain_errors(tracking_uri: str) -> Iterator[None]:
    """Turn MLflow's errors into `TrackingError`, with the server's address and a remedy.

    Errors of the artifact store (HTTP, disk, S3) are turned as well.
    """
    try:
        yield
    except Exception as error:
        module = type(error).__module__.partition(".")[0]
        if not (isinstance(error, MlflowException | OSError) or module in ("boto3", "botocore")):
            raise
        raise TrackingError(
            f"tracking server {without_secrets(tracking_uri)}: {without_secrets(str(error))} "
            "Check that it runs and that you may write to it, or set MLFLOW_TRACKING_URI."
        ) from error


def if_exists(fetch: Callable[..., Any], *key: str) -> Any:
    """Result of a request of MLflow's client; `None` if MLflow reports a missing resource.

    Args:
        fetch: Method of the client, such as `client.get_run`.
        key: Arguments of `fetch`.
    """
    try:
        return fetch(*key)
    except MlflowException as error:
        if is_missing(error):
            return None
        raise


def is_missing(error: MlflowException) -> bool:
    """Whether MLflow reports a missing resource."""
    return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")


def is_already_there(error: MlflowException) -> bool:
    """Whether MLflow reports that a resource exists already."""
    return bool(error.error_code == "RESOURCE_ALREADY_EXISTS")


def without_secrets(text: str) -> str:
    """The text without users and passwords in addresses, and without MLflow's credentials."""
    for name in _SECRETS:
        secret = os.environ.get(name)
        if secret and len(secret) > 3:  # a shorter secret occurs in ordinary words
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
