"""A trial's newest state is whole, on disks and in a bucket alike."""

import json
import threading
from dataclasses import replace

import pytest

from tests.support.damage import DAMAGES
from trainables.errors import StateError
from trainables.hosts import progress
from trainables.hosts.objects import delete_objects, write_object
from trainables.hosts.progress import find_progress
from trainables.hosts.storage import join_location, list_folders
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec

SPEC = TrialSpec(
    base=BaseSpec(model="owner/name"),
    optim=OptimSpec(steps=200),
    data=DataSpec(train="rows.jsonl"),
)
FILES = ("state.json", "reports.json", "seal.json")


def save_progress(state_dir, step, reports, save, spec=SPEC):
    progress.save_progress(state_dir, step, reports, save, spec)


def save_weight(weight):
    return lambda folder: (folder / "state.json").write_text(json.dumps(weight))


def newest(state_dir):
    """Name, weight and reports of what is found; `None` for nothing."""
    with find_progress(state_dir, SPEC) as found:
        if found.folder is None:
            return None
        return json.loads((found.folder / "state.json").read_text()), found.reports


def test_nothing_is_found_before_the_first_save(location):
    assert newest(join_location(location, "state")) is None


def test_the_newest_state_is_found_with_its_reports_and_replaces_older_ones(location):
    state_dir = join_location(location, "state")
    save_progress(state_dir, 20, [{"step": 20}], save_weight(0.5))
    assert newest(state_dir) == (0.5, [{"step": 20}])
    save_progress(state_dir, 120, [{"step": 20}, {"step": 120}], save_weight(0.25))
    assert newest(state_dir) == (0.25, [{"step": 20}, {"step": 120}])
    assert list_folders(state_dir) == ["step-00000020", "step-00000120"]
    for step in (140, 200):
        save_progress(state_dir, step, [{"step": step}], save_weight(step))
    assert list_folders(state_dir) == ["step-00000200"]  # the horizon: nothing is left to repeat


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
    with find_progress(s3_location, SPEC) as found:
        assert found.folder.is_dir()
    assert not found.folder.exists()


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


def save_two(location):
    for step in (20, 40):
        reports = [{"step": done} for done in range(20, step + 1, 20)]
        save_progress(location, step, reports, save_weight(step))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_trial_goes_on_from_the_state_before_a_damaged_one(tmp_path, damage, file):
    save_two(str(tmp_path))
    DAMAGES[damage](tmp_path / "step-00000040" / file)
    with find_progress(str(tmp_path), SPEC) as found:
        assert (found.step, found.damaged) == (20, (40,))
        assert found.folder == tmp_path / "step-00000020"
        assert found.marks == {"lost_state_of_step": 40.0, "continued_from_step": 20.0}
    save_progress(str(tmp_path), 30, [{"step": 30}], save_weight(30))
    assert list_folders(str(tmp_path)) == ["step-00000020", "step-00000030"]


def test_a_trial_with_damaged_states_only_starts_from_the_beginning(tmp_path):
    save_two(str(tmp_path))
    for name in ("step-00000020", "step-00000040"):
        DAMAGES["garbled"](tmp_path / name / "state.json")
    with find_progress(str(tmp_path), SPEC) as found:
        assert (found.folder, found.step, found.damaged) == (None, 0, (40, 20))


def test_an_object_that_was_lost_or_changed_is_a_damaged_state(s3_location):
    save_two(s3_location)
    delete_objects(f"{s3_location}/step-00000040", ["state.json"])
    assert newest(s3_location)[0] == 20
    save_two(s3_location)
    write_object(f"{s3_location}/step-00000040/state.json", b"41")
    assert newest(s3_location)[0] == 20


def save_after_report(state_dir, step, reports):
    between = {"step": step, "tokens": 10 * step, "losses": [0.5], "busy_s": 1.0}
    progress.save_between(state_dir, between, reports, save_weight(step), SPEC)
    return between


def test_a_state_after_the_last_report_is_found_by_those_who_go_on_alone(location):
    save_progress(location, 20, [{"step": 20}], save_weight(20))
    save_after_report(location, 25, [{"step": 20}])
    between = save_after_report(location, 27, [{"step": 20}])
    assert list_folders(location) == ["between-00000027", "step-00000020"]
    assert newest(location) == (20, [{"step": 20}])
    with find_progress(location, SPEC, is_reported=False) as found:
        assert (found.step, found.between, found.reports) == (27, between, [{"step": 20}])
        assert json.loads((found.folder / "state.json").read_text()) == 27
    save_progress(location, 40, [{"step": 20}, {"step": 40}], save_weight(40))
    assert list_folders(location) == ["step-00000020", "step-00000040"]


def test_a_trial_can_be_saved_before_its_first_report(tmp_path):
    save_after_report(str(tmp_path), 7, [])
    assert newest(str(tmp_path)) is None
    with find_progress(str(tmp_path), SPEC, is_reported=False) as found:
        assert (found.step, found.reports, found.damaged) == (7, [], ())


@pytest.mark.parametrize("damage", ["state.json", "between.json", "reports.json", "seal.json"])
def test_a_damaged_state_after_the_last_report_costs_the_steps_since_it(tmp_path, damage):
    save_progress(str(tmp_path), 20, [{"step": 20}], save_weight(20))
    save_after_report(str(tmp_path), 25, [{"step": 20}])
    DAMAGES["garbled"](tmp_path / "between-00000025" / damage)
    with find_progress(str(tmp_path), SPEC, is_reported=False) as found:
        assert (found.step, found.damaged, found.between) == (20, (), {})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lora": LoraSpec(rank=4)}, "lora.rank 8 in place of 4"),
        ({"seed": 3}, "trial.seed 0 in place of 3"),
        ({"base": BaseSpec(model="owner/name", quantization="fp4")}, "base.quantization 'nf4'"),
    ],
    ids=["rank", "seed", "form"],
)
def test_a_state_of_another_trial_is_refused(location, changes, named):
    save_progress(location, 20, [{"step": 20}], save_weight(1))
    with (
        pytest.raises(StateError, match=named) as caught,
        find_progress(location, replace(SPEC, **changes)),
    ):
        pass
    assert "Choose another storage" in str(caught.value)


def test_files_that_moved_do_not_change_the_trial(tmp_path):
    save_progress(str(tmp_path), 20, [{"step": 20}], save_weight(1))
    moved = replace(SPEC, base=BaseSpec(model="./base"), data=DataSpec(train="moved.jsonl"))
    with find_progress(str(tmp_path), moved) as found:
        assert found.step == 20


def test_settings_of_memory_do_not_change_the_trial(tmp_path):
    save_progress(str(tmp_path), 20, [{"step": 20}], save_weight(1))
    thrifty = replace(SPEC, optim=replace(SPEC.optim, gradient_checkpointing=True))
    with find_progress(str(tmp_path), thrifty) as found:
        assert found.step == 20


def test_a_state_without_a_seal_is_not_adopted(tmp_path):
    (tmp_path / "step-00000040").mkdir()
    (tmp_path / "step-00000040" / "state.json").write_text("1")
    (tmp_path / "step-best").mkdir()
    with find_progress(str(tmp_path), SPEC) as found:
        assert (found.folder, found.damaged) == (None, (40,))
