"""Views of a sweep's trials in MLflow's pages, saved so that a link opens them.

MLflow 3.17 keeps a shared view as JSON in a tag of the experiment, and opens the view for an
address with the tag's key. The fields are those of its own pages (`ExperimentPageUIState`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run

from registry.tracking.connection import plain_errors, without_secrets
from registry.tracking.search import find_runs

VIEW_TAG = "mlflow.sharedViewState."
"""Start of the tags of an experiment that hold shared views."""

_KIND_TAG, _MACHINE_LEARNING = "mlflow.experimentKind", "custom_model_development"
"""Without this tag, MLflow's pages ask for the kind of the experiment in a dialog."""

_MEASURES = ("eval_loss", "eval_accuracy")
_MAX_AXES = 12
_SHOWN_SWEEPS = 5


@dataclass(frozen=True, kw_only=True)
class SweepView:
    """What a table and a comparison of a sweep's trials show.

    Attributes:
        sweep_id: The sweep.
        settings: Names of the searched settings, as params of the trials' runs.
        metric: Metric that sorts the trials.
        mode: Whether less or more is better.
    """

    sweep_id: str
    settings: Sequence[str]
    metric: str
    mode: Literal["min", "max"] = "min"

    @property
    def measures(self) -> list[str]:
        """Metrics of the table, the metric that sorts first."""
        return list(dict.fromkeys((self.metric, *_MEASURES)))


@dataclass(frozen=True, kw_only=True)
class SweepLinks:
    """Addresses of a sweep's views.

    Attributes:
        name: Name of the sweep.
        table: Address of the sorted table of trials.
        charts: Address of the charts that compare the trials.
    """

    name: str
    table: str
    charts: str

    @property
    def lines(self) -> tuple[str, str]:
        """A line of text for each address."""
        return (
            f"  trials of {self.name}, best first: {self.table}",
            f"  trials of {self.name} compared:    {self.charts}",
        )


def save_view(client: MlflowClient, experiment_id: str, view: SweepView) -> None:
    """Write a sweep's views to its experiment; equal views are not written again."""
    there = client.get_experiment(experiment_id).tags
    table, charts = _keys(view.sweep_id)
    wanted = {
        _KIND_TAG: there.get(_KIND_TAG, _MACHINE_LEARNING),
        VIEW_TAG + table: json.dumps(_table(view)),
        VIEW_TAG + charts: json.dumps(_charts(view)),
    }
    for key, value in wanted.items():
        if there.get(key) != value:
            client.set_experiment_tag(experiment_id, key, value)


def sweep_links(address: str, experiment_id: str, sweep_id: str, name: str) -> SweepLinks:
    """Addresses of a sweep's saved views at a server."""
    table, charts = _keys(sweep_id)
    return SweepLinks(
        name=name,
        table=_link(address, experiment_id, table),
        charts=_link(address, experiment_id, charts, compareRunsMode="CHART"),
    )


def newest_links(
    client: MlflowClient,
    experiment: str,
    address: str,
    modes: Mapping[str, Literal["min", "max"]],
    *,
    may_save: bool,
) -> list[SweepLinks]:
    """Links to the views of the newest sweeps, the newest first.

    Args:
        client: Of the server or database.
        experiment: Experiment of the sweeps; a missing one has no sweeps.
        address: Of the pages.
        modes: Whether less or more of a metric is better; less for unknown metrics.
        may_save: Save the views of sweeps of earlier versions, which have none.
    """
    with plain_errors(client.tracking_uri):
        found = client.get_experiment_by_name(experiment)
        return [] if found is None else list(_links(client, found, address, modes, may_save))


def _links(
    client: MlflowClient,
    experiment: Experiment,
    address: str,
    modes: Mapping[str, Literal["min", "max"]],
    may_save: bool,
) -> Iterator[SweepLinks]:
    number = str(experiment.experiment_id)
    sweeps = find_runs(
        client, [number], {"lorchestra.kind": "sweep"}, newest_first=True, page_size=_SHOWN_SWEEPS
    )
    for run, _ in zip(sweeps, range(_SHOWN_SWEEPS), strict=False):
        sweep_id = run.data.tags["lorchestra.sweep"]
        is_saved = VIEW_TAG + _keys(sweep_id)[0] in experiment.tags
        if not is_saved and may_save:
            save_view(client, number, _observed_view(client, number, run, modes))
        if is_saved or may_save:
            yield sweep_links(address, number, sweep_id, run.info.run_name)


def _observed_view(
    client: MlflowClient,
    experiment_id: str,
    sweep: Run,
    modes: Mapping[str, Literal["min", "max"]],
) -> SweepView:
    """The view of a sweep without a saved one: its settings are the params that differ."""
    sweep_id = sweep.data.tags["lorchestra.sweep"]
    of_trials = {"lorchestra.kind": "trial", "lorchestra.sweep": sweep_id}
    values: dict[str, set[str]] = {}
    for trial in find_runs(client, [experiment_id], of_trials):
        for name, value in trial.data.params.items():
            values.setdefault(name, set()).add(value)
    metric = sweep.data.params.get("objective", "eval_loss")
    return SweepView(
        sweep_id=sweep_id,
        settings=[name for name, seen in values.items() if len(seen) > 1 and name != "seed"],
        metric=metric,
        mode=modes.get(metric, "min"),
    )


def _keys(sweep_id: str) -> tuple[str, str]:
    """Keys of the table and of the charts; short, because people copy the addresses."""
    return f"trials-{sweep_id[:8]}", f"compared-{sweep_id[:8]}"


def _link(address: str, experiment_id: str, key: str, **more: str) -> str:
    query = urlencode({"workflowType": "machine_learning", "viewStateShareKey": key} | more)
    return f"{without_secrets(address).rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def _table(view: SweepView) -> dict[str, Any]:
    """State of the table: the trials, best first, with measures and settings as columns."""
    return {
        "searchFilter": (
            f"tags.`lorchestra.kind` = 'trial' and tags.`lorchestra.sweep` = '{view.sweep_id}'"
        ),
        "orderByKey": f"metrics.`{view.metric}`",
        "orderByAsc": view.mode == "min",
        "selectedColumns": [
            *(f"metrics.`{name}`" for name in view.measures),
            *(f"params.`{name}`" for name in view.settings),
        ],
    }


def _charts(view: SweepView) -> dict[str, Any]:
    """State of the charts: parallel coordinates of the settings, and the metric by step."""
    charts: list[dict[str, Any]] = [
        {
            "type": "PARALLEL",
            "selectedParams": list(view.settings)[:_MAX_AXES],
            "selectedMetrics": [view.metric],
            "showAllRuns": False,
        },
        {
            "type": "LINE",
            "metricKey": view.metric,
            "selectedMetricKeys": [view.metric],
            "lineSmoothness": 0,
            "useGlobalLineSmoothing": False,
        },
    ]
    made = {"deleted": False, "isGenerated": False}
    section = {"uuid": "trials", "name": "Trials", "display": True, "isReordered": False}
    return _table(view) | {
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [section | made | {"columns": 1, "cardHeight": 360}],
        "compareRunCharts": [
            chart | made | {"uuid": f"chart-{number}", "metricSectionId": section["uuid"]}
            for number, chart in enumerate(charts)
        ],
    }
