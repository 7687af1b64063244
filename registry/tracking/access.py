"""Check before hours of training that the user may write to the tracking server.

Nothing is written. Each operation that recording needs is requested with an argument missing or
wrong (a run whose start is no time, a model without a name). MLflow checks permissions before
arguments, so a user without permission gets 403, and a user with permission gets 400
(`_before_request` in mlflow/server/auth/__init__.py, `_get_request_message` in
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

from registry.errors import TrackingError
from registry.tracking.connection import (
    connect,
    is_server,
    plain_errors,
    prepare,
    require_address,
    without_secrets,
)
from registry.tracking.database import sqlite_file
from registry.tracking.experiments import ADAPTERS_EXPERIMENT, deleted_experiment, require_active

logger = logging.getLogger(__name__)

_PATIENCE_S = 10.0
_GLANCE_S = 4.0
_ANY = "lorchestra"
_MAX_SAID_CHARS = 300
_TOO_BUSY = 429
_WRONG_HOST = "Invalid Host header"
"""MLflow's answer with status 403 to a name outside of its `--allowed-hosts`."""
_LOGIN = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


def check_access(tracking_uri: str, experiment: str, model: str | None = None) -> None:
    """Check that the user may write runs of an experiment and versions of a model.

    A server that does not answer causes a warning only, as records wait on disk until it does. A
    SQLite file must be whole, of this version of MLflow and in a writable folder; a missing one is
    not created. Other databases are not opened.

    Args:
        tracking_uri: MLflow server or database.
        experiment: Experiment of the runs; it need not exist.
        model: Registered model of the versions, if any are registered.

    Raises:
        TrackingError: The address names neither a server nor a database, other software answers
            at it, the user is unknown or lacks a permission, an experiment was deleted, or the
            database cannot be used.
    """
    if not is_server(tracking_uri):
        _require_database(tracking_uri, experiment, model)
        return
    prepare()
    server = _Server(address=tracking_uri.rstrip("/"), deadline=time.monotonic() + _PATIENCE_S)
    try:
        _require_runs(server, experiment)
        if model is not None:
            found = server.ask("GET", "registered-models/get", f"see model {model!r}", name=model)
            if found.is_missing:
                server.ask("POST", "registered-models/create", "make registered models")
            else:
                what = f"make versions of model {model!r}"
                server.ask("POST", "model-versions/create", what, name=model)
            _require_runs(server, ADAPTERS_EXPERIMENT)
    except _AwayError as away:
        logger.warning(
            "tracking server %s does not answer (%s): records wait on disk until it answers",
            without_secrets(tracking_uri),
            away,
        )


def reach(tracking_uri: str) -> str:
    """What answers at MLflow's address, as a sentence; nothing is written or created.

    Raises:
        TrackingError: A server does not answer or refuses the user, or a database cannot be used.
    """
    name = without_secrets(tracking_uri)
    if not is_server(tracking_uri):
        _require_database(tracking_uri, _ANY, None)
        database = sqlite_file(tracking_uri)
        if database is None:
            return f"{name} is used; it is not opened before a sweep"
        is_new = not database.exists()
        return f"{name} {'is made by the first sweep' if is_new else 'has the right schema'}"
    prepare()
    server = _Server(address=tracking_uri.rstrip("/"), deadline=time.monotonic() + _GLANCE_S)
    try:
        server.ask("GET", "experiments/get-by-name", "see experiments", experiment_name=_ANY)
    except _AwayError as away:
        raise TrackingError(
            f"tracking server {name}: it does not answer ({away}); allowed: a server that "
            "answers. Start it, correct MLFLOW_TRACKING_URI, or unset it to record in a file."
        ) from away
    return f"the server {name} answers"


class _AwayError(Exception):
    """The server does not answer, or answers as busy or broken."""


@dataclass(frozen=True)
class _Answer:
    status: int
    values: Mapping[str, Any] | None  # None if the body is no JSON object
    said: str

    @property
    def is_missing(self) -> bool:
        return self.values is not None and (
            self.values.get("error_code") == "RESOURCE_DOES_NOT_EXIST"
        )


@dataclass(frozen=True, kw_only=True)
class _Server:
    """Server to query with the credentials of MLflow's client.

    Attributes:
        address: Tracking URI.
        deadline: End of all retries, by the monotonic clock.
    """

    address: str
    deadline: float

    def ask(self, method: str, path: str, what: str, **values: Any) -> _Answer:
        """The server's answer to a request.

        Args:
            method: HTTP method.
            path: Path below MLflow's REST API.
            what: The operation, for the error message.
            values: Parameters of the request.

        Raises:
            TrackingError: The user is unknown or lacks the permission, or other software answers.
        """
        answer = self._call(method, path, values)
        if answer.status == 401:
            raise TrackingError(
                f"tracking server {self.name}: it does not accept {_who(self.address)} (it says: "
                f"{answer.said}); allowed: its users. Set {_LOGIN}, or MLFLOW_TRACKING_TOKEN, or "
                "ask its administrator for an account."
            )
        if answer.status == 403 and _WRONG_HOST in answer.said:
            host = urlsplit(self.address).netloc.rpartition("@")[2]
            raise TrackingError(
                f"tracking server {self.name}: it does not answer under this name (it says: "
                f"{answer.said}); allowed: names that it was started with. Start it with "
                f"--allowed-hosts or MLFLOW_SERVER_ALLOWED_HOSTS naming {host} too."
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
                f"tracking server {self.name}: it is no MLflow server "
                f"({answer.status}: {answer.said}); allowed: the address of an MLflow server, as "
                "http://host:5000. Correct MLFLOW_TRACKING_URI."
            )
        return answer

    @property
    def name(self) -> str:
        return without_secrets(self.address)

    def _call(self, method: str, path: str, values: Mapping[str, Any]) -> _Answer:
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise _AwayError(f"no answer within {_PATIENCE_S:g} s")
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
        raise deleted_experiment(server.address, experiment, str(entity["experiment_id"]))
    what = f"write runs to experiment {experiment!r}"
    number = entity.get("experiment_id")
    server.ask("POST", "runs/create", what, experiment_id=number, start_time="never")


def _require_database(tracking_uri: str, experiment: str, model: str | None) -> None:
    """Refuse an address of no database, and a SQLite file that cannot be used.

    Raises:
        TrackingError: The address or the file is refused, or an experiment in it was deleted.
    """
    require_address(tracking_uri)
    if tracking_uri.startswith("sqlite"):
        path = Path(tracking_uri.partition(":///")[2])
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not (folder.is_dir() and os.access(path if path.exists() else folder, os.W_OK)):
            raise TrackingError(
                f"MLFLOW_TRACKING_URI: got {tracking_uri}; allowed: a SQLite file in a writable "
                f"folder, and {folder} cannot be written. Correct its permissions or choose "
                "another file."
            )
    database = sqlite_file(tracking_uri)
    if database is None or not database.exists():
        return
    client = connect(tracking_uri)
    with plain_errors(tracking_uri):
        require_active(client, experiment)
        if model is not None:
            require_active(client, ADAPTERS_EXPERIMENT)


def _who(address: str) -> str:
    """The user whose credentials MLflow's client sends, for messages."""
    creds = get_default_host_creds(address)
    if creds.username and creds.password:
        return f"user {creds.username!r}"
    if creds.token:
        return "the holder of MLFLOW_TRACKING_TOKEN"
    in_address = urlsplit(address).username
    return f"user {in_address!r}" if in_address else "a user without name and password"
