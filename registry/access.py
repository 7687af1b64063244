"""Whether a sweep's user is let into the tracking server, asked before hours of training.

Nothing is written to find out. Each operation that recording will need is asked for in a way that
the server must refuse as incomplete (a run whose start is no time, a model without a name): MLflow
looks at who asks before it looks at what is asked for, so one who may not gets 403, and one who
may gets 400 (`_before_request` in mlflow/server/auth/__init__.py, `_get_request_message` in
mlflow/server/handlers.py, 3.17).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from registry.connection import is_server, prepare, without_secrets
from registry.errors import TrackingError

logger = logging.getLogger(__name__)

ADAPTERS_EXPERIMENT = "lorchestra-adapters"
"""Where `registry.ledger` keeps the moves of aliases: whoever promotes writes runs there."""

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_PATIENCE_S = 10.0
_MAX_SAID_CHARS = 300
_TOO_BUSY = 429
_LOGIN = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


def check_access(tracking_uri: str, experiment: str, model: str | None = None) -> None:
    """Make sure that runs, and versions of a model and their aliases, could be written there.

    A server that does not answer is no error, as what it misses waits on disk: then there is a
    warning. A database is not opened; for a SQLite file, its folder must be writable.

    Args:
        tracking_uri: MLflow server or database.
        experiment: Where runs go; one that there is not is made later.
        model: Registered model that gets versions, if any does.

    Raises:
        TrackingError: It is no address of either kind, no MLflow answers there, it does not let
            this user in, or the user may not do what recording takes.
    """
    if not is_server(tracking_uri):
        _require_database(tracking_uri)
        return
    prepare()
    server = _Server(address=tracking_uri.rstrip("/"), deadline=time.monotonic() + _PATIENCE_S)
    try:
        _require_runs(server, experiment)
        if model is not None:
            _require_versions(server, model)
            _require_runs(server, ADAPTERS_EXPERIMENT)
    except _AwayError as away:
        logger.warning(
            "tracking server %s does not answer (%s): records wait on disk until it does",
            without_secrets(tracking_uri),
            away,
        )


class _AwayError(Exception):
    """The server is not there, or too busy or too broken to say anything."""


@dataclass(frozen=True)
class _Answer:
    status: int
    values: Mapping[str, Any] | None  # None when it is no JSON object
    said: str

    @property
    def is_missing(self) -> bool:
        return self.values is not None and (
            self.values.get("error_code") == "RESOURCE_DOES_NOT_EXIST"
        )


@dataclass(frozen=True, kw_only=True)
class _Server:
    """Asks a server with the credentials that MLflow's client has.

    Attributes:
        address: Its tracking URI.
        deadline: When patience ends, by the monotonic clock.
    """

    address: str
    deadline: float

    def ask(self, method: str, path: str, what: str, **values: Any) -> _Answer:
        """What the server answers.

        Args:
            method: Of HTTP.
            path: Below MLflow's REST API.
            what: What one must be allowed to do, for the error.
            values: The request.

        Raises:
            TrackingError: The user is not let in, or may not do that, or this is no MLflow.
        """
        answer = self._call(method, path, values)
        if answer.status == 401:
            raise TrackingError(
                f"tracking server {self.name}: does not let in {_who(self.address)} (it says: "
                f"{answer.said}); allowed: its users. Set {_LOGIN}, or MLFLOW_TRACKING_TOKEN, or "
                "ask its administrator for an account."
            )
        if answer.status == 403:
            raise TrackingError(
                f"tracking server {self.name}: {_who(self.address)} may not {what} (it says: "
                f"{answer.said}); allowed: users with EDIT on it. Ask its administrator for the "
                f"permission, or set {_LOGIN} of another user."
            )
        if answer.status >= 500 or answer.status in (408, _TOO_BUSY):
            raise _AwayError(f"{answer.status}: {answer.said}")
        if answer.values is None:
            raise TrackingError(
                f"tracking server {self.name}: what answers there is no MLflow server "
                f"({answer.status}: {answer.said}); allowed: the address of one, as "
                "http://host:5000. Correct MLFLOW_TRACKING_URI."
            )
        return answer

    @property
    def name(self) -> str:
        return without_secrets(self.address)

    def _call(self, method: str, path: str, values: Mapping[str, Any]) -> _Answer:
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise _AwayError("it is slow")
        body = {"params": values} if method == "GET" else {"json": values}
        try:
            response = http_request(
                get_default_host_creds(self.address),
                f"/api/2.0/mlflow/{path}",
                method,
                max_retries=0,
                timeout=left_s,
                raise_on_status=False,
                **body,
            )
        except MlflowException as error:
            raise _AwayError(without_secrets(str(error))) from error
        try:
            decoded = response.json()
        except ValueError:
            decoded = None
        said = decoded.get("message") if isinstance(decoded, dict) else None
        words = " ".join(str(said or response.text).split())
        return _Answer(
            status=response.status_code,
            values=decoded if isinstance(decoded, dict) else None,
            said=without_secrets(words[:_MAX_SAID_CHARS]),
        )


def _require_runs(server: _Server, experiment: str) -> None:
    what = f"see experiment {experiment!r}"
    found = server.ask("GET", "experiments/get-by-name", what, experiment_name=experiment)
    if found.is_missing:
        server.ask("POST", "experiments/create", "make experiments")
        return
    entity = (found.values or {}).get("experiment", {})
    if entity.get("lifecycle_stage") == "deleted":
        raise TrackingError(
            f"experiment {experiment!r}: it was deleted; allowed: a new name or an active "
            f"experiment. Restore it: mlflow experiments restore -x {entity['experiment_id']}"
        )
    what = f"write runs to experiment {experiment!r}"
    number = entity.get("experiment_id")
    server.ask("POST", "runs/create", what, experiment_id=number, start_time="never")


def _require_versions(server: _Server, model: str) -> None:
    found = server.ask("GET", "registered-models/get", f"see model {model!r}", name=model)
    if found.is_missing:
        server.ask("POST", "registered-models/create", "make registered models")
    else:
        what = f"make versions of model {model!r}"
        server.ask("POST", "model-versions/create", what, name=model)


def _require_database(tracking_uri: str) -> None:
    kind = tracking_uri.partition("://")[0].partition("+")[0]
    if "://" not in tracking_uri or kind not in _DATABASES:
        raise TrackingError(
            f"MLFLOW_TRACKING_URI: got {without_secrets(tracking_uri)!r}; allowed: http:// or "
            "https:// and a server, sqlite:/// and a file, or the address of a PostgreSQL, MySQL "
            "or SQL Server database. Correct it, or unset it to record in a file."
        )
    if kind == "sqlite":
        path = Path(tracking_uri.partition(":///")[2])
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not (folder.is_dir() and os.access(path if path.exists() else folder, os.W_OK)):
            raise TrackingError(
                f"MLFLOW_TRACKING_URI: got {tracking_uri}; allowed: a SQLite file in a writable "
                f"folder, and {folder} cannot be written. Mend its permissions or choose another "
                "file."
            )


def _who(address: str) -> str:
    """The user as the server sees it, without the password."""
    creds = get_default_host_creds(address)
    if creds.username and creds.password:
        return f"user {creds.username!r}"
    if creds.token:
        return "the holder of MLFLOW_TRACKING_TOKEN"
    in_address = urlsplit(address).username
    return f"user {in_address!r}" if in_address else "a user without name and password"
