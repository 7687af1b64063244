"""Turns a sweep's events into news for its runs in MLflow, merged so that few calls are needed.

All new events of a trial become one piece of news. News of the sweep as a whole keeps its place
in the order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.finals.standings import rank_finalists
from orchestrator.hosts.members import group_key
from orchestrator.journal.events import (
    FinalistEvaluated,
    LogEntry,
    SweepEnded,
    SweepResumed,
    SweepStarted,
    TrialEnded,
    TrialReported,
    TrialResumed,
    TrialStarted,
)
from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.report.leaderboard import describe_trial
from orchestrator.report.report import build_report
from orchestrator.spec.space import describe, searched_names
from orchestrator.spec.sweep import SweepSpec
from orchestrator.wording import format_metric, format_settings
from registry.bundles.markdown import plain
from registry.tracking.trial_news import End, Points, TrialNews
from registry.tracking.views import SweepView
from trainables.contract import Outcome
from trainables.spec import TrialSpec

_SPLITS = ("eval", "test")
_MEASURES = ("loss", "accuracy")


@dataclass(frozen=True, kw_only=True)
class SweepOpening:
    """News that the sweep started or continues.

    Attributes:
        sweep_id: Id of the sweep.
        name: Name of the sweep's run.
        params: Parameters of the run: base, data, search.
        tags: Tags of the run.
        text: The sweep file at the first start.
        view: What the saved table and charts of the trials show.
        about: Description of the run, in Markdown.
        at_s: Seconds since the epoch.
    """

    sweep_id: str
    name: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    text: str
    view: SweepView
    about: str
    at_s: float


@dataclass(frozen=True, kw_only=True)
class SweepClosing:
    """News that the sweep ended.

    Attributes:
        opening: News that opens the sweep's run if the run is missing.
        status: Outcome of the sweep.
        metrics: Metrics of the best adapter, named `best/…`: a sort by loss lists trials first.
        about: Description of the run, first its verdict, in Markdown.
        at_s: Seconds since the epoch.
    """

    opening: SweepOpening
    status: Outcome
    metrics: Mapping[str, float]
    about: str
    at_s: float


News = SweepOpening | TrialNews | SweepClosing


class NewsDesk:
    """Folds events into a history and gathers news for MLflow.

    Args:
        spec: The sweep.

    Attributes:
        history: Sum of all events so far.
    """

    def __init__(self, spec: SweepSpec) -> None:
        self._spec = spec
        self.history = SweepHistory()
        self._news: list[News] = []
        self._trials: dict[int, TrialNews] = {}  # news that can still take up events

    def add(self, entry: LogEntry, *, is_told: bool = False) -> None:
        """Take in the next entry; an entry already delivered gives no news."""
        self.history.apply(entry)
        if is_told:
            return
        event = entry.event
        if isinstance(event, SweepStarted | SweepResumed):
            self._of_sweep(self._begun(entry.at))
        elif isinstance(event, SweepEnded):
            self._of_sweep(self._ended(event, entry.at))
        elif isinstance(event, TrialEvent):
            record = self.history.trials.get(event.trial)
            if record is not None:
                _tell(event, self._of_trial(record), record, entry.at)

    def take(self) -> list[News]:
        """News since the last call, in order of their first events."""
        news, self._news, self._trials = self._news, [], {}
        return news

    def _of_trial(self, record: TrialRecord) -> TrialNews:
        if record.number not in self._trials:
            name = f"trial-{record.number:04d}"
            tags: dict[str, str] = {}
            if record.repeat_of is not None:
                name += f" (repeats {record.repeat_of:04d})"
                tags["lorchestra.repeat_of"] = str(record.repeat_of)
            if record.parent is not None:
                tags["lorchestra.parent"] = f"{record.parent['trial']}@{record.parent['step']}"
            news = TrialNews(
                trial=record.number,
                name=name,
                params=describe(TrialSpec.from_dict(record.spec)),
                started_at_s=record.started_at,
                tags=tags,
            )
            self._trials[record.number] = news
            self._news.append(news)
        return self._trials[record.number]

    def _of_sweep(self, news: SweepOpening | SweepClosing) -> None:
        self._news.append(news)
        self._trials = {}  # later events of a trial become later news

    def _begun(self, at_s: float) -> SweepOpening:
        """News of a start, with the paths of the first start: a resume may have others."""
        spec: Mapping[str, Any] = self.history.spec or {}
        return SweepOpening(
            sweep_id=str(self.history.sweep_id),
            name=self._spec.name,
            params={
                "base": spec["base"]["model"],
                "data": spec["data"]["train"],
                "search": self._spec.search.algorithm,
                "schedule": self._spec.schedule.algorithm,
                "objective": self._spec.objective.metric,
                "steps": self._spec.horizon,
                "seed": self._spec.seed,
            },
            tags={"lorchestra.digest": str(self.history.digest)},
            text=yaml.safe_dump(dict(spec)),
            view=SweepView(
                sweep_id=str(self.history.sweep_id),
                settings=searched_names(self._spec.search_space),
                metric=self._spec.objective.metric,
                mode=self._spec.objective.mode,
            ),
            about=_describe_sweep(self._spec, spec),
            at_s=at_s,
        )

    def _ended(self, event: SweepEnded, at_s: float) -> SweepClosing:
        opening, best, base = self._begun(at_s), {}, {}
        standings = rank_finalists(self._spec, self.history)
        if standings:
            adapter = standings[0].adapter
            best = {**adapter.reports[-1].metrics, **(adapter.final_metrics or {})}
            splits = self.history.base_metrics.get(
                group_key(TrialSpec.from_dict(adapter.spec)), {}
            )
            base = {name: value for split in splits.values() for name, value in split.items()}
        result = _describe_result(event, standings[0].adapter if standings else None, best, base)
        verdict = plain(build_report(self._spec, self.history, Path()).verdict.text)
        return SweepClosing(
            opening=opening,
            status=event.status,
            metrics={f"best/{name}": value for name, value in best.items()},
            about=f"{verdict}\n\n{opening.about}\n\n{result}",
            at_s=at_s,
        )


TrialEvent = TrialStarted | TrialResumed | TrialReported | TrialEnded | FinalistEvaluated
"""Events that change a trial's run in MLflow."""


