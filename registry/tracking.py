"""The one place that writes runs: a sweep is a run, its trials are the runs below it.

Everything is found by tag before it is made, so recording twice, from a new process too, makes
nothing twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from registry.connection import connect, is_already_there, plain_errors
from registry.errors import TrackingError

Outcome = Literal["completed", "stopped", "infeasible", "diverged", "failed", "cancelled"]

_STATUSES: dict[Outcome, str] = {
    "completed": "FINISHED",
    "stopped": "FINISHED",
    "infeasible": "FAILED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "cancelled": "KILLED",
}

# Limits of MLflow 3.17: mlflow/utils/validation.py.
_MAX_PARAM_CHARS = 6000
_MAX_TAG_CHARS = 8000
_MAX_PARAMS_PER_CALL = 100
_MAX_METRICS_PER_CALL = 1000

_Item = TypeVar("_Item")

_Key = tuple[str, int | None]
"""A sweep's id and, for one of its trials, the trial's number."""


class Tracker:
    """Writes the runs of one experiment, each of them once.

    Run ids are remembered, and looked up by tag when they are not, as after a restart of the
    driver. Every method raises `TrackingError` when the server cannot be used; the same call can
    then be made again later.
    """

    def __init__(
        self, tracking_uri: str, experiment: str, artifact_location: str | None = None
    ) -> None:
        self.tracking_uri = tracking_uri
        self._client = connect(tracking_uri)
        with plain_errors(tracking_uri):
            self._experiment_id = find_experiment(self._client, experiment, artifact_location)
        self._run_ids: dict[_Key, str] = {}

    def start_sweep(
        self, sweep_id: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str:
        """The sweep's run, made on first use and opened again when it had ended.

        Raises:
            TrackingError: A param was recorded before with another value.
        """
        with plain_errors(self.tracking_uri):
            run_id = self._open((sweep_id, None), name, time.time())
            self._set_tags(run_id, tags)
            self._log_params(run_id, params)
        return run_id

    def start_trial(
        self,
        sweep_id: str,
        trial: int,
        name: str,
        params: Mapping[str, Any],
        started_at_s: float,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """The trial's run below its sweep's, made on first use and opened again when it had ended.

        Raises:
            TrackingError: The sweep was not started, or a param was recorded before with another
                value.
        """
        with plain_errors(self.tracking_uri):
            parent = self._look_up((sweep_id, None))
            if parent is None:
                raise TrackingError(
                    f"tracking: sweep {sweep_id!r} has no run; allowed: trials of a started "
                    "sweep. Call start_sweep first."
                )
            tags = {**(tags or {}), "mlflow.parentRunId": parent}
            run_id = self._open((sweep_id, trial), name, started_at_s, tags)
            self._log_params(run_id, params)
        return run_id

    def find_sweep(self, sweep_id: str) -> str | None:
        """Run id of a sweep that was started, now or by an earlier driver; changes nothing."""
        with plain_errors(self.tracking_uri):
            return self._look_up((sweep_id, None))

    def find_trial(self, sweep_id: str, trial: int) -> str | None:
        """Run id of a trial that was started, now or by an earlier driver; changes nothing."""
        with plain_errors(self.tracking_uri):
            return self._look_up((sweep_id, trial))

    def log_metrics(
        self, run_id: str, metrics: Mapping[str, float], step: int, at_s: float
    ) -> None:
        """Add one point to each metric; the same points sent again stay one.

        Times are seconds since the epoch. The time is part of a point's identity: send a point
        again with the time it had first. NaN and infinities are kept as such.
        """
        points = [Metric(key, float(value), _ms(at_s), step) for key, value in metrics.items()]
        with plain_errors(self.tracking_uri):
            for chunk in _chunks(points, _MAX_METRICS_PER_CALL):
                self._client.log_batch(run_id, metrics=chunk)

    def end_trial(self, run_id: str, outcome: Outcome, reason: str, ended_at_s: float) -> None:
        """Close a trial's run: an early stop has finished, a trial that could not go on failed."""
        with plain_errors(self.tracking_uri):
            self._close(run_id, outcome, reason, ended_at_s)

    def end_sweep(
        self,
        run_id: str,
        status: Outcome,
        metrics: Mapping[str, float],
        ended_at_s: float | None = None,
    ) -> None:
        """Close a sweep's run with its totals; totals that it has already are not added again."""
        ended_at_s = time.time() if ended_at_s is None else ended_at_s
        with plain_errors(self.tracking_uri):
            recorded = self._client.get_run(run_id).data.metrics
            # By text, as NaN does not equal itself.
            news = {k: v for k, v in metrics.items() if str(recorded.get(k)) != str(float(v))}
            self.log_metrics(run_id, news, 0, ended_at_s)
            self._close(run_id, status, "", ended_at_s)

    def log_text(self, run_id: str, text: str, file: str) -> None:
        """Keep a text as the run's artifact `file`, in place of an earlier one."""
        with plain_errors(self.tracking_uri):
            self._client.log_text(run_id, text, file)

    def log_artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file among the run's artifacts, in place of an earlier one."""
        with plain_errors(self.tracking_uri):
            self._client.log_artifact(run_id, str(path), folder)

    def _open(
        self,
        key: tuple[str, int | None],
        name: str,
        started_at_s: float,
        more_tags: Mapping[str, str] | None = None,
    ) -> str:
        run_id = self._look_up(key)
        if run_id is None:
            tags = {**_identity(key), **(more_tags or {})}
            run = self._client.create_run(self._experiment_id, _ms(started_at_s), tags, name)
            run_id = self._run_ids[key] = str(run.info.run_id)
        elif self._client.get_run(run_id).info.status != "RUNNING":
            self._reopen(run_id)
        return run_id

    def _look_up(self, key: tuple[str, int | None]) -> str | None:
        if key not in self._run_ids:
            wanted = " and ".join(
                f"tags.`{tag}` = {_quoted(value)}" for tag, value in _identity(key).items()
            )
            runs = self._client.search_runs(
                [self._experiment_id],
                wanted,
                max_results=1,
                order_by=["attributes.start_time ASC"],
            )
            if not runs:
                return None
            self._run_ids[key] = str(runs[0].info.run_id)
        return self._run_ids[key]

    def _sweep_run_id(self, sweep_id: str) -> str:
        known = self._look_up((sweep_id, None))
        if known is None:
            raise TrackingError(
                f"tracking: sweep {sweep_id!r} has no run; allowed: trials of a started sweep. "
                "Call start_sweep first."
            )
        return known

    def _reopen(self, run_id: str) -> None:
        self._client.update_run(run_id, status="RUNNING")
        tags = self._client.get_run(run_id).data.tags
        for key in ("lorchestra.outcome", "lorchestra.reason"):
            if key in tags:
                self._client.delete_tag(run_id, key)

    def _close(self, run_id: str, outcome: Outcome, reason: str, ended_at_s: float) -> None:
        tags = {"lorchestra.outcome": outcome, "lorchestra.reason": reason}
        self._set_tags(run_id, {key: value for key, value in tags.items() if value})
        self._client.set_terminated(run_id, _STATUSES[outcome], _ms(ended_at_s))

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_tag(run_id, key, shortened(value, _MAX_TAG_CHARS))

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        recorded = self._client.get_run(run_id).data.params
        wanted = {key: shortened(str(value), _MAX_PARAM_CHARS) for key, value in params.items()}
        for key, value in wanted.items():
            if recorded.get(key, value) != value:
                raise TrackingError(
                    f"param {key!r} of run {run_id}: got {value!r}; allowed: {recorded[key]!r}, "
                    "as recorded before. Start a new sweep for another configuration."
                )
        news = [Param(key, value) for key, value in wanted.items() if key not in recorded]
        for chunk in _chunks(news, _MAX_PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=chunk)


