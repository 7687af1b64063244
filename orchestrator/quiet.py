"""Keeps the terminal for the product's own lines: output of libraries goes to a file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TextIO

OWN = ("orchestrator", "trainables", "registry")
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def library_chatter_to(file: Path, before: str = "") -> Iterator[None]:
    """Send loggers, warnings and prints of this process to a file while the block runs.

    A console that was made before the block, with an explicit stream, still writes to its stream.

    Args:
        file: The file to append to; a missing file or folder is created.
        before: Earlier output to write first; see `library_chatter_held`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", buffering=1) as stream:
        stream.write(before)
        with _library_chatter_on(stream):
            yield


@contextmanager
def library_chatter_held() -> Iterator[StringIO]:
    """Collect the output of libraries in memory, for use before there is a log file."""
    held = StringIO()
    with _library_chatter_on(held):
        yield held


@contextmanager
def _library_chatter_on(stream: TextIO) -> Iterator[None]:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger()
    kept = (root.handlers[:], root.level, {name: logging.getLogger(name).level for name in OWN})
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in OWN:
        logging.getLogger(name).setLevel(logging.INFO)
    showing = warnings.showwarning
    logging.captureWarnings(True)
    try:
        # Ray prints messages about its processes.
        with redirect_stdout(stream), redirect_stderr(stream):
            yield
    finally:
        logging.captureWarnings(False)
        warnings.showwarning = showing
        root.handlers[:], level, own_levels = kept
        root.setLevel(level)
        for name, own_level in own_levels.items():
            logging.getLogger(name).setLevel(own_level)


def hush_noisy_loggers() -> None:
    """Make libraries with log handlers of their own write through the root logger instead.

    Call this function after importing the libraries.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("ray", "mlflow", "optuna", "alembic", "datasets"):
            logger = logging.getLogger(name)
            logger.handlers[:] = []
            logger.propagate = True
