"""What a sweep found: its leaderboard, its best adapter, and what became of that one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.history import SweepHistory, TrialRecord
from orchestrator.leaderboard import build_leaderboard, describe_trial, setting_columns
from orchestrator.measurements import Comparison, compare_with_base
from orchestrator.members import group_key
from orchestrator.page import build_page
from orchestrator.plots import draw_learning_curves
from orchestrator.sections import Metric, Mode
from orchestrator.space import build_trial
from orchestrator.spec import SweepSpec
from orchestrator.wording import (
    format_difference,
    format_duration,
    format_metric,
    format_settings,
    one_line,
)
from trainables.spec import TrialSpec

_SHOWN_TRIALS = 10


@dataclass(frozen=True, kw_only=True)
class BestAdapter:
    """The adapter that leads the ranking, which is the one that goes before the gate.

    Attributes:
        ref: Its version, such as `wordnet-classes/1`; `None` when it was not registered.
        trial: Number of the trial that trained it.
        bundle: Its folder, as recorded: within the sweep's storage when relative.
        hyperparameters: All of them, under the names of `orchestrator.space.describe`.
        metrics: `eval_*` as last reported, on validation rows.
        test_metrics: `test_*`; empty when it was not evaluated on test rows.
        is_champion: The gate let it through.
    """

    ref: str | None
    trial: int
    bundle: str | None
    hyperparameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    test_metrics: Mapping[str, float]
    is_champion: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepReport:
    """A sweep, whole or so far.

    Attributes:
        status: `running`, what the sweep ended with, or `not started`.
        reason: Why it ended.
        leaderboard: One row per trial; see `orchestrator.leaderboard`.
        best: `None` until a trial ended with a finite value of the objective.
        base_metrics: Of the base alone by split, as the best adapter sits on it.
        phases: Seconds by name.
        promotion: Why there is a new champion or none.
    """

    name: str
    sweep_id: str | None
    storage: Path
    status: str
    reason: str
    leaderboard: pd.DataFrame
    best: BestAdapter | None
    base_metrics: Mapping[str, Mapping[str, float]]
    phases: Mapping[str, float]
    metric: Metric
    mode: Mode
    promotion: str

    def comparisons(self) -> list[Comparison]:
        """Base and best adapter side by side, on validation and on test rows."""
        adapter = {}
        if self.best is not None:
            adapter = {"validation": self.best.metrics, "test": self.best.test_metrics}
        return compare_with_base(self.base_metrics, adapter)


def build_report(spec: SweepSpec, history: SweepHistory, storage: Path) -> SweepReport:
    """Report a sweep as far as its history goes.

    Args:
        spec: The sweep.
        history: What is known of it.
        storage: Its folder.
    """
    # By validation rows, like every choice so far: test metrics are there to be believed.
    record = history.best(spec.objective)
    best = None if record is None else _describe_best(record, history)
    trained = build_trial(spec, {}) if record is None else TrialSpec.from_dict(record.spec)
    return SweepReport(
        name=spec.name,
        sweep_id=history.sweep_id,
        storage=storage,
        status=history.status or "not started",
        reason=history.reason,
        leaderboard=build_leaderboard(spec, history),
        best=best,
        base_metrics=dict(history.base_metrics.get(group_key(trained), {})),
        phases=dict(history.phases),
        metric=spec.objective.metric,
        mode=spec.objective.mode,
        promotion=_explain_promotion(spec, history, best),
    )


def _describe_best(record: TrialRecord, history: SweepHistory) -> BestAdapter:
    last = record.reports[-1].metrics if record.reports else {}
    verdict = _last_verdict(history, record.ref)
    return BestAdapter(
        ref=record.ref,
        trial=record.number,
        bundle=record.bundle,
        hyperparameters=describe_trial(record),
        metrics={name: value for name, value in last.items() if name.startswith("eval_")},
        test_metrics=dict(record.final_metrics or {}),
        is_champion=verdict is not None and bool(verdict["promoted"]),
    )


def _last_verdict(history: SweepHistory, ref: str | None) -> Mapping[str, Any] | None:
    judged = [each for each in history.promotions if each["ref"] == ref]
    return judged[-1] if judged else None


def _explain_promotion(spec: SweepSpec, history: SweepHistory, best: BestAdapter | None) -> str:
    if best is None:
        return "there is no adapter to promote"
    verdict = _last_verdict(history, best.ref)
    if verdict is not None:
        return str(verdict["reason"])
    if spec.register is None:
        return "the sweep registers nothing: it has no register section"
    if not spec.register.promote:
        return "register.promote is off"
    return f"the adapter of trial {best.trial} did not come before the gate yet"


# ------------------------------------------------------------------------------ for a terminal


def render_summary(report: SweepReport) -> RenderableType:
    """The end of a run as text for `rich.console.Console.print`; whole in 80 columns."""
    head = Text.assemble((report.name, "bold"), f"  {one_line(report.status)}")
    if report.reason:
        head.append(f": {one_line(report.reason)}")
    parts: list[RenderableType] = [head, Text(), _render_leaderboard(report)]
    compared = report.comparisons()
    if compared:
        parts += [Text(), _render_comparison(report, compared)]
    parts += [Text(), *_render_outcome(report)]
    if report.phases:
        spent = (f"{one_line(name)} {format_duration(s)}" for name, s in report.phases.items())
        parts += [Text(f"Time: {', '.join(spent)}")]
    parts += [Text(), *_next_commands(report)]
    return Group(*parts)


def _render_leaderboard(report: SweepReport) -> RenderableType:
    board = report.leaderboard
    if board.empty:
        return Text("No trial was started.")
    measures = [name for name in board.columns if name in (report.metric, *_SHOWN_METRICS)]
    settings = setting_columns(board)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("#", "trial", "outcome", "step", *map(_short_measure, measures)):
        side = "left" if name == "outcome" else "right"
        table.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("settings" if settings else "reason", overflow="fold")
    for row in board.head(_SHOWN_TRIALS).to_dict("records"):
        is_ranked = not pd.isna(row["rank"])
        about = format_settings({name: row[name] for name in settings})
        if row["reason"] and (not settings or not is_ranked):
            about = "; ".join(filter(None, [about, one_line(row["reason"])]))
        table.add_row(
            str(row["rank"]) if is_ranked else "",
            *(str(row[name]) for name in ("trial", "outcome", "step")),
            *(format_metric(None if pd.isna(row[name]) else row[name]) for name in measures),
            Text(about),
            style="" if is_ranked else "dim",
        )
    left = len(board) - _SHOWN_TRIALS
    more = f"and {left} more in leaderboard.csv"
    return Group(table, Text(more)) if left > 0 else table


_SHOWN_METRICS = ("eval_loss", "eval_accuracy")


def _short_measure(metric: str) -> str:
    return metric.removeprefix("eval_")


def _render_comparison(report: SweepReport, compared: list[Comparison]) -> Table:
    best = report.best
    whose = "adapter" if best is None else "champion" if best.is_champion else "best adapter"
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("held-out data", no_wrap=True)
    for name in ("base", whose, "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in compared:
        change = each.difference
        table.add_row(
            f"{each.split} {each.measure}",
            format_metric(each.base),
            format_metric(each.adapter),
            "-" if change is None else format_difference(change),
        )
    return table


def _render_outcome(report: SweepReport) -> Iterator[Text]:
    best = report.best
    if best is None:
        yield Text("Best: none; no trial ended with a finite objective.")
    else:
        value = format_metric(best.metrics.get(report.metric))
        yield Text(f"Best: trial {best.trial}, {report.metric} {value}")
        kept = best.ref or "not registered"
        yield Text(
            f"Registered: {kept}"
            + ("" if best.bundle is None else f"  ({report.storage / best.bundle})")
        )
    verdict = "yes" if best is not None and best.is_champion else "no"
    yield Text(f"Promoted: {verdict}; {one_line(report.promotion)}")


def _next_commands(report: SweepReport) -> Iterator[Text]:
    yield Text("Next:", style="bold")
    commands = ["adapters list", "ui"]
    ref = report.best.ref if report.best is not None else None
    if ref is not None:
        commands[1:1] = [f"adapters show {ref}", f"adapters pull {ref} --to ./adapter"]
    for command in commands:
        yield Text(f"  lorchestra {command}")


# ----------------------------------------------------------------------------------- for a disk


def write_report(
    report: SweepReport, spec: SweepSpec, history: SweepHistory, folder: Path
) -> list[Path]:
    """Write `leaderboard.csv`, `report.html` and `learning_curves.png`, each whole or not at all.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "leaderboard.csv": report.leaderboard.to_csv(index=False).encode(),
        "report.html": build_page(report, history).encode(),
        "learning_curves.png": draw_learning_curves(
            history,
            title=spec.name,
            metric=report.metric,
            best=None if report.best is None else report.best.trial,
            base=report.base_metrics.get("validation", {}).get(report.metric),
        ),
    }
    for name, content in contents.items():
        _replace(folder / name, content)
    return [folder / name for name in contents]


def _replace(path: Path, content: bytes) -> None:
    """Readers see the old file or the new one, never half of it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)  # mkstemp makes files that only the owner may read
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