def find_experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    """Id of the experiment, made when there is none.

    Raises:
        TrackingError: An experiment of that name was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location))
        except MlflowException as error:
            if not is_already_there(error):
                raise
            found = client.get_experiment_by_name(name)  # another process was faster
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"experiment {name!r}: it was deleted; allowed: a new name or an active experiment. "
            f"Restore it: mlflow experiments restore -x {found.experiment_id}"
        )
    return str(found.experiment_id)


def tracking_uri_for(runs_dir: Path) -> tuple[str, str | None]:
    """Where to track: `$MLFLOW_TRACKING_URI`, else a SQLite file in `runs_dir`.

    Returns:
        The tracking URI, and where artifacts go (`None` leaves that to the server).
    """
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named, artifact_location_for(named)
    folder = runs_dir.expanduser().resolve()
    tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
    return tracking_uri, artifact_location_for(tracking_uri)


def artifact_location_for(tracking_uri: str) -> str | None:
    """`mlartifacts` beside a SQLite file; `None` leaves it to the server.

    MLflow itself would put artifacts of a SQLite file below the current folder.
    """
    if not tracking_uri.startswith("sqlite:///"):
        return None
    database = Path(tracking_uri.removeprefix("sqlite:///")).resolve()
    return (database.parent / "mlartifacts").as_uri()


def shortened(text: str, max_chars: int) -> str:
    """The text, cut to `max_chars` with a mark when it is longer."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def _identity(key: _Key) -> dict[str, str]:
    sweep_id, trial = key
    if trial is None:
        return {"lorchestra.kind": "sweep", "lorchestra.sweep": sweep_id}
    return {
        "lorchestra.kind": "trial",
        "lorchestra.sweep": sweep_id,
        "lorchestra.trial": str(trial),
    }


def _ms(at_s: float) -> int:
    return round(at_s * 1000)


def _quoted(value: str) -> str:
    if "'" in value:
        raise TrackingError(
            f"sweep id: got {value!r}; allowed: text without quotes, as MLflow's filters cannot "
            "hold them. Rename the sweep."
        )
    return f"'{value}'"


def _chunks(items: Sequence[_Item], size: int) -> Iterator[list[_Item]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
