"""MLflow's pages for a local database, served by a child process."""

from __future__ import annotations

import os
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
_START_S = 180.0


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
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]
    if _answers(port):
        raise TrackingError(
            f"--port: got {port}, which another server uses; allowed: a free port. Choose another "
            "port."
        )
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
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except (urllib.error.URLError, OSError):
        return False
