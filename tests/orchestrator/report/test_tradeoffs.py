"""Trials by their objective and by what they cost."""

import struct

import pandas as pd
import pytest

from orchestrator.report.tradeoffs import COSTS, draw_tradeoffs, find_tradeoffs, plot_tradeoffs


def build_board(rows, metric="eval_loss"):
    """Rows of (rank, objective, memory, parameters, seconds); trials are numbered from 10."""
    columns = ["rank", metric, *COSTS]
    board = pd.DataFrame(rows, columns=columns)
    board.insert(1, "trial", range(10, 10 + len(rows)))
    return board


ROWS = [
    (1, 0.1, 2.0, 400, 9.0),
    (2, 0.2, 1.0, 400, 8.0),
    (3, 0.3, 1.5, 400, 7.0),
    (4, 0.4, 3.0, 400, None),
    (None, 0.01, 0.1, 1, 0.1),
]


def test_the_front_holds_ranked_trials_that_are_best_for_their_price():
    memory, time = find_tradeoffs(build_board(ROWS), metric="eval_loss", mode="min")
    assert (memory.cost, time.cost) == ("peak_memory_gib", "host_s")  # parameters do not differ
    assert [point.trial for point in memory.front] == [11, 10]
    assert [point.trial for point in memory.others] == [12, 13]
    assert memory.staircase() == ([1.0, 2.0], [0.2, 0.1])
    assert [point.trial for point in time.front] == [12, 11, 10]
    assert time.others == []  # trial 13 has no time


def test_more_is_better_where_the_objective_says_so():
    rows = [(1, 0.9, 2.0, 1, 1.0), (2, 0.8, 1.0, 1, 1.0), (3, 0.7, 1.5, 1, 1.0)]
    (memory,) = find_tradeoffs(build_board(rows), metric="eval_loss", mode="max")
    assert [point.trial for point in memory.front] == [11, 10]


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS[-1:]], ids=["none", "one", "unranked"])
def test_too_few_trials_have_no_tradeoff(rows):
    assert find_tradeoffs(build_board(rows), metric="eval_loss", mode="min") == []


def test_pictures_have_a_panel_for_each_cost_and_stress_the_best():
    found = find_tradeoffs(build_board(ROWS), metric="eval_loss", mode="min")
    figure = plot_tradeoffs(found, metric="eval_loss", best=10)
    named = {(trace.name, trace.xaxis): list(trace.customdata) for trace in figure.data
             if trace.name}  # fmt: skip
    assert named == {
        ("others", "x"): [12, 13],
        ("on the front", "x"): [11],
        ("best: trial 10", "x"): [10],
        ("on the front", "x2"): [12, 11],
        ("best: trial 10", "x2"): [10],
    }
    assert {figure.layout.xaxis.title.text, figure.layout.xaxis2.title.text} == {
        COSTS["peak_memory_gib"], COSTS["host_s"],
    }  # fmt: skip
    shown = [trace.name for trace in figure.data if trace.name and trace.showlegend]
    assert sorted(shown) == ["best: trial 10", "on the front", "others"]
    png = draw_tradeoffs(found, title="a-sweep", metric="eval_loss", best=10)
    assert struct.unpack(">II", png[16:24]) == (1290, 600)


def test_wide_costs_and_objectives_have_logarithmic_axes():
    rows = [(1, 0.01, 100.0, 10, 1.0), (2, 1.0, 1.0, 10, 2.0)]
    found = find_tradeoffs(build_board(rows), metric="eval_loss", mode="min")
    figure = plot_tradeoffs(found, metric="eval_loss", best=None)
    assert (figure.layout.xaxis.type, figure.layout.xaxis2.type) == ("log", "linear")
    assert figure.layout.yaxis.type == "log"
    assert draw_tradeoffs(found, title="t", metric="eval_loss", best=None)[:4] == b"\x89PNG"
