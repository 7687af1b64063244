"""The benchmarks of the search at their smallest: that they run, and that their tables add up."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import ray

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name):
    """A script as a module that Ray carries to workers by value."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    ray.cloudpickle.register_pickle_by_value(module)
    return module


@pytest.mark.ray
@pytest.mark.slow
def test_overhead_is_counted_for_each_trial_and_report(local_ray, tmp_path):
    overhead = load("search_overhead")
    readings = overhead.run_trials(4, "random", "none", tmp_path, seats=1)
    row = overhead.summarize(4, readings)
    assert readings[-1].trials == 4
    assert readings[-1].reports == 4 * overhead.REPORTS
    assert len(row["driver_ms_by_window"]) >= 2
    assert row["driver_ms"] > row["driver_ms_per_report"] > 0
    assert row["children_ms"] > 0
    assert set(row["parts_ms"]) == set(overhead.COLUMNS)
    assert row["threads_ms"][overhead.DELIVERY] > 0
    assert sum(row["parts_ms"].values()) < row["wall_ms"]
    heading, _, line = overhead.table([row]).splitlines()
    assert line.count("|") == heading.count("|")
    assert line.startswith("| 4 | ")
    _, _, driver, broker, proxy = overhead.memory_table([row]).splitlines()
    assert driver.startswith("| 4 | driver | ")
    assert all(float(cell) > 10 for line in (broker, proxy) for cell in line.split("|")[3:-1])


@pytest.fixture(scope="module")
def efficiency():
    return load("search_efficiency")


@pytest.fixture(scope="module")
def compared(efficiency, tmp_path_factory):
    """Two seeds of every search, on a grid of four."""
    settings = {
        "steps": 8,
        "space": {
            "lora.rank": {"choice": [2, 8]},
            "optim.learning_rate": {"choice": [1e-3, 1e-2]},
        },
    }
    folder = tmp_path_factory.mktemp("efficiency")
    rows, curves = efficiency.run(folder, 2, **settings)
    return folder, settings, rows, curves


def test_every_grid_point_has_its_curve(efficiency, compared):
    _, _, _, curves = compared
    assert len(curves) == 4
    curve = curves.of({"lora.rank": 8, "optim.learning_rate": 1e-2})
    assert [report.step for report in curve] == list(range(1, 9))
    assert curve[-1].loss < curve[0].loss
    assert all(math.isfinite(report.loss) for report in curve)


def test_a_grid_finds_its_own_best_and_is_what_the_others_are_compared_with(efficiency, compared):
    _, _, rows, _ = compared
    assert [row["method"] for row in rows] == list(efficiency.METHODS)
    assert rows[0]["ratio"] == 1.0
    for row in rows[:3]:  # without early stopping a search of the whole space finds it
        assert row["reached"] == 2
        assert 0 < row["tokens"] <= 1
        assert 1 <= row["trials"] <= 4
    assert efficiency.table(rows, 2).count("\n") == 1 + len(rows)


def test_curves_are_trained_once_and_searches_repeat(efficiency, compared):
    folder, settings, rows, _ = compared
    kept = efficiency.digest_of(folder)
    curves = efficiency.Curves(efficiency.build_spec(folder, **settings), folder / "curves.json")
    assert curves.fill() < 0.5
    assert efficiency.compare(folder, curves, 2, **settings) == rows
    assert efficiency.digest_of(folder) == kept
