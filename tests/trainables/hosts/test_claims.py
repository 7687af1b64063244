"""Of two hosts that hold the same trial, only the one that was seated later writes."""

import pytest

from trainables.errors import SupersededError
from trainables.hosts.claims import PER_DRIVER, claim, require_claim
from trainables.hosts.storage import fetch_folder, writing_folder


@pytest.fixture(params=["local", "s3"])
def state_dir(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "state")
    return f"{request.getfixturevalue('s3_location')}/state"


def test_the_later_seat_takes_the_trial_over(state_dir):
    claim(state_dir, 7)
    claim(state_dir, 7)  # the seat is entered again
    require_claim(state_dir, 7)
    claim(state_dir, PER_DRIVER + 1)  # another driver of the sweep
    with pytest.raises(SupersededError, match="seat 7 holds a trial that seat 1000001 has taken"):
        require_claim(state_dir, 7)
    with pytest.raises(SupersededError):
        claim(state_dir, 7)
    require_claim(state_dir, PER_DRIVER + 1)


def test_a_late_write_leaves_what_is_there_as_it_is(state_dir, tmp_path):
    claim(state_dir, 1)
    with writing_folder(f"{state_dir}/bundle") as writing:
        (writing / "weights").write_text("of the seat that counts")
    claim(state_dir, 2)
    with (
        pytest.raises(SupersededError),
        writing_folder(f"{state_dir}/bundle", lambda: require_claim(state_dir, 1)) as writing,
    ):
        (writing / "weights").write_text("late")
    kept = fetch_folder(f"{state_dir}/bundle", tmp_path / "kept")
    assert (kept / "weights").read_text() == "of the seat that counts"


def test_a_seat_without_a_number_writes_as_before(state_dir):
    claim(state_dir, 0)
    require_claim(state_dir, 0)
