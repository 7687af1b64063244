"""Histories of earlier sweeps in a folder, as far as they can be read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from orchestrator.errors import SweepStorageError
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.paths import EVENTS_FILE

logger = logging.getLogger(__name__)

MOST_LOGS = 20
"""Earlier sweeps that are read, the newest ones."""


def earlier_histories(runs: Path) -> Iterator[SweepHistory]:
    """Histories of the newest sweeps in a folder, the oldest of them first."""
    logs = [log for log in runs.glob(f"*/{EVENTS_FILE}") if log.is_file()]
    for log in sorted(logs, key=lambda log: log.stat().st_mtime)[-MOST_LOGS:]:
        history = _read(log, log.stat().st_mtime_ns)
        if history is not None:
            yield history


# A plan asks for speeds and for memory; the time of the last change is part of the key.
@lru_cache(maxsize=MOST_LOGS)
def _read(log: Path, changed_at: int) -> SweepHistory | None:
    try:
        return SweepHistory.read(log)
    except (SweepStorageError, OSError) as error:
        logger.info("%s tells nothing of speed and memory: %s", log, error)
        return None
