"""The folder of an embedded Ray: short, closed to other users, removed at the end."""

import os
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.errors import ClusterError
from orchestrator.resources.private_folder import private_folder, temporary_folder

LEFT_OVER = """
import os, sys
from orchestrator.resources.private_folder import private_folder
with private_folder() as folder:
    (folder / "r").mkdir()
    print(folder, flush=True)
    os._exit(1)
"""


@pytest.fixture(autouse=True)
def no_folder_named(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)


@pytest.fixture
def short_folder(monkeypatch, tmp_path_factory):
    """A folder that is short enough for sockets, wherever pytest keeps its own."""
    link = Path(f"/tmp/lt{os.getpid()}")
    link.symlink_to(tmp_path_factory.mktemp("ray"))
    monkeypatch.setenv("RAY_TMPDIR", str(link))
    yield link
    link.unlink()


def test_a_long_tmpdir_leaves_the_sockets_to_tmp(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("a" * 40) / "slurm_jobdir" / "tmp.node0016"))
    assert temporary_folder() == Path("/tmp")


def test_a_short_tmpdir_is_used(monkeypatch, short_folder):
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", str(short_folder))
    assert temporary_folder() == short_folder


def test_a_long_ray_tmpdir_is_refused_with_the_limit(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "a" * 60)
    with pytest.raises(ClusterError, match=r"RAY_TMPDIR: .*too long.*at most \d+ bytes\. Set"):
        temporary_folder()


def test_a_folder_that_cannot_be_written_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/proc")
    with pytest.raises(ClusterError, match=r"RAY_TMPDIR: got /proc, where Ray cannot keep"):
        temporary_folder()


def test_the_longest_allowed_folder_is_one_that_ray_itself_accepts():
    from ray._private.utils import validate_socket_filepath

    from orchestrator.resources.private_folder import _MAX_SOCKET_BYTES, _SOCKET

    folder = "a" * (_MAX_SOCKET_BYTES - len(_SOCKET))
    validate_socket_filepath(folder + _SOCKET)
    with pytest.raises(OSError, match="AF_UNIX"):
        validate_socket_filepath(folder + "a" + _SOCKET)


def test_it_is_closed_to_others_whatever_the_umask_and_goes_with_its_block(short_folder):
    before = os.umask(0)
    try:
        with private_folder() as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert folder.parent == short_folder
    finally:
        os.umask(before)
    assert not folder.exists()


def test_a_process_that_still_writes_does_not_keep_the_folder(short_folder):
    """Ray's processes end a moment after Ray says so."""

    def write_on(stop):
        number = 0
        while not stop.wait(0.001):
            number += 1
            with suppress(OSError):
                (folder / "r").mkdir(exist_ok=True)
                (folder / "r" / str(number)).write_text("late")

    stop = threading.Event()
    with private_folder() as folder:
        writer = threading.Thread(target=write_on, args=(stop,))
        writer.start()
        threading.Timer(0.5, stop.set).start()
    writer.join()
    assert not folder.exists()


def test_what_a_killed_driver_left_is_removed_and_nothing_else(short_folder):
    left = subprocess.run(
        [sys.executable, "-c", LEFT_OVER],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    ).stdout.strip()
    assert Path(left).is_dir()
    (short_folder / "lo-of-others").mkdir()
    of_a_container = short_folder / "lo-of-a-container"
    of_a_container.mkdir()
    (of_a_container / "driver").write_text("boot/pid:[1] 7 1234")
    with private_folder() as used, private_folder():
        assert used.is_dir()  # the second one saw that its driver lives
        assert len(list(short_folder.glob("lo-of*"))) == 2
        assert not Path(left).exists()
