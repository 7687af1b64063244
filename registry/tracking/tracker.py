"""Runs of sweeps in MLflow: one run per sweep, with the runs of its trials below.

Every run is searched by its tags before it is created, so that recording again, in a new process
too, creates no second run. A tracker remembers the runs that it has read or written: news of a
trial take one call, the first and the last news two more.
"""

from __future__ import annotations

import posixpath
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, Run, RunTag

from registry.errors import TrackingError
from registry.tracking.connection import connect, plain_errors
from registry.tracking.experiments import find_experiment
from registry.tracking.limits import MAX_PARAM_CHARS, MAX_TAG_CHARS, shortened
from registry.tracking.search import find_runs
from registry.tracking.trial_news import End, Points, TrialNews
from registry.tracking.views import SweepLinks, SweepView, save_view, sweep_links
from trainables.contract import Outcome

_STATUSES: dict[Outcome, str] = {
    Outcome.COMPLETED: "FINISHED",
    Outcome.STOPPED: "FINISHED",
    Outcome.INFEASIBLE: "FAILED",
    Outcome.DIVERGED: "FAILED",
    Outcome.FAILED: "FAILED",
    Outcome.CANCELLED: "KILLED",
}
_RUNNING, _KILLED = "RUNNING", "KILLED"

_OUTCOME, _REASON = "lorchestra.outcome", "lorchestra.reason"
INTERRUPTED_TAG = "lorchestra.interrupted"
"""Tag with the time of an interruption of a run; removed when a later session continues."""
NOTE_TAG = "mlflow.note.content"
"""Tag with the description of a run, in Markdown."""

_MARKS = (_OUTCOME, _REASON, INTERRUPTED_TAG)


_Key = tuple[str, int | None]
"""A sweep's id and, for one of its trials, the trial's number."""


@dataclass(kw_only=True)
class _Known:
    """Last state of a run in MLflow known to this tracker."""

    run_id: str
    status: str
    marks: dict[str, str]
    params: dict[str, str]


