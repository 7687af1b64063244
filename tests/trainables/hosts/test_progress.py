"""A trial's newest state is whole, on disks and in a bucket alike."""

import json
import threading

import pytest

from trainables.errors import StorageError
from trainables.hosts.objects import delete_objects
from trainables.hosts.progress import find_progress, load_reports, save_progress
from trainables.hosts.storage import join_location, list_folders


def save_weight(weight):
    return lambda folder: (folder / "state.json").write_text(json.dumps(weight))


def newest(state_dir):
    """Name, weight and reports of what is found; `None` for nothing."""
    with find_progress(state_dir) as kept:
        if kept is None:
            return None
        return json.loads((kept / "state.json").read_text()), load_reports(kept)


def test_nothing_is_found_before_the_first_save(location):
    assert newest(join_location(location, "state")) is None


def test_the_newest_state_is_found_with_its_reports_and_replaces_older_ones(location):
    state_dir = join_location(location, "state")
    save_progress(state_dir, 20, [{"step": 20}], save_weight(0.5))
    assert newest(state_dir) == (0.5, [{"step": 20}])
    save_progress(state_dir, 120, [{"step": 20}, {"step": 120}], save_weight(0.25))
    assert newest(state_dir) == (0.25, [{"step": 20}, {"step": 120}])
    assert list_folders(state_dir) == ["step-00000120"]


def test_the_same_step_can_be_saved_again(location):
    for weight in (1, 2):
        save_progress(location, 20, [{"step": 20}], save_weight(weight))
    assert newest(location) == (2, [{"step": 20}])


def test_a_save_that_dies_leaves_the_older_state(location):
    def die(folder):
        (folder / "state.json").write_text("half")
        raise OSError("no space")

    save_progress(location, 20, [{"step": 20}], save_weight(1))
    with pytest.raises(OSError, match="no space"):
        save_progress(location, 40, [{"step": 40}], die)
    assert newest(location) == (1, [{"step": 20}])


def test_the_copy_of_a_remote_state_is_gone_afterwards(s3_location):
    save_progress(s3_location, 20, [{"step": 20}], save_weight(1))
    with find_progress(s3_location) as kept:
        assert kept.is_dir()
    assert not kept.exists()


def test_a_reader_beside_the_writer_always_finds_a_whole_state(s3_location):
    save_progress(s3_location, 1, [{"step": 1}], save_weight(1))

    def train():
        for step in range(2, 25):
            save_progress(s3_location, step, [{"step": step}], save_weight(step))

    writer = threading.Thread(target=train)
    writer.start()
    found = [newest(s3_location)]
    while writer.is_alive():
        found.append(newest(s3_location))
    writer.join()
    assert all(reports == [{"step": weight}] for weight, reports in found)
    assert found == sorted(found, key=lambda each: each[0])


def test_a_damaged_state_is_told_and_not_trained_anew(s3_location):
    save_progress(s3_location, 20, [{"step": 20}], save_weight(1))
    delete_objects(f"{s3_location}/step-00000020", ["state.json"])
    with (
        pytest.raises(StorageError, match=r"step-00000020/state\.json"),
        find_progress(s3_location),
    ):
        pass
