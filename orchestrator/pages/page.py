"""The report as one self-contained HTML page."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

from orchestrator.finals.form_scores import FormScore, list_form_scores
from orchestrator.journal.history import SweepHistory
from orchestrator.metrics import TRIAL_METRICS
from orchestrator.pages.charts import in_grid
from orchestrator.pages.hosts import describe_hosts
from orchestrator.pages.markup import (
    boxed,
    cell,
    document,
    facts,
    folded,
    folded_cell,
    note,
    number,
    table,
)
from orchestrator.pages.provenance import describe_sweep, list_bases
from orchestrator.pages.trial_charts import (
    draw_curves,
    draw_finals,
    draw_forms,
    draw_importance_strips,
    draw_progress,
    draw_settings,
    draw_slices,
    draw_tradeoff_panels,
    label_trials,
)
from orchestrator.report.columns import format_cell, short_heads
from orchestrator.report.importance import Importance
from orchestrator.report.leaderboard import UNRANKED_ORDER, outcome_of, setting_columns
from orchestrator.report.plots import is_number
from orchestrator.report.report import SweepReport
from orchestrator.spec.sweep import SweepSpec
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
_MOST_NAMED = 12
_PERPLEXITY = "perplexity"  # left out: the exponential of the loss adds no information


def build_page(
    report: SweepReport, spec: SweepSpec, history: SweepHistory, importance: Importance
) -> str:
    """The whole page as HTML; text from outside is escaped."""
    curves = draw_curves(report, history)
    also = [name for name in spec.objective.goals if name != report.metric]
    sections = [
        ("Best adapter", in_grid([_best(report), _comparison(report)])),
        ("Finals", _finals(report)),
        ("Serving forms", _forms(report)),
        ("Leaderboard", _leaderboard(report)),
        ("Learning curves", curves or note("No trial was evaluated yet.")),
        ("Best so far", draw_progress(report)),
        ("Objective by setting", draw_slices(report)),
        ("Which settings mattered", _importance(importance)),
        ("All settings of ranked trials, the best strongest", draw_settings(report)),
        ("Quality and cost", _tradeoffs(report, history, also)),
        ("Outcomes", _outcomes(history)),
        ("What it cost", _spending(report)),
        ("Memory and seats of hosts", describe_hosts(history)),
        ("What this sweep is about", describe_sweep(report, spec, history)),
    ]
    lead = boxed(" ".join(report.verdict.sentences), "verdict") + "".join(
        boxed(f"Warning: {one}", "warning") for one in report.verdict.warnings
    )
    title, subtitle = f"{report.name} – sweep report", _subtitle(report, spec, history)
    return document(title, subtitle, sections, lead=lead, labels=label_trials(report))


def _subtitle(report: SweepReport, spec: SweepSpec, history: SweepHistory) -> str:
    reason = f" ({one_line(report.reason)})" if report.reason else ""
    models = ", ".join(map(one_line, list_bases(spec, history)))
    return f"Sweep on {models}: {report.status}{reason}"


def _best(report: SweepReport) -> str:
    best = report.best
    if best is None:
        return note(
            "None: no trial ended with a finite objective. "
            f"Promotion: {one_line(report.promotion)}."
        )
    again = f" (trial {best.repeat_of} with another seed)" if best.repeat_of is not None else ""
    known = {
        "adapter version": best.ref or "not registered",
        "champion": "yes" if best.is_champion else "no",
        "promotion": one_line(report.promotion),
        "trial": f"{best.trial}{again}",
        "bundle": "none" if best.bundle is None else str(report.storage / best.bundle),
    }
    searched = setting_columns(report.leaderboard) if not report.leaderboard.empty else []
    settings = {name: format_setting(value) for name, value in best.hyperparameters.items()}
    known |= {name: settings.pop(name) for name in searched if name in settings}
    others = folded("All other settings", facts(settings.items()))
    return f"<div>{facts(known.items())}{others}</div>"


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
    heads = ["rows", "measure", "base", "adapter", "difference"]
    return f"<div><h3>On held-out rows</h3>{table(heads, rows)}</div>" if rows else ""


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
    own = folded("Table", best or "")
    return draw_forms(report) + own + others + note(_FORMS_NOTE) + "".join(failed)


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


def _tradeoffs(report: SweepReport, history: SweepHistory, also: Sequence[str]) -> str:
    panels = draw_tradeoff_panels(report, history, also)
    if not panels or not report.pareto:
        return panels
    trials = ", ".join(map(str, report.pareto))
    return panels + note(f"Pareto front of the sweep's objectives: trials {trials}.")


def _importance(importance: Importance) -> str:
    constant = f" Equal in all these trials: {', '.join(importance.constant)}."
    text = note(importance.note + (constant if importance.constant else ""))
    if not importance.parts:
        return text if importance.trials else ""
    return draw_importance_strips(importance) + text


def _leaderboard(report: SweepReport) -> str:
    board = report.leaderboard
    if board.empty:
        return note("No trial was started.")
    best = None if report.best is None else report.best.found_by
    settings = set(setting_columns(board))
    rows, attributes = [], []
    board = board.astype({"reason": "object"})
    board.loc[board["rank"].notna(), "reason"] = ""  # among the outcomes
    if not any(board["reason"]):
        board = board.drop(columns="reason")
    for row in board.to_dict("records"):
        rows.append(
            [_board_cell(str(name), value, name in settings) for name, value in row.items()]
        )
        unranked = "unranked" if pd.isna(row["rank"]) else ""
        style = "best" if row["trial"] == best else unranked
        attributes.append(f'class="{style}" data-trial="{row["trial"]}"')
    names = [str(name) for name in board.columns]
    short = [_HEADS.get(name, name.removeprefix("eval_")) for name in names]
    searched = dict(zip(setting_columns(board), short_heads(setting_columns(board)), strict=True))
    heads = [(searched.get(name, head), name) for name, head in zip(names, short, strict=True)]
    hint = note("A click on a heading sorts; a click on a row shows the trial in all charts.")
    return hint + table(heads, rows, attributes, kind="dense board", is_sortable=True)


_HEADS = {
    "rank": "#",
    "train_loss": "train",
    "tokens_per_s": "tok/s",
    "peak_memory_gib": "GiB",
    "trainable_params": "params",
    "host_s": "host s",
    "seconds": "s",
}
"""Short heads of the leaderboard; the whole name shows on hovering."""

_SHOWN = {name: metric.show for name, metric in TRIAL_METRICS.items()} | {
    "seconds": "{:.2f}".format
}


def _board_cell(name: str, value: Any, is_setting: bool) -> str:
    if name == "reason":
        return cell(one_line(str(value)), "reason")
    if pd.api.types.is_scalar(value) and pd.isna(value) and not is_setting:
        return number("")
    if name in _SHOWN:
        return number(_SHOWN[name](value), float(value))
    if is_number(value):
        return number(format_cell(value), float(value))
    return cell(format_cell(value))


def _outcomes(history: SweepHistory) -> str:
    """A table of outcomes and reasons of the search; details of a trial follow its number."""
    ends: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for record in history.searched():
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
        named = cell(trials) if len(details) <= _MOST_NAMED else folded_cell("all", trials)
        rows.append([cell(outcome), number(str(len(details))), cell(what), named])
    again = [one for one in history.trials.values() if one.repeat_of is not None]
    counts = Counter(outcome_of(one) for one in again)
    ended = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    repeats = note(f"Repeats of finalists with other seeds: {ended}.") if again else ""
    return table(["outcome", "trials", "reason", "numbers"], rows) + repeats


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
    separation = "" if report.separation is None else note(report.separation.text)
    return draw_finals(report) + table(heads, rows) + separation


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
    phases = [[cell(name), number(format_duration(s))] for name, s in report.phases.items()]
    return (
        table(["budget", "spent", "allowed", "part"], rows)
        + note(one_line(report.ended_early))
        + table(["phase", "time"], phases)
    )


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
