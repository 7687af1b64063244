"""A sweep's table and charts are saved in its experiment, and a link names them."""

import json
from dataclasses import replace
from urllib.parse import parse_qs

import pytest
from mlflow import MlflowClient

from registry.tracking.tracker import Tracker
from registry.tracking.trial_news import End, Points, TrialNews
from registry.tracking.views import (
    VIEW_TAG,
    SweepView,
    newest_links,
    save_view,
    sweep_links,
)
from trainables.contract import Outcome

ADDRESS = "http://here:5000"


@pytest.fixture
def tracker(tracking_uri: str, name: str, artifact_location: str) -> Tracker:
    return Tracker(tracking_uri, name, artifact_location)


@pytest.fixture
def number(tracker: Tracker, client: MlflowClient, name: str) -> str:
    return str(client.get_experiment_by_name(name).experiment_id)


def saved(client: MlflowClient, number: str, link: str) -> dict[str, object]:
    """The state of the view that a link names."""
    (key,) = parse_qs(link.partition("?")[2])["viewStateShareKey"]
    state: dict[str, object] = json.loads(client.get_experiment(number).tags[VIEW_TAG + key])
    return state


def record(tracker: Tracker, sweep_id: str, objective: str) -> None:
    tracker.start_sweep(sweep_id, "tiny", {"objective": objective}, {})
    for trial, rank in enumerate((4, 8)):
        params = {"lora.rank": rank, "lora.alpha": 16, "seed": trial}
        news = TrialNews(trial=trial, name=f"trial-{trial}", params=params, started_at_s=1.0)
        news.points.append(Points(metrics={objective: 0.5}, step=1, at_s=2.0))
        news.end = End(outcome=Outcome.COMPLETED, reason="", at_s=3.0)
        tracker.record_trial(sweep_id, news)


def test_a_link_names_the_table_that_was_saved(client: MlflowClient, number: str) -> None:
    view = SweepView(sweep_id="f" * 32, settings=["lora.rank"], metric="eval_loss")
    save_view(client, number, view)
    links = sweep_links(ADDRESS, number, view.sweep_id, "tiny")
    table = saved(client, number, links.table)
    assert table["orderByKey"] == "metrics.`eval_loss`"
    assert table["orderByAsc"] is True
    assert view.sweep_id in str(table["searchFilter"])
    assert table["selectedColumns"] == [
        "metrics.`eval_loss`", "metrics.`eval_accuracy`", "params.`lora.rank`",
    ]  # fmt: skip
    charts = saved(client, number, links.charts)["compareRunCharts"]
    assert charts[0]["selectedParams"] == ["lora.rank"]  # type: ignore[index]
    for link in (links.table, links.charts):
        assert link.startswith(f"{ADDRESS}/#/experiments/{number}/runs?")
        assert "workflowType=machine_learning" in link


def test_the_objective_decides_the_order(client: MlflowClient, number: str) -> None:
    view = SweepView(sweep_id="e" * 32, settings=[], metric="eval_accuracy", mode="max")
    for each in (replace(view, mode="min"), view):  # the later one counts
        save_view(client, number, each)
    table = saved(client, number, sweep_links(ADDRESS, number, view.sweep_id, "tiny").table)
    assert (table["orderByKey"], table["orderByAsc"]) == ("metrics.`eval_accuracy`", False)


def test_a_sweep_of_an_earlier_release_gets_views_with_the_settings_that_differ(
    tracker: Tracker, client: MlflowClient, name: str, number: str
) -> None:
    record(tracker, "a" * 32, "eval_accuracy")
    modes = {"eval_accuracy": "max"}
    assert newest_links(client, name, ADDRESS, modes, may_save=False) == []  # type: ignore[arg-type]
    (links,) = newest_links(client, name, ADDRESS, modes, may_save=True)  # type: ignore[arg-type]
    table = saved(client, number, links.table)
    assert table["orderByAsc"] is False
    assert table["selectedColumns"][-1] == "params.`lora.rank`"  # type: ignore[index]
    assert "params.`seed`" not in table["selectedColumns"]  # type: ignore[operator]
    assert newest_links(client, name, ADDRESS, {}, may_save=False) == [links]
    assert links.name == "tiny"


def test_without_an_experiment_there_are_no_links(client: MlflowClient) -> None:
    assert newest_links(client, "nothing-of-the-kind", ADDRESS, {}, may_save=True) == []


def test_a_long_list_of_settings_fits_a_tag(client: MlflowClient, number: str) -> None:
    settings = [f"lora.a_setting_with_a_long_name_{index}" for index in range(60)]
    view = SweepView(sweep_id="d" * 32, settings=settings, metric="eval_loss")
    save_view(client, number, view)
    links = sweep_links(ADDRESS, number, view.sweep_id, "tiny")
    assert len(saved(client, number, links.table)["selectedColumns"]) > 12  # type: ignore[arg-type]
