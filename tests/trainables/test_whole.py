"""Files and folders appear whole, replace older ones in one step, and leave nothing on failure."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from trainables.whole import new_file, new_folder, remove_tree, replace_file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_replaces_an_older_one_and_others_may_read_it(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"old", b"new"):
        replace_file(path, content)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("umask", "file", "folder"),
    [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o077, 0o600, 0o700)],
    ids=oct,
)
def test_modes_are_those_of_the_users_umask_whoever_wrote_the_files(tmp_path, umask, file, folder):
    """safetensors writes files that only their owner can read, for one."""
    code = (
        "import sys, os\n"
        "from pathlib import Path\n"
        "from trainables.whole import new_folder, replace_file\n"
        "here = Path(sys.argv[1])\n"
        "replace_file(here / 'log.json', b'1')\n"
        "with new_folder(here / 'bundle') as filling:\n"
        "    (filling / 'inner').mkdir(mode=0o700)\n"
        "    os.close(os.open(filling / 'inner' / 'weights', os.O_CREAT, 0o600))\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        umask=umask,
        check=True,
    )
    found = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
    }
    assert found == {
        "log.json": file,
        "bundle": folder,
        "bundle/inner": folder,
        "bundle/inner/weights": file,
    }


def test_a_file_that_fails_half_way_leaves_the_older_one(tmp_path):
    path = tmp_path / "a.json"
    replace_file(path, b"old")

    with pytest.raises(IsADirectoryError), new_file(path) as writing:
        writing.write_bytes(tmp_path.read_bytes())
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.json"]


def test_a_folder_is_not_there_until_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "bundle"
    for text in ("old", "new"):
        with new_folder(target) as filling:
            (filling / text).write_text(text)
            assert not (target / text).exists()
    assert names(target) == ["new"]
    assert names(target.parent) == ["bundle"]


def test_a_folder_that_fails_half_way_leaves_the_older_one(tmp_path):
    target = tmp_path / "bundle"
    with new_folder(target) as filling:
        (filling / "old").touch()

    with pytest.raises(IsADirectoryError), new_folder(target) as filling:
        (filling / "new").write_bytes(filling.read_bytes())
    assert names(target) == ["old"]
    assert names(tmp_path) == ["bundle"]


def test_a_folder_that_is_not_to_be_replaced_stays(tmp_path):
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "mine").touch()

    with pytest.raises(OSError, match="not empty"), new_folder(target, replaces=False) as filling:
        (filling / "theirs").touch()
    assert names(target) == ["mine"]


def test_removing_what_is_not_there_is_fine(tmp_path):
    remove_tree(tmp_path / "nothing")
    assert names(tmp_path) == []


@pytest.fixture
def flushed(monkeypatch):
    """Names and contents that were flushed to the disk, in order."""
    seen, fsync = [], os.fsync

    def watch(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append((path, names(path) if path.is_dir() else path.read_bytes()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    return seen


def test_a_file_is_on_the_disk_before_its_name_is(tmp_path, flushed):
    replace_file(tmp_path / "a.json", b"new")
    (_, content), (folder, present) = flushed
    assert (content, folder, present) == (b"new", tmp_path, ["a.json"])


def test_a_folder_is_on_the_disk_before_its_name_is(tmp_path, flushed):
    with new_folder(tmp_path / "bundle") as filling:
        (filling / "deep").mkdir()
        (filling / "deep" / "weights").write_bytes(b"w")
    contents = [content for _, content in flushed]
    assert contents[:-1] == [["weights"], b"w", ["deep"]]
    folder, present = flushed[-1]
    assert folder == tmp_path
    assert "bundle" in present