def _tell(event: TrialEvent, news: TrialNews, record: TrialRecord, at_s: float) -> None:
    """Add an event of a trial to the trial's news."""
    match event:
        case TrialStarted() | TrialResumed():
            news.is_begun, news.end = True, None
        case TrialReported(is_fault=False):  # metrics of a fault are no measurements
            news.points.append(Points(metrics=event.metrics, step=event.step, at_s=at_s))
        case TrialEnded():
            news.end = End(outcome=event.outcome, reason=event.reason, at_s=at_s)
        case FinalistEvaluated():
            news.points.append(Points(metrics=event.metrics, step=record.step, at_s=at_s))


def _describe_sweep(spec: SweepSpec, recorded: Mapping[str, Any]) -> str:
    """What is searched, for what base and rows.

    Args:
        spec: The sweep.
        recorded: The sweep's spec at its first start.
    """
    settings = ", ".join(f"`{name}`" for name in searched_names(spec.search_space)) or "nothing"
    return (
        f"Search for the best adapter of `{recorded['base']['model']}` on "
        f"`{_rows_name(recorded['data']['train'])}`: up to {spec.budget.trials} trials of "
        f"{spec.horizon} steps over {settings}. Objective: `{spec.objective.metric}` "
        f"({spec.objective.mode})."
    )


def _describe_result(
    end: SweepEnded,
    adapter: TrialRecord | None,
    best: Mapping[str, float],
    base: Mapping[str, float],
) -> str:
    """How a sweep ended: the best trial, and its measures beside those of the bare base.

    Args:
        end: The end of the sweep.
        adapter: The trial with the best adapter; `None` without one.
        best: Its metrics.
        base: Metrics of the base without an adapter.
    """
    if adapter is None:
        return f"{end.status.capitalize()}: {end.reason}. No adapter was found."
    settings = describe_trial(adapter)
    shown = {name: settings[name] for name in adapter.knobs if name in settings}
    lines = [f"Best: trial {adapter.number}" + (f" ({format_settings(shown)})." if shown else ".")]
    names = [f"{split}_{measure}" for split in _SPLITS for measure in _MEASURES]
    rows = [
        f"| {name} | {format_metric(best[name])} | {format_metric(base.get(name))} |"
        for name in names
        if name in best
    ]
    return "\n".join([*lines, "", "| measure | best trial | base |", "|---|---|---|", *rows])


def _rows_name(train: object) -> str:
    return str(train) if isinstance(train, str) else "rows in memory"
