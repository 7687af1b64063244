"""A trial goes on from another one's state, also while that one's host replaces it."""

import json
import threading
from dataclasses import replace

import pytest

from tests.support.damage import garble
from trainables.hosts import progress
from trainables.hosts.progress import find_progress
from trainables.hosts.storage import join_location
from trainables.spec import BaseSpec, DataSpec, OptimSpec, TrialSpec

HORIZON = 100
PARENT = TrialSpec(
    base=BaseSpec(model="owner/name"),
    optim=OptimSpec(steps=HORIZON),
    data=DataSpec(train="rows.jsonl"),
)
CHILD = replace(PARENT, optim=OptimSpec(steps=HORIZON, learning_rate=1e-3))


def save_progress(state_dir, step, reports, save, spec=PARENT):
    progress.save_progress(state_dir, step, reports, save, spec)


def copy_progress(parent, child):
    return progress.copy_progress(parent, child, CHILD)


def save_weight(weight):
    return lambda folder: (folder / "state.json").write_text(json.dumps(weight))


def reports_to(step):
    return [{"step": done, "host_s": 1.5 * done} for done in range(10, step + 1, 10)]


def newest(state_dir):
    with find_progress(state_dir, None) as kept:
        return json.loads((kept.folder / "state.json").read_text()), kept.reports


@pytest.fixture
def folders(location):
    return join_location(location, "parent"), join_location(location, "child")


def test_a_child_has_the_newest_state_of_its_parent_and_no_time_of_its_own(folders):
    parent, child = folders
    for step in (10, 20):
        save_progress(parent, step, reports_to(step), save_weight(step / 8))
    assert copy_progress(parent, child) == 20
    weight, reports = newest(child)
    assert weight == 2.5
    assert [report["step"] for report in reports] == [10, 20]
    assert reports[-1]["host_s"] == 0.0
    assert newest(parent) == (2.5, reports_to(20))


def test_a_child_that_trained_is_not_put_back_and_knows_where_it_began(folders):
    parent, child = folders
    save_progress(parent, 20, reports_to(20), save_weight(1))
    copy_progress(parent, child)
    _, inherited = newest(child)
    save_progress(child, 30, [*inherited, {"step": 30, "host_s": 3.0}], save_weight(2), CHILD)
    save_progress(parent, 40, reports_to(40), save_weight(3))
    assert copy_progress(parent, child) == 20
    assert newest(child)[0] == 2


def test_a_trial_that_began_with_nothing_says_so_when_asked_again(folders):
    parent, child = folders
    assert copy_progress(parent, child) is None
    save_progress(child, 10, reports_to(10), save_weight(1), CHILD)
    save_progress(parent, 20, reports_to(20), save_weight(2))
    assert copy_progress(parent, child) is None
    assert newest(child)[0] == 1


def test_a_parent_that_is_through_gives_nothing_to_go_on_with(folders):
    parent, child = folders
    save_progress(parent, HORIZON, reports_to(HORIZON), save_weight(1))
    assert copy_progress(parent, child) is None


def test_a_copy_is_whole_while_the_parent_replaces_its_states(tmp_path):
    parent = str(tmp_path / "parent")
    endless = replace(PARENT, optim=OptimSpec(steps=10**6))
    save_progress(parent, 10, reports_to(10), save_weight(10), endless)
    is_over = threading.Event()

    def train():
        step = 10
        while not is_over.wait(0.003):  # a pause, for the copies to find a state that stays
            step += 10
            save_progress(parent, step, [{"step": step}], save_weight(step), endless)

    training = threading.Thread(target=train)
    training.start()
    try:
        for number in range(60):
            child = str(tmp_path / f"child-{number}")
            step = progress.copy_progress(parent, child, endless)
            assert newest(child)[0] == step
    finally:
        is_over.set()
        training.join()


def test_a_copy_is_sealed_for_the_child(folders):
    parent, child = folders
    save_progress(parent, 20, reports_to(20), save_weight(1))
    copy_progress(parent, child)
    with find_progress(child, CHILD) as found:
        assert found.step == 20


def test_a_child_takes_the_sound_state_of_its_parent_and_copies_a_damaged_one_again(tmp_path):
    parent, child = str(tmp_path / "parent"), str(tmp_path / "child")
    for step in (20, 40):
        save_progress(parent, step, reports_to(step), save_weight(step))
    garble(tmp_path / "parent" / "step-00000040" / "state.json")
    assert copy_progress(parent, child) == 20
    garble(tmp_path / "child" / "step-00000020" / "state.json")
    assert copy_progress(parent, child) == 20
    assert newest(child)[0] == 20
