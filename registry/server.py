"""Serving the MLflow UI on a local database."""

from __future__ import annotations

import sys


def ui_command(tracking_uri: str, port: int) -> list[str]:
    """The command that serves a database's UI on this machine's loopback address alone."""
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", tracking_uri),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
    ]
