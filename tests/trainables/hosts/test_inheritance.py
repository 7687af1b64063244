"""A trial goes on from another one's state, also while that one's host replaces it."""

import json
import threading

import pytest

from trainables.hosts.progress import copy_progress, find_progress, load_reports, save_progress
from trainables.hosts.storage import join_location

HORIZON = 100


def save_weight(weight):
    return lambda folder: (folder / "state.json").write_text(json.dumps(weight))


def reports_to(step):
    return [{"step": done, "host_s": 1.5 * done} for done in range(10, step + 1, 10)]


def newest(state_dir):
    with find_progress(state_dir) as kept:
        return json.loads((kept / "state.json").read_text()), load_reports(kept)


@pytest.fixture
def folders(location):
    return join_location(location, "parent"), join_location(location, "child")


def test_a_child_has_the_newest_state_of_its_parent_and_no_time_of_its_own(folders):
    parent, child = folders
    for step in (10, 20):
        save_progress(parent, step, reports_to(step), save_weight(step / 8))
    assert copy_progress(parent, child, HORIZON) == 20
    weight, reports = newest(child)
    assert weight == 2.5
    assert [report["step"] for report in reports] == [10, 20]
    assert reports[-1]["host_s"] == 0.0
    assert newest(parent) == (2.5, reports_to(20))


def test_a_child_that_trained_is_not_put_back_and_knows_where_it_began(folders):
    parent, child = folders
    save_progress(parent, 20, reports_to(20), save_weight(1))
    copy_progress(parent, child, HORIZON)
    _, inherited = newest(child)
    save_progress(child, 30, [*inherited, {"step": 30, "host_s": 3.0}], save_weight(2))
    save_progress(parent, 40, reports_to(40), save_weight(3))
    assert copy_progress(parent, child, HORIZON) == 20
    assert newest(child)[0] == 2


def test_a_trial_that_began_with_nothing_says_so_when_asked_again(folders):
    parent, child = folders
    assert copy_progress(parent, child, HORIZON) is None
    save_progress(child, 10, reports_to(10), save_weight(1))
    save_progress(parent, 20, reports_to(20), save_weight(2))
    assert copy_progress(parent, child, HORIZON) is None
    assert newest(child)[0] == 1


def test_a_parent_that_is_through_gives_nothing_to_go_on_with(folders):
    parent, child = folders
    save_progress(parent, HORIZON, reports_to(HORIZON), save_weight(1))
    assert copy_progress(parent, child, HORIZON) is None


def test_a_copy_is_whole_while_the_parent_replaces_its_states(tmp_path):
    parent = str(tmp_path / "parent")
    save_progress(parent, 10, reports_to(10), save_weight(10))
    is_over = threading.Event()

    def train():
        step = 10
        while not is_over.wait(0.003):  # a pause, for the copies to find a state that stays
            step += 10
            save_progress(parent, step, [{"step": step}], save_weight(step))

    training = threading.Thread(target=train)
    training.start()
    try:
        for number in range(60):
            child = str(tmp_path / f"child-{number}")
            step = copy_progress(parent, child, below=10**6)
            assert newest(child)[0] == step
    finally:
        is_over.set()
        training.join()
