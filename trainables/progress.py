"""How far a trial got, on disk: its newest state and every report up to it.

    <state_dir>/step-00000040/state.*        what `save_state` wrote
    <state_dir>/step-00000040/reports.json   the metrics of step 20, of step 40

The reports lie beside the weights they were measured on, so a trial that goes on after a crash can
say again, word for word, what nobody heard.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPORTS_FILE = "reports.json"

Metrics = Mapping[str, float]


def save_progress(
    state_dir: Path, step: int, reports: Sequence[Metrics], save: Callable[[Path], None]
) -> Path:
    """Keep a state and its reports, whole or not at all, in place of an older one.

    Args:
        state_dir: The trial's folder; made when missing.
        step: Step of the state.
        reports: Metrics of each report so far, oldest first.
        save: Writes the state into the folder it is given.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    writing = Path(tempfile.mkdtemp(prefix=".writing-", dir=state_dir))
    save(writing)
    (writing / REPORTS_FILE).write_text(json.dumps([dict(report) for report in reports]))
    kept = state_dir / f"step-{step:08d}"
    if kept.exists():  # a seat that trained the same steps again, to the same weights
        shutil.rmtree(kept)
    writing.rename(kept)
    for other in state_dir.iterdir():
        if other != kept:
            shutil.rmtree(other, ignore_errors=True)
    return kept


def find_progress(state_dir: Path) -> Path | None:
    """The newest whole state, or `None` for a trial that has saved none."""
    return max(state_dir.glob("step-*"), default=None)


def load_reports(kept: Path) -> list[dict[str, Any]]:
    """The reports saved with a state, oldest first."""
    reports: list[dict[str, Any]] = json.loads((kept / REPORTS_FILE).read_text())
    return reports
