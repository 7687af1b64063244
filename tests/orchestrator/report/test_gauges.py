"""The gauges of a running sweep, and the dashboard that shows them."""

import json
import re
from pathlib import Path

import pytest
import ray

from orchestrator.hosts.broker import start_broker
from orchestrator.hosts.members import Occupancy
from orchestrator.journal.history import SweepHistory
from orchestrator.report.gauges import GAUGES, GaugeFeed, read_gauges
from orchestrator.search.budget import Limit
from orchestrator.spec.sections import ObjectiveSpec
from tests.support.events import event
from tests.support.searched import SearchedSweep, build_searched_spec

DASHBOARD = Path(__file__).parents[3] / "k8s" / "grafana" / "lorchestra.json"
LIMITS = [Limit(name="wall_clock_s", limit=600.0, spent=150.0, rate=0.0)]
OCCUPANCY = Occupancy(hosts=2, seats=8, seated=3, waiting=1)


@pytest.fixture
def sweep(tmp_path):
    searched = SearchedSweep(tmp_path, build_searched_spec())
    yield searched
    searched.log.close()


def values(history, occupancy=OCCUPANCY):
    readings = read_gauges(history, ObjectiveSpec(), LIMITS, occupancy)
    return {(one.gauge.removeprefix("lorchestra_"), *one.labels.values()): one.value
            for one in readings}  # fmt: skip


def test_the_gauges_tell_states_seats_speed_memory_and_budget(sweep):
    speed = {"eval_loss": 2.5, "tokens_per_s": 100.0, "peak_memory_gib": 1.5}
    for trial, extra in ((4, 0.0), (5, 50.0)):
        spec = sweep.record.history.trials[0].spec
        sweep.record.add(event("trial_started", trial=trial, knobs={}, spec=spec))
        metrics = speed | {"tokens_per_s": 100.0 + extra}
        sweep.record.add(event("report", trial=trial, step=10, metrics=metrics))
    found = values(sweep.record.history)
    assert found["trials", "running"] == 2
    assert (found["trials", "completed"], found["trials", "diverged"]) == (3, 1)
    assert (found["trials", "failed"], found["trials_waiting",]) == (0, 1)
    assert (found["seats", "taken"], found["seats", "free"], found["hosts",]) == (3, 5, 2)
    assert (found["tokens_per_second",], found["peak_memory_gib",]) == (250.0, 1.5)
    own = speed | {"host_peak_memory_gib": 6.0}
    sweep.record.add(event("report", trial=5, step=20, metrics=own))
    assert values(sweep.record.history)["peak_memory_gib",] == 6.0
    assert found["best_objective", "eval_loss"] == 1.0
    assert found["budget_spent", "wall_clock_s"] / found["budget_limit", "wall_clock_s"] == 0.25


def test_every_reading_has_a_gauge_with_its_labels_and_every_gauge_is_read(sweep):
    history = sweep.record.history
    readings = list(read_gauges(history, ObjectiveSpec(), LIMITS, OCCUPANCY))
    assert {one.gauge for one in readings} == set(GAUGES)
    assert all(tuple(one.labels) == GAUGES[one.gauge][1] for one in readings)


def test_a_sweep_that_has_begun_nothing_has_no_best_objective():
    found = values(SweepHistory(), Occupancy(hosts=0, seats=0, seated=0, waiting=0))
    assert found["trials", "running"] == 0
    assert ("best_objective", "eval_loss") not in found


@pytest.mark.ray
def test_the_feed_asks_the_broker_and_sets_every_gauge(local_ray, sweep):
    history = sweep.record.history
    broker = start_broker(str(sweep.storage))
    ray.get(broker.ping.remote())  # a busy machine takes seconds to start it
    asked = []

    def read(occupancy):
        asked.append(occupancy)
        yield from read_gauges(history, ObjectiveSpec(), LIMITS, occupancy)

    with GaugeFeed("tiny", broker.occupancy.remote, read) as feed:
        feed.update()  # a label that a gauge lacks would be an error
    ray.kill(broker)
    assert asked == [Occupancy(hosts=0, seats=0, seated=0, waiting=0)]


def test_the_dashboard_asks_for_gauges_that_are_exported_and_for_all_of_them():
    board = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [one["query"] for one in board["templating"]["list"] if one["type"] == "query"]
    names = {name for text in asked for name in re.findall(r"ray_(\w+)", text)}
    assert names == set(GAUGES)  # Ray exports a gauge with `ray_` before its name
    labels = {name for panel in board["panels"] for target in panel["targets"]
              for name in re.findall(r"{{(\w+)}}", target["legendFormat"])}  # fmt: skip
    assert labels <= {"sweep", *(label for _, of_gauge in GAUGES.values() for label in of_gauge)}
