"""Writes a report as files: the leaderboard, the page and the pictures."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import SweepSpecError
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.paths import PAGE_FILE, REPORT_FOLDER
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.pages.page import build_page
from orchestrator.report.importance import draw_importance, find_importance
from orchestrator.report.plots import draw_learning_curves
from orchestrator.report.report import SweepReport, build_report
from orchestrator.report.tradeoffs import draw_tradeoffs, find_tradeoffs
from orchestrator.spec.sweep import SweepSpec, recorded_sweep
from orchestrator.wording import refusal
from trainables.whole import replace_file


def write_report(
    report: SweepReport, spec: SweepSpec, history: SweepHistory, folder: Path
) -> list[Path]:
    """Write the files of a report; an interrupted write leaves no partial file.

    The files are `leaderboard.csv`, `report.html`, `learning_curves.png`, and, with enough trials
    to compare, `pareto.png` and `importance.png`. Pictures of an earlier report that the new
    report does not have are removed.

    Returns:
        The files: the table, then the page, then the pictures.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    best = None if report.best is None else report.best.trial
    found_by = None if report.best is None else report.best.found_by
    importance = find_importance(spec, history)
    tradeoffs = find_tradeoffs(report.leaderboard, metric=report.metric, mode=report.mode)
    contents: dict[str, bytes | None] = {
        "leaderboard.csv": report.leaderboard.to_csv(index=False).encode(),
        PAGE_FILE: build_page(report, spec, history, importance).encode(),
        "learning_curves.png": draw_learning_curves(
            history,
            title=spec.name,
            metric=report.metric,
            best=best,
            base=report.base_metrics.get("validation", {}).get(report.metric),
        ),
        "pareto.png": draw_tradeoffs(
            tradeoffs, title=spec.name, metric=report.metric, best=found_by
        )
        if tradeoffs
        else None,
        "importance.png": draw_importance(importance, title=spec.name)
        if importance.parts
        else None,
    }
    for name, content in contents.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            replace_file(folder / name, content)
    return [folder / name for name, content in contents.items() if content is not None]


def rebuild_report(
    history: SweepHistory, storage: str, out: Path | None = None
) -> tuple[SweepReport, list[Path]]:
    """The report of a sweep from its history, written again.

    Args:
        history: History of a sweep that has started.
        storage: The sweep's folder or bucket.
        out: Folder to write; the sweep's own report folder when not given.

    Returns:
        The report, and the files as `write_report` lists them.

    Raises:
        SweepSpecError: `out` is a file.
        OSError: The folder cannot be written.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise SweepSpecError(
            refusal("--out", str(out), "a folder", "Name a new folder.", flaw="which is a file")
        )
    kept = SweepStorage(storage)
    spec = recorded_sweep(history.spec or {})
    report = build_report(spec, history, kept.folder)
    files = write_report(report, spec, history, out or kept.folder / REPORT_FOLDER)
    if out is None:
        kept.push(REPORT_FOLDER)
    return report, files
