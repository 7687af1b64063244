"""The report as one HTML page that needs neither a network nor other files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd
from plotly.offline import get_plotlyjs

from orchestrator.history import SweepHistory
from orchestrator.leaderboard import UNRANKED_ORDER, outcome_of
from orchestrator.plots import plot_learning_curves, plot_parallel_coordinates
from orchestrator.wording import (
    format_difference,
    format_duration,
    format_interval,
    format_metric,
    format_setting,
    one_line,
)

if TYPE_CHECKING:
    from orchestrator.report import SweepReport

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1200px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #ddd;
         vertical-align: top; }
th { background: #f5f5f5; white-space: nowrap; }
td.number { text-align: right; white-space: nowrap; } td.reason { min-width: 18rem; }
tr.best { background: #e6f5ef; } tr.unranked { color: #777; } .note { color: #555; }
"""

_MEASURED = ("eval_loss", "eval_accuracy", "eval_token_accuracy", "train_loss")


def build_page(report: SweepReport, history: SweepHistory) -> str:
    """The page whole; every text in it that is not its own is escaped."""
    title = escape(report.name)
    body = "\n".join(
        f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>"
        for heading, content in _sections(report, history)
        if content
    )
    reason = f": {escape(report.reason)}" if report.reason else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title} – sweep report</title>\n<style>{_STYLE}</style>\n"
        f"<script>{get_plotlyjs()}</script>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f'<p class="note">Sweep {escape(str(report.sweep_id))}, {escape(report.status)}{reason}'
        f"</p>\n{body}\n</body>\n</html>\n"
    )


def _sections(report: SweepReport, history: SweepHistory) -> Iterator[tuple[str, str]]:
    best = None if report.best is None else report.best.trial
    base = report.base_metrics.get("validation", {}).get(report.metric)
    curves = plot_learning_curves(history, metric=report.metric, best=best, base=base)
    coordinates = plot_parallel_coordinates(
        report.leaderboard, metric=report.metric, mode=report.mode
    )
    yield "Best adapter", _best(report)
    yield "Base and best adapter on held-out data", _comparison(report)
    yield "Finals", _finals(report)
    if curves.data:
        yield f"{report.metric} by step", _embed(curves, "learning-curves")
    else:
        yield "Learning curves", '<p class="note">Nothing was measured yet.</p>'
    if coordinates is not None:
        yield "Settings and objective of ranked trials", _embed(coordinates, "coordinates")
    yield "Leaderboard", _leaderboard(report)
    yield "Outcomes and reasons", _outcomes(history)
    yield "Time", _phases(report.phases)
    yield "Spent", _spending(report)


def _embed(figure: Any, name: str) -> str:
    return str(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=name,
            config={"displaylogo": False, "responsive": True},
        )
    )


def _best(report: SweepReport) -> str:
    best = report.best
    if best is None:
        return (
            '<p class="note">None: no trial ended with a finite objective. '
            f"Promotion: {escape(report.promotion)}.</p>"
        )
    facts = {
        "adapter version": best.ref or "not registered",
        "champion": "yes" if best.is_champion else "no",
        "promotion": report.promotion,
        "trial": str(best.trial),
        "bundle": "none" if best.bundle is None else str(report.storage / best.bundle),
    }
    settings = {name: format_setting(value) for name, value in best.hyperparameters.items()}
    rows = [[_cell(name), _cell(value)] for name, value in (facts | settings).items()]
    return _table(["", ""], rows)


def _comparison(report: SweepReport) -> str:
    compared = report.comparisons()
    rows = [
        [_cell(each.split), _cell(each.measure)]
        + [_number(format_metric(value)) for value in (each.base, each.adapter)]
        + [_number("-" if each.difference is None else format_difference(each.difference))]
        for each in compared
    ]
    return _table(["rows", "measure", "base", "adapter", "difference"], rows) if rows else ""


def _leaderboard(report: SweepReport) -> str:
    board = report.leaderboard
    if board.empty:
        return '<p class="note">No trial was started.</p>'
    best = None if report.best is None else report.best.trial
    rows, styles = [], []
    for row in board.to_dict("records"):
        rows.append([_board_cell(str(name), value) for name, value in row.items()])
        unranked = "unranked" if pd.isna(row["rank"]) else ""
        styles.append("best" if row["trial"] == best else unranked)
    return _table([str(name) for name in board.columns], rows, styles)


def _board_cell(name: str, value: Any) -> str:
    if name == "reason":
        return f'<td class="reason">{escape(str(value))}</td>'
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return _number("")
    if name in _MEASURED:
        return _number(format_metric(value))
    if name in ("tokens_per_s", "trainable_params"):
        return _number(f"{value:,.0f}")
    if name in ("seconds", "peak_memory_gib"):
        return _number(f"{value:.2f}")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (_number if is_number else _cell)(format_setting(value))


def _outcomes(history: SweepHistory) -> str:
    trials: dict[tuple[str, str], list[int]] = defaultdict(list)
    for record in history.trials.values():
        trials[outcome_of(record), one_line(record.reason)].append(record.number)
    rows = []
    for outcome, reason in sorted(
        trials, key=lambda key: (UNRANKED_ORDER.index(key[0]), min(trials[key]))
    ):
        numbers = sorted(trials[outcome, reason])
        texts = [_cell(", ".join(map(str, numbers))), _cell(reason)]
        rows.append([_cell(outcome), _number(str(len(numbers))), *texts])
    return _table(["outcome", "count", "trials", "reason"], rows) if rows else ""


def _finals(report: SweepReport) -> str:
    """Finalists with their runs and intervals; nothing when none was trained again."""
    if not any(standing.half_width is not None for standing in report.finals):
        return ""
    rows = [
        [
            _number(str(place)),
            _number(str(standing.trial.number)),
            _number(str(len(standing.values))),
            _number(format_interval(standing.mean, standing.half_width)),
            _cell(", ".join(map(format_metric, standing.values))),
        ]
        for place, standing in enumerate(report.finals, 1)
    ]
    metric = report.finals[0].metric
    heads = ["#", "trial", "runs", f"mean {metric}", f"{metric} of each run"]
    return f'{_table(heads, rows)}\n<p class="note">{escape(report.verdict)}</p>'


def _spending(report: SweepReport) -> str:
    rows = [
        [_cell(name), _number(f"{amount:.2f}" if name == "money" else format_duration(amount))]
        for name, amount in report.spent.items()
        if amount
    ]
    note = f'<p class="note">{escape(report.ended_early)}</p>' if report.ended_early else ""
    return (_table(["limit", "spent"], rows) if rows else "") + note


def _phases(phases: Mapping[str, float]) -> str:
    rows = [[_cell(name), _number(format_duration(s))] for name, s in phases.items()]
    return _table(["phase", "time"], rows) if rows else ""


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], styles: Sequence[str] | None = None
) -> str:
    rows = list(rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    lines = [
        f'<tr class="{style}">{"".join(cells)}</tr>' if style else f"<tr>{''.join(cells)}</tr>"
        for cells, style in zip(rows, styles or [""] * len(rows), strict=True)
    ]
    top = f"<thead><tr>{head}</tr></thead>\n" if any(heads) else ""
    return (
        f'<div class="wide"><table>\n{top}<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>'
    )


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _number(text: str) -> str:
    return f'<td class="number">{escape(text)}</td>'
