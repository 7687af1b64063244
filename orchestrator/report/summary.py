"""The summary of a sweep as text for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.finals.form_scores import list_form_scores
from orchestrator.metrics import HEADLINES
from orchestrator.report.leaderboard import setting_columns
from orchestrator.report.measurements import BaseComparison
from orchestrator.report.report import SweepReport
from orchestrator.wording import (
    format_bounds,
    format_difference,
    format_duration,
    format_interval,
    format_metric,
    format_settings,
    one_line,
)

_SHOWN_TRIALS = 10


def render_summary(report: SweepReport) -> RenderableType:
    """The summary as text for `rich.console.Console.print`; complete in 80 columns."""
    head = Text.assemble((report.name, "bold"), f"  {one_line(report.status)}")
    if report.reason:
        head.append(f": {one_line(report.reason)}")
    parts: list[RenderableType] = [head, Text(), _render_leaderboard(report)]
    if any(standing.half_width is not None for standing in report.finals):
        parts += [Text(), _render_finals(report), Text(one_line(report.verdict))]
    if report.pareto:
        parts += [Text(f"Pareto front: trials {', '.join(map(str, report.pareto))}")]
    compared = report.comparisons()
    if compared:
        parts += [Text(), _render_comparison(report, compared)]
    generated = report.generated()
    if generated is not None and generated.warning:
        parts += [Text(f"Warning: {generated.warning}", style="bold")]
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


def _render_leaderboard(report: SweepReport) -> RenderableType:
    board = report.leaderboard
    if board.empty:
        return Text("No trial was started.")
    measures = [name for name in board.columns if name in (report.metric, *HEADLINES)]
    settings = setting_columns(board)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    short = [name.removeprefix("eval_") for name in measures]
    for name in ("#", "trial", "outcome", "step", *short):
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


def _render_finals(report: SweepReport) -> RenderableType:
    settings = setting_columns(report.leaderboard)
    rows = {row["trial"]: row for row in report.leaderboard.to_dict("records")}
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    metric = next(standing.metric for standing in report.finals if standing.metric)
    for name in ("#", "finalist", "runs", f"mean {metric}"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("settings", overflow="fold")
    for place, standing in enumerate(report.finals, 1):
        row = rows.get(standing.trial.number, {})
        about = format_settings({name: row[name] for name in settings if name in row})
        table.add_row(
            str(place),
            str(standing.trial.number),
            str(len(standing.values)),
            format_interval(standing.mean, standing.half_width),
            Text(about),
        )
    return table


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
