"""The summary of a sweep as text for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.finals.form_scores import list_form_scores
from orchestrator.journal.paths import PAGE_FILE, REPORT_FOLDER
from orchestrator.metrics import HEADLINES
from orchestrator.report.columns import (
    Column,
    FittedTable,
    build_setting_columns,
    order_settings,
)
from orchestrator.report.leaderboard import setting_columns
from orchestrator.report.measurements import BaseComparison
from orchestrator.report.report import SweepReport
from orchestrator.wording import (
    format_bounds,
    format_difference,
    format_duration,
    format_interval,
    format_metric,
    one_line,
)

_SHOWN_TRIALS = 10


def render_summary(report: SweepReport) -> RenderableType:
    """The summary as text for `rich.console.Console.print`; complete in 80 columns."""
    head = Text.assemble((report.name, "bold"), f"  {one_line(report.status)}")
    if report.reason:
        head.append(f": {one_line(report.reason)}")
    parts: list[RenderableType] = [head, *_list_verdict(report), *_list_page(report), Text()]
    parts.append(_render_leaderboard(report))
    if any(standing.half_width is not None for standing in report.finals):
        parts += [Text(), _render_finals(report)]
        if report.separation is not None:
            parts += [Text(one_line(report.separation.text))]
    if report.pareto:
        parts += [Text(f"Pareto front: trials {', '.join(map(str, report.pareto))}")]
    compared = report.comparisons()
    if compared:
        parts += [Text(), _render_comparison(report, compared)]
    forms = _render_forms(report)
    if forms is not None:
        parts += [Text(), forms]
    failed = {} if report.best is None else report.form_errors.get(report.best.trial, {})
    parts += [
        Text(f"Serving form {form} could not be evaluated: {one_line(error)}")
        for form, error in failed.items()
    ]
    parts += [Text(), *_render_outcome(report)]
    if report.phases:
        spent = (f"{one_line(name)} {format_duration(s)}" for name, s in report.phases.items())
        parts += [Text(f"Time: {', '.join(spent)}")]
    parts += _render_spending(report)
    parts += [Text(), *_next_commands(report)]
    return Group(*parts)


def explain_unregistered(name: str, again: Sequence[str]) -> str:
    """Why the best adapter of a sweep without a section `register` is no version, and the remedy.

    Args:
        name: Name of the sweep.
        again: The command that ran the sweep.
    """
    file = again[2] if again[1] == "run" else "the sweep file"
    command = shlex.join(again) if again[1] == "run" else "lorchestra run SWEEP.yaml"
    return (
        f"Not registered: the sweep has no register section. Add the line "
        f'"register: {{name: {name}}}" to {file} and run: {command}'
    )


def render_verdict(report: SweepReport) -> RenderableType:
    """The verdict with its warnings as text for a terminal."""
    return Group(*_list_verdict(report))


def _list_verdict(report: SweepReport) -> Iterator[Text]:
    yield Text(one_line(" ".join(report.verdict.sentences)))
    for warning in report.verdict.warnings:
        yield Text(one_line(f"Warning: {warning}"), style="bold")


def _list_page(report: SweepReport) -> Iterator[Text]:
    page = report.storage / REPORT_FOLDER / PAGE_FILE
    if page.is_file():
        yield Text(f"Report: {page}", overflow="fold")


def _render_leaderboard(report: SweepReport) -> RenderableType:
    board = report.leaderboard
    if board.empty:
        return Text("No trial was started.")
    measures = [name for name in board.columns if name in (report.metric, *HEADLINES)]
    rows = _read_rows(board.head(_SHOWN_TRIALS))
    ranked = [not pd.isna(row["rank"]) for row in rows]
    texts = {
        "#": [
            str(row["rank"]) if is_ranked else ""
            for row, is_ranked in zip(rows, ranked, strict=True)
        ],
        **{name: [str(row[name]) for row in rows] for name in ("trial", "outcome", "step")},
        **{name.removeprefix("eval_"): _metric_cells(name, rows) for name in measures},
    }
    columns = [
        Column(head=name, cells=cells, side="left" if name == "outcome" else "right")
        for name, cells in texts.items()
    ]
    columns += build_setting_columns(order_settings(setting_columns(board)), rows)
    parts: list[RenderableType] = [
        FittedTable(columns=columns, styles=["" if is_ranked else "dim" for is_ranked in ranked])
    ]
    left = len(board) - _SHOWN_TRIALS
    if left > 0:
        parts.append(Text(f"and {left} more in leaderboard.csv"))
    parts += [
        Text(f"trial {row['trial']} {row['outcome']}: {one_line(row['reason'])}", style="dim")
        for row, is_ranked in zip(rows, ranked, strict=True)
        if row["reason"] and not is_ranked
    ]
    return Group(*parts)


def _read_rows(board: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in board.to_dict("records")]


def _metric_cells(name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [format_metric(None if pd.isna(row[name]) else row[name]) for row in rows]


def _render_finals(report: SweepReport) -> RenderableType:
    names = order_settings(setting_columns(report.leaderboard))
    rows = {row["trial"]: row for row in _read_rows(report.leaderboard)}
    metric = next(standing.metric for standing in report.finals if standing.metric)
    texts = {
        "#": [str(place) for place in range(1, len(report.finals) + 1)],
        "finalist": [str(one.trial.number) for one in report.finals],
        "runs": [str(len(one.values)) for one in report.finals],
        f"mean {metric}": [format_interval(one.mean, one.half_width) for one in report.finals],
    }
    columns = [Column(head=name, cells=cells) for name, cells in texts.items()]
    found = [rows.get(standing.trial.number, {}) for standing in report.finals]
    columns += build_setting_columns(names, found)
    return FittedTable(columns=columns, styles=[""] * len(report.finals))


def _render_spending(report: SweepReport) -> Iterator[Text]:
    spent, limits = report.spent, report.limits
    parts = [
        _of_limit(format_duration(spent[name]), limits.get(name), format_duration) + f" {unit}"
        for name, unit in _UNITS
        if spent.get(name)
    ]
    if "money" in spent:
        parts.append(
            _of_limit(f"{spent['money']:.2f}", limits.get("money"), "{:.2f}".format) + " in money"
        )
    if parts:
        yield Text(f"Spent: {', '.join(parts)}")
    if report.ended_early:
        yield Text(f"Ended early: {one_line(report.ended_early)}")


def _of_limit(spent: str, limit: float | None, show: Callable[[float], str]) -> str:
    """`7:08 of 10:00`, or the spent amount alone without a limit."""
    return spent if limit is None else f"{spent} of {show(limit)}"


_UNITS = (
    ("wall_clock_s", "of wall clock"),
    ("cpu_seconds", "of CPU"),
    ("gpu_seconds", "of GPU"),
    ("metric_s", "of hosts for eval.metric"),
)


def _render_comparison(report: SweepReport, compared: list[BaseComparison]) -> Table:
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
    generated = report.generated()
    if generated is not None:
        split = compared[-1].split
        table.add_row(f"{split} exact match", "-", format_metric(generated.exact_match), "-")
    return table


def _render_forms(report: SweepReport) -> Table | None:
    """The best adapter in each serving form, by the objective's measure or the first measure."""
    number = None if report.best is None else report.best.trial
    scores = [score for score in list_form_scores(report.forms) if score.trial == number]
    names = [score.measure for score in scores]
    wanted = report.metric.partition("_")[2]
    measure = wanted if wanted in names else next(iter(names), "")
    served = [score for score in scores if score.measure == measure]
    if len(served) < 2:
        return None
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("serving form", no_wrap=True)
    for name in (measure, "interval", "difference", "interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in served:
        change = one.difference
        table.add_row(
            one.form,
            format_metric(one.score.value),
            format_bounds(one.score.low, one.score.high),
            "" if change is None else format_difference(change.value),
            "" if change is None else format_bounds(change.low, change.high),
        )
    return table


def _render_outcome(report: SweepReport) -> Iterator[Text]:
    best = report.best
    if best is None:
        yield Text("Best: none; no trial ended with a finite objective.")
    else:
        value = format_metric(best.metrics.get(report.metric))
        again = "" if best.repeat_of is None else f" (trial {best.repeat_of} with another seed)"
        yield Text(f"Best: trial {best.trial}{again}, {report.metric} {value}")
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