class Tracker:
    """Writes the runs of one experiment, each once.

    Every method raises `TrackingError` when the server cannot be used. A caller repeats the call
    later with a new tracker: the old tracker does not know which part the server carried out.
    """

    def __init__(
        self, tracking_uri: str, experiment: str, artifact_location: str | None = None
    ) -> None:
        self.tracking_uri = tracking_uri
        self._client = connect(tracking_uri)
        with plain_errors(tracking_uri):
            self._experiment_id = find_experiment(self._client, experiment, artifact_location)
        self._runs: dict[_Key, _Known] = {}
        # By sweep: all runs of trials that started at this time or later are in `_runs`, so that
        # a trial that starts now needs no search.
        self._complete_since: dict[str, float] = {}

    def start_sweep(
        self,
        sweep_id: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        started_at_s: float | None = None,
    ) -> str:
        """Run id of a sweep; the run is created, or opened again after its end.

        Raises:
            TrackingError: A param was recorded before with another value.
        """
        with plain_errors(self.tracking_uri):
            key = (sweep_id, None)
            run = self._look_up(key)
            if run is None:
                started_at_s = time.time() if started_at_s is None else started_at_s
                run = self._create(key, name, started_at_s, {})
            self._reopen(run)
            self._send(run, params, tags)
        return run.run_id

    def start_trial(
        self,
        sweep_id: str,
        trial: int,
        name: str,
        params: Mapping[str, Any],
        started_at_s: float,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Run id of a trial that starts or continues; see `record_trial`."""
        news = TrialNews(
            trial=trial,
            name=name,
            params=params,
            started_at_s=started_at_s,
            tags=tags or {},
            is_begun=True,
        )
        return self.record_trial(sweep_id, news)

    def record_trial(self, sweep_id: str, news: TrialNews) -> str:
        """Write news to a trial's run, which is created below the sweep's run if missing.

        Returns:
            The id of the run.

        Raises:
            TrackingError: The sweep was not started, or a param was recorded before with another
                value.
        """
        with plain_errors(self.tracking_uri):
            key = (sweep_id, news.trial)
            run = self._find_trial(key, news.started_at_s)
            if run is None:
                sweep = self._look_up((sweep_id, None))
                if sweep is None:
                    raise TrackingError(
                        f"tracking: sweep {sweep_id!r} has no run; allowed: trials of a started "
                        "sweep. Call start_sweep first."
                    )
                tags = {**news.tags, "mlflow.parentRunId": sweep.run_id}
                run = self._create(key, news.name, news.started_at_s, tags)
            elif news.is_begun and news.end is None:
                self._reopen(run)
            marks = {} if news.end is None else _marks(news.end)
            self._send(run, news.params, marks, news.points)
            if news.end is not None:
                self._close(run, _STATUSES[news.end.outcome], marks, news.end.at_s)
        return run.run_id

    def find_sweep(self, sweep_id: str) -> str | None:
        """Run id of a sweep; `None` if no driver has started the sweep. Nothing is written."""
        return self._find((sweep_id, None))

    def find_trial(self, sweep_id: str, trial: int) -> str | None:
        """Run id of a trial; `None` if no driver has started the trial. Nothing is written."""
        return self._find((sweep_id, trial))

    def end_sweep(
        self,
        run_id: str,
        status: Outcome,
        metrics: Mapping[str, float],
        ended_at_s: float | None = None,
        note: str = "",
    ) -> None:
        """Close a sweep's run with its totals and a description, where one is given.

        Equal totals are not added again.
        """
        end = End(
            outcome=status, reason="", at_s=time.time() if ended_at_s is None else ended_at_s
        )
        with plain_errors(self.tracking_uri):
            recorded = self._client.get_run(run_id)
            run = self._remember(recorded)
            # By text, as NaN does not equal itself.
            had = {name: str(value) for name, value in recorded.data.metrics.items()}
            news = {k: v for k, v in metrics.items() if had.get(_plain(k)) != str(float(v))}
            marks = _marks(end)
            # Equal values are not sent again: with a server that fails now and then, one call
            # less lets the next attempt reach the end.
            is_new = note and recorded.data.tags.get(NOTE_TAG) != note
            tags = {**marks, **({NOTE_TAG: note} if is_new else {})}
            self._send(run, {}, tags, [Points(metrics=news, step=0, at_s=end.at_s)])
            self._close(run, _STATUSES[status], marks, end.at_s)

    def interrupt(self, sweep_id: str, at_s: float) -> None:
        """Close the open runs of a sweep, with a tag for the time of interruption."""
        marks = {INTERRUPTED_TAG: datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")}
        with plain_errors(self.tracking_uri):
            still_running = "attributes.status = 'RUNNING'"
            for entity in self._search({"lorchestra.sweep": sweep_id}, still_running):
                if entity.data.tags.get("lorchestra.kind") in ("sweep", "trial"):
                    run = self._remember(entity)
                    self._send(run, {}, marks)
                    self._close(run, _KILLED, marks, at_s)

    def save_view(self, view: SweepView) -> None:
        """Save a sweep's sorted table and charts, so that a link opens them in MLflow's pages."""
        with plain_errors(self.tracking_uri):
            save_view(self._client, self._experiment_id, view)

    def links(self, address: str, sweep_id: str, name: str) -> SweepLinks:
        """Links to a sweep's saved views, for MLflow's pages at an address."""
        return sweep_links(address, self._experiment_id, sweep_id, name)

    def log_text(self, run_id: str, text: str, file: str) -> None:
        """Write a text as the run's artifact `file`, in place of an earlier one."""
        with plain_errors(self.tracking_uri):
            self._client.log_text(run_id, text, file)

    def log_artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Copy a file to the run's artifacts, in place of an earlier one."""
        with plain_errors(self.tracking_uri):
            self._client.log_artifact(run_id, str(path), folder)

    # ------------------------------------------------------------------------------ finding runs

    def _find(self, key: _Key) -> str | None:
        with plain_errors(self.tracking_uri):
            run = self._look_up(key)
        return None if run is None else run.run_id

    def _look_up(self, key: _Key) -> _Known | None:
        if key not in self._runs:
            for entity in self._search(_identity(key)):
                self._remember(entity)
        return self._runs.get(key)

    def _find_trial(self, key: _Key, started_at_s: float) -> _Known | None:
        """A trial's run; a search finds the runs of all trials that started later, too."""
        sweep_id, _ = key
        since = self._complete_since.get(sweep_id)
        if key not in self._runs and (since is None or started_at_s < since):
            of_trials = {"lorchestra.kind": "trial", "lorchestra.sweep": sweep_id}
            later = f"attributes.start_time >= {_ms(started_at_s)}"
            for entity in self._search(of_trials, later):
                self._remember(entity)
            self._complete_since[sweep_id] = started_at_s
        return self._runs.get(key)

    def _search(self, tags: Mapping[str, str], also: str = "") -> Iterator[Run]:
        return find_runs(self._client, [self._experiment_id], tags, also=also)

    def _remember(self, entity: Run) -> _Known:
        """Remember the state of a run; the oldest of several runs with one identity counts."""
        tags = entity.data.tags
        trial = tags.get("lorchestra.trial")
        key = (str(tags.get("lorchestra.sweep")), None if trial is None else int(trial))
        known = _Known(
            run_id=str(entity.info.run_id),
            status=str(entity.info.status),
            marks={name: tags[name] for name in _MARKS if name in tags},
            params=dict(entity.data.params),
        )
        before = self._runs.get(key)
        if before is None or before.run_id == known.run_id:
            self._runs[key] = known
        return known

    # ------------------------------------------------------------------------------ writing runs

    def _create(
        self, key: _Key, name: str, started_at_s: float, tags: Mapping[str, str]
    ) -> _Known:
        all_tags = {**_identity(key), **tags}
        made = self._client.create_run(self._experiment_id, _ms(started_at_s), all_tags, name)
        run = _Known(run_id=str(made.info.run_id), status=_RUNNING, marks={}, params={})
        self._runs[key] = run
        return run

    def _send(
        self,
        run: _Known,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        points: Sequence[Points] = (),
    ) -> None:
        """Write params, tags and points in one call."""
        news = _new_params(run, params)
        self._client.log_batch(
            run.run_id,
            metrics=[
                Metric(_plain(name), float(value), _ms(each.at_s), each.step)
                for each in points
                for name, value in each.metrics.items()
            ],
            params=[Param(name, value) for name, value in news.items()],
            tags=[
                RunTag(name, shortened(value, MAX_TAG_CHARS))
                for name, value in tags.items()
                if run.marks.get(name) != value
            ],
        )
        run.params.update(news)
        run.marks.update({name: tags[name] for name in _MARKS if name in tags})

    def _reopen(self, run: _Known) -> None:
        if run.status != _RUNNING:
            self._client.update_run(run.run_id, status=_RUNNING)
            run.status = _RUNNING
        self._drop_marks(run, keep=())

    def _close(self, run: _Known, status: str, marks: Mapping[str, str], at_s: float) -> None:
        self._drop_marks(run, keep=tuple(marks))
        self._client.set_terminated(run.run_id, status, _ms(at_s))
        run.status = status

    def _drop_marks(self, run: _Known, keep: Sequence[str]) -> None:
        for name in [name for name in run.marks if name not in keep]:
            self._client.delete_tag(run.run_id, name)
            del run.marks[name]


def _identity(key: _Key) -> dict[str, str]:
    sweep_id, trial = key
    if trial is None:
        return {"lorchestra.kind": "sweep", "lorchestra.sweep": sweep_id}
    return {
        "lorchestra.kind": "trial",
        "lorchestra.sweep": sweep_id,
        "lorchestra.trial": str(trial),
    }


def _marks(end: End) -> dict[str, str]:
    marks = {_OUTCOME: str(end.outcome), _REASON: end.reason}
    return {name: text for name, text in marks.items() if text}


def _new_params(run: _Known, params: Mapping[str, Any]) -> dict[str, str]:
    """Params missing from the run, in MLflow's form.

    Raises:
        TrackingError: The run has a param with another value.
    """
    wanted = {_plain(k): shortened(str(value), MAX_PARAM_CHARS) for k, value in params.items()}
    for name, value in wanted.items():
        if run.params.get(name, value) != value:
            raise TrackingError(
                f"param {name!r} of run {run.run_id}: got {value!r}; allowed: "
                f"{run.params[name]!r}, as recorded before. Start a new sweep for another "
                "configuration."
            )
    return {name: value for name, value in wanted.items() if name not in run.params}


def _plain(name: str) -> str:
    """A valid name of a metric or param; MLflow refuses a whole call with an invalid name."""
    name = re.sub(r"[^\w\-. :/]", "_", name)
    is_path = posixpath.normpath(name) == name and not name.startswith(("/", ".."))
    return name if is_path and name != "." else name.replace("/", "_").replace("..", "__")


def _ms(at_s: float) -> int:
    return round(at_s * 1000)
