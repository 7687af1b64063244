"""Trials by their objective and by what they cost."""

import struct

import pandas as pd
import pytest

from orchestrator.report.tradeoffs import COSTS, draw_tradeoffs, find_tradeoffs


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


def test_the_picture_has_a_panel_for_each_cost():
    found = find_tradeoffs(build_board(ROWS), metric="eval_loss", mode="min")
    png = draw_tradeoffs(found, title="a-sweep", metric="eval_loss", best=10)
    assert struct.unpack(">II", png[16:24]) == (1290, 600)
