"""MLflow's pages for a local database, served by a child process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.errors import TrackingError
from registry.tracking.database import ARTIFACTS_FOLDER, SQLITE, fit_for_use

_SWITCHES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its jobs would run in more processes
    "PYTHONWARNINGS": "ignore",
}
UI_PORT = 5000
"""Port of the pages, unless another one is chosen."""

_START_S = 180.0
_HOST = "127.0.0.1"
_HIGHEST_PORT = 65535

_PAGES_HOST = "lorchestra.localhost"
"""Browsers resolve it to the loopback address (RFC 6761). On `localhost` and `127.0.0.1`, MLflow's
pages open a chat panel over the table of runs in a new browser profile."""


def pages_address(port: int) -> str:
    """Address for browsers of the pages that `serve_ui` serves."""
    return f"http://{_PAGES_HOST}:{port}"


@contextmanager
def serve_ui(database: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """An MLflow server on the loopback address, which answers when the block begins.

    The server's output goes to `mlflow-ui.log` beside the database.

    Raises:
        TrackingError: The port is taken, the database cannot be used, or the server did not start.
    """
    log = database.with_name("mlflow-ui.log")
    command = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", f"{SQLITE}{database}"),
        *("--artifacts-destination", (database.parent / ARTIFACTS_FOLDER).as_uri()),
        *("--host", _HOST, "--port", str(port), "--workers", "1"),
        *("--allowed-hosts", f"localhost:*,{_HOST}:*,{_PAGES_HOST}:*"),
        *("--cors-allowed-origins", pages_address(port)),
    ]
    _require_free(port)
    with fit_for_use(database):
        pass  # corrects the addresses of a folder that was moved
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | _SWITCHES
        )
    try:
        _await_health(server, port, log)
        yield server
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _require_free(port: int) -> None:
    """Refuse a port on which no server can be started, with a free port as the remedy.

    Raises:
        TrackingError: The port is no port, is taken, or needs a permission.
    """
    if not 1 <= port <= _HIGHEST_PORT:
        flaw = ""
    elif (error := _bind_error(port)) is None:
        return
    else:
        is_denied = isinstance(error, PermissionError)
        flaw = ", which only root may use" if is_denied else ", which another program uses"
    free = next((one for one in range(5000, 5100) if _bind_error(one) is None), 8000)
    raise TrackingError(
        f"--port: got {port}{flaw}; allowed: a free port from 1 to {_HIGHEST_PORT}. Try --port "
        f"{free}."
    )


def _bind_error(port: int) -> OSError | None:
    """The error of listening on a port; `None` if the port is free."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((_HOST, port))
        except OSError as error:
            return error
    return None


def _await_health(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not _answers(port):
        if server.poll() is not None or time.monotonic() > deadline:
            raise TrackingError(
                f"--port: the MLflow server did not start on port {port}; see {log}. "
                "Choose another port, or correct the error in the log."
            )
        time.sleep(0.3)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{_HOST}:{port}/health", timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except (urllib.error.URLError, OSError):
        return False
