"""The report as one self-contained HTML page."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from orchestrator.finals.form_scores import FormScore, list_form_scores
from orchestrator.journal.history import SweepHistory
from orchestrator.metrics import TRIAL_METRICS
from orchestrator.report.importance import Importance, plot_importance
from orchestrator.report.leaderboard import UNRANKED_ORDER, outcome_of, setting_columns
from orchestrator.report.markup import cell, document, embed, folded, note, number, table
from orchestrator.report.plots import is_number, plot_learning_curves, plot_parallel_coordinates
from orchestrator.report.report import SweepReport
from orchestrator.report.tradeoffs import find_tradeoffs, plot_tradeoffs
from orchestrator.wording import (
    format_bounds,
    format_difference,
    format_duration,
    format_interval,
    format_metric,
    format_setting,
    one_line,
)
from trainables.contract import TRAINED

_DETAIL = re.compile(r"(.+?) \(([^()]*\d[^()]*)\)")
"""A reason that ends with numbers in brackets."""
_PERPLEXITY = "perplexity"  # left out: the exponential of the loss adds no information


def build_page(report: SweepReport, history: SweepHistory, importance: Importance) -> str:
    """The whole page as HTML; text from outside is escaped."""
    best = None if report.best is None else report.best.trial
    base = report.base_metrics.get("validation", {}).get(report.metric)
    curves = plot_learning_curves(history, metric=report.metric, best=best, base=base)
    title, chart = "Learning curves", note("No trial was evaluated yet.")
    if curves.data:
        title, chart = f"{report.metric} by step", embed(curves, "learning-curves")
    coordinates = plot_parallel_coordinates(report.leaderboard, metric=report.metric)
    settings = "" if coordinates is None else embed(coordinates, "coordinates")
    lines = "".join(f"<p>{escape(line)}</p>" for line in history.data_lines)
    phases = [[cell(name), number(format_duration(s))] for name, s in report.phases.items()]
    sections = [
        ("Best adapter", _best(report)),
        ("Base and best adapter on held-out data", _comparison(report)),
        ("Data", lines or note("No facts about the rows were recorded.")),
        ("Finals", _finals(report)),
        ("Serving forms", _forms(report)),
        (title, chart),
        ("Quality and cost", _tradeoffs(report)),
        ("Which settings mattered", _importance(importance)),
        ("Settings and objective of ranked trials, the best darkest", settings),
        ("Leaderboard", _leaderboard(report)),
        ("Outcomes and reasons", _outcomes(history)),
        ("Time", table(["phase", "time"], phases)),
        ("Spent", _spending(report)),
    ]
    reason = f": {one_line(report.reason)}" if report.reason else ""
    subtitle = f"Sweep {report.sweep_id}, {report.status}{reason}"
    return document(f"{report.name} – sweep report", subtitle, sections)


def _best(report: SweepReport) -> str:
    best = report.best
    if best is None:
        return note(
            "None: no trial ended with a finite objective. "
            f"Promotion: {one_line(report.promotion)}."
        )
    facts = {
        "adapter version": best.ref or "not registered",
        "champion": "yes" if best.is_champion else "no",
        "promotion": one_line(report.promotion),
        "trial": str(best.trial)
        if best.repeat_of is None
        else f"{best.trial} (trial {best.repeat_of} with another seed)",
        "bundle": "none" if best.bundle is None else str(report.storage / best.bundle),
    }
    searched = setting_columns(report.leaderboard) if not report.leaderboard.empty else []
    settings = {name: format_setting(value) for name, value in best.hyperparameters.items()}
    facts |= {name: settings.pop(name) for name in searched if name in settings}
    return _facts(facts) + folded("All other settings", _facts(settings))


def _facts(facts: Mapping[str, str]) -> str:
    return table(["", ""], [[cell(name), cell(value)] for name, value in facts.items()])


def _comparison(report: SweepReport) -> str:
    compared = report.comparisons()
    rows = [
        [cell(each.split), cell(each.measure)]
        + [number(format_metric(value)) for value in (each.base, each.adapter)]
        + [number("-" if each.difference is None else format_difference(each.difference))]
        for each in compared
    ]
    generated = report.generated()
    if generated is not None:
        exact = number(format_metric(generated.exact_match))
        name = cell("exact match of completions")
        rows.append([cell(compared[-1].split), name, number("-"), exact, number("-")])
    warning = "" if generated is None else generated.warning
    heads = ["rows", "measure", "base", "adapter", "difference"]
    return table(heads, rows) + (note(f"Warning: {warning}") if warning else "")


def _forms(report: SweepReport) -> str:
    """Tables of the serving forms; empty when only the trained form was evaluated."""
    scores = list_form_scores(report.forms)
    failed = [
        note(f"Trial {number} could not be served {form}: {one_line(error)}")
        for number, errors in sorted(report.form_errors.items())
        for form, error in errors.items()
    ]
    if not any(score.form != TRAINED for score in scores):
        return "".join(failed)
    trials = dict.fromkeys(score.trial for score in scores)
    tables = {number: _form_table(number, scores) for number in trials}
    best = None if report.best is None else tables.pop(report.best.trial, None)
    others = "".join(folded(f"Trial {number}", each) for number, each in tables.items())
    return (best or "") + others + note(_FORMS_NOTE) + "".join(failed)


def _form_table(trial: int, scores: Sequence[FormScore]) -> str:
    rows = []
    for each in scores:
        if each.trial == trial and each.measure != _PERPLEXITY:
            score, change = each.score, each.difference
            texts = (
                format_metric(score.value),
                format_bounds(score.low, score.high),
                "" if change is None else format_difference(change.value),
                "" if change is None else format_bounds(change.low, change.high),
            )
            words = (cell(each.measure), cell(each.form))
            rows.append([number(str(trial)), *words, *map(number, texts)])
    heads = ["trial", "measure", "form", "score", "interval", "from trained form", "interval"]
    return table(heads, rows)


_FORMS_NOTE = (
    "One adapter on the same held-out rows, in four forms: on the stored base of its training "
    "(trained), on the base in its compute type (unquantized), merged into the unquantized base "
    "(merged), and merged and quantized again (requantized). If the interval of a difference "
    "contains 0, these rows show no difference from the trained form."
)


def _tradeoffs(report: SweepReport) -> str:
    tradeoffs = find_tradeoffs(report.leaderboard, metric=report.metric, mode=report.mode)
    if not tradeoffs:
        return ""
    best = None if report.best is None else report.best.found_by
    figure = embed(plot_tradeoffs(tradeoffs, metric=report.metric, best=best), "quality-and-cost")
    if not report.pareto:
        return figure
    trials = ", ".join(map(str, report.pareto))
    return figure + note(f"Pareto front of the sweep's objectives: trials {trials}.")


def _importance(importance: Importance) -> str:
    constant = f" Equal in all these trials: {', '.join(importance.constant)}."
    text = note(importance.note + (constant if importance.constant else ""))
    if not importance.parts:
        return text if importance.trials else ""
    return embed(plot_importance(importance), "importance") + text


def _leaderboard(report: SweepReport) -> str:
    board = report.leaderboard
    if board.empty:
        return note("No trial was started.")
    best = None if report.best is None else report.best.found_by
    rows, styles = [], []
    for row in board.to_dict("records"):
        rows.append([_board_cell(str(name), value) for name, value in row.items()])
        unranked = "unranked" if pd.isna(row["rank"]) else ""
        styles.append("best" if row["trial"] == best else unranked)
    return table([str(name) for name in board.columns], rows, styles, is_dense=True)


_SHOWN = {name: metric.show for name, metric in TRIAL_METRICS.items()} | {
    "seconds": "{:.2f}".format
}


def _board_cell(name: str, value: Any) -> str:
    if name == "reason":
        return cell(str(value), "reason")
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return number("")
    if name in _SHOWN:
        return number(_SHOWN[name](value))
    return (number if is_number(value) else cell)(format_setting(value))


def _outcomes(history: SweepHistory) -> str:
    """A table of outcomes and reasons; details of a single trial follow its number."""
    ends: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for record in history.trials.values():
        reason, detail = one_line(record.reason), ""
        if (match := _DETAIL.fullmatch(reason)) is not None:  # many trials can share the rest
            reason, detail = match.groups()
        ends[outcome_of(record), reason][record.number] = detail
    rows = []
    for outcome, what in sorted(
        ends, key=lambda key: (UNRANKED_ORDER.index(key[0]), min(ends[key]))
    ):
        details = sorted(ends[outcome, what].items())
        trials = ", ".join(f"{trial} ({text})" if text else str(trial) for trial, text in details)
        rows.append([cell(outcome), number(str(len(details))), cell(what), cell(trials)])
    return table(["outcome", "count", "reason", "trials"], rows)


def _finals(report: SweepReport) -> str:
    """Finalists with their runs and intervals; empty when no finalist was trained again."""
    if not any(standing.half_width is not None for standing in report.finals):
        return ""
    rows = [
        [
            number(str(place)),
            number(str(standing.trial.number)),
            number(str(len(standing.values))),
            number(format_interval(standing.mean, standing.half_width)),
            cell(", ".join(map(format_metric, standing.values))),
        ]
        for place, standing in enumerate(report.finals, 1)
    ]
    metric = report.finals[0].metric
    heads = ["#", "trial", "runs", f"mean {metric}", f"{metric} of each run"]
    return f"{table(heads, rows)}\n{note(report.verdict)}"


def _spending(report: SweepReport) -> str:
    """A table of budgets: spent amount, allowed amount and spent share."""
    spent = {"trials": float(len(report.leaderboard)), **report.spent}
    rows = []
    for name, amount in spent.items():
        limit = report.limits.get(name)
        if amount or limit is not None:
            part = "" if limit is None else f"{amount / limit:.0%}"
            allowed = "no limit" if limit is None else _amount(name, limit)
            texts = (_amount(name, amount), allowed, part)
            rows.append([cell(_BUDGET.get(name, name)), *map(number, texts)])
    early = note(one_line(report.ended_early)) if report.ended_early else ""
    return table(["budget", "spent", "allowed", "part"], rows) + early


_BUDGET = {
    "wall_clock_s": "wall clock",
    "cpu_seconds": "CPU time of hosts",
    "gpu_seconds": "GPU time of hosts",
    "metric_s": "time of hosts for eval.metric",
}


def _amount(name: str, amount: float) -> str:
    if name == "trials":
        return f"{amount:.0f}"
    return f"{amount:.2f}" if name == "money" else format_duration(amount)
