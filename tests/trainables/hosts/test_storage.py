"""Folders are whole or not there, on disks and in a bucket of a real S3 server."""

import json
import subprocess
import sys
from contextlib import suppress

import pytest

from trainables.errors import MissingObjectError, StorageError
from trainables.hosts.objects import (
    check_bucket,
    create_object,
    delete_objects,
    download_file,
    list_objects,
    object_sizes,
    read_object,
    upload_file,
    write_object,
)
from trainables.hosts.storage import (
    MARKER,
    fetch_folder,
    file_sizes,
    has_folder,
    is_remote,
    join_location,
    list_folders,
    put_folder,
    remove_folder,
    writing_folder,
)


@pytest.fixture
def folder(tmp_path):
    """A folder with a file, an empty one and one below."""
    path = tmp_path / "folder"
    (path / "below").mkdir(parents=True)
    (path / "a.txt").write_text("one")
    (path / "empty").write_bytes(b"")
    (path / "below" / "b.bin").write_bytes(bytes(range(256)) * 1000)
    return path


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_comes_back_as_it_was_put(location, folder, tmp_path):
    there = join_location(location, "trials", "t0001")
    put_folder(folder, there)
    assert contents(fetch_folder(there, tmp_path / "into")) == contents(folder)
    assert has_folder(there)


def test_a_folder_that_was_never_put_is_none(location, tmp_path):
    assert fetch_folder(join_location(location, "no"), tmp_path / "into") is None
    assert not has_folder(join_location(location, "no"))
    assert list_folders(location) == []


def test_a_folder_takes_the_place_of_an_older_one(location, folder, tmp_path):
    there = join_location(location, "one")
    put_folder(folder, there)
    (folder / "a.txt").rename(folder / "c.txt")
    put_folder(folder, there)
    assert contents(fetch_folder(there, tmp_path / "into")) == contents(folder)


def test_folders_are_listed_in_order_until_they_are_removed(location, folder):
    for name in ("step-00000040", "step-00000020"):
        put_folder(folder, join_location(location, name))
    assert list_folders(location) == ["step-00000020", "step-00000040"]
    remove_folder(join_location(location, "step-00000020"))
    remove_folder(join_location(location, "never-there"))
    assert list_folders(location) == ["step-00000040"]


def test_a_local_folder_whose_removal_was_killed_is_not_half_there(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    for number in range(10_000):
        (folder / str(number)).touch()
    filled = folder.stat().st_mtime_ns
    code = "import sys, trainables.hosts.storage as s; s.remove_folder(sys.argv[1])"
    with subprocess.Popen([sys.executable, "-c", code, str(folder)]) as removing:
        with suppress(FileNotFoundError):  # its name is gone
            while folder.stat().st_mtime_ns == filled:  # until something in it is
                assert removing.poll() in (None, 0)
        removing.kill()
    assert not folder.exists()


def test_a_torn_upload_is_no_folder(s3_location, folder, tmp_path):
    upload_file(folder / "a.txt", f"{s3_location}/torn/a.txt")
    assert list_folders(s3_location) == []
    assert fetch_folder(f"{s3_location}/torn", tmp_path / "into") is None
    put_folder(folder, f"{s3_location}/torn")
    assert list_folders(s3_location) == ["torn"]


def test_a_half_removed_folder_is_no_folder(s3_location, folder):
    put_folder(folder, f"{s3_location}/one")
    delete_objects(f"{s3_location}/one", [MARKER])
    assert list_folders(s3_location) == []
    remove_folder(f"{s3_location}/one")
    assert list_objects(s3_location) == []


def test_a_file_that_changed_in_the_bucket_is_told(s3_location, folder, tmp_path):
    put_folder(folder, f"{s3_location}/one")
    write_object(f"{s3_location}/one/a.txt", b"another")
    with pytest.raises(StorageError, match=r"one/a.txt: has 7 bytes; allowed: 3, as uploaded"):
        fetch_folder(f"{s3_location}/one", tmp_path / "into")


def test_a_file_of_the_right_size_and_other_bytes_is_told(s3_location, folder, tmp_path):
    put_folder(folder, f"{s3_location}/one")
    size = object_sizes(f"{s3_location}/one")["a.txt"]
    write_object(f"{s3_location}/one/a.txt", b"x" * size)
    assert has_folder(f"{s3_location}/one")
    with pytest.raises(StorageError, match=r"one/a.txt: its content is not that which was"):
        fetch_folder(f"{s3_location}/one", tmp_path / "into")


def test_a_folder_that_an_earlier_version_wrote_is_read(s3_location, folder, tmp_path):
    put_folder(folder, f"{s3_location}/one")
    sizes = {name: len(content) for name, content in contents(folder).items()}
    write_object(f"{s3_location}/one/{MARKER}", json.dumps({"files": sizes}).encode())
    assert contents(fetch_folder(f"{s3_location}/one", tmp_path / "into")) == contents(folder)


def test_what_is_written_in_a_block_is_there_when_it_ends_well(location, tmp_path):
    there = join_location(location, "bundle")
    with pytest.raises(RuntimeError, match="died"), writing_folder(there):
        raise RuntimeError("died")
    assert not has_folder(there)
    with writing_folder(there) as writing:
        writing.mkdir(exist_ok=True)
        (writing / "manifest.json").write_text("{}")
    assert contents(fetch_folder(there, tmp_path / "into")) == {"manifest.json": b"{}"}


def test_locations_are_joined_in_their_own_way():
    assert join_location("s3://bucket/a/", "b", "c") == "s3://bucket/a/b/c"
    assert join_location("/a", "b", "c") == "/a/b/c"
    assert (is_remote("s3://bucket"), is_remote("/s3:/bucket")) == (True, False)


def test_objects_are_read_as_written(s3_location):
    assert read_object(f"{s3_location}/no") is None
    write_object(f"{s3_location}/one", b"1")
    write_object(f"{s3_location}/one", b"2")
    assert read_object(f"{s3_location}/one") == b"2"
    assert create_object(f"{s3_location}/two", b"3")
    assert list_objects(s3_location) == ["one", "two"]


def test_sizes_are_those_of_all_files_of_torn_folders_too(location, folder):
    assert file_sizes(location) == {}
    put_folder(folder, join_location(location, "whole"))
    put_folder(folder, join_location(location, "torn"))
    if is_remote(location):
        delete_objects(location, [f"torn/{MARKER}"])
    names = {"a.txt": 3, "empty": 0, "below/b.bin": 256_000}
    expected = {f"{place}/{name}": n for place in ("whole", "torn") for name, n in names.items()}
    sizes = file_sizes(location)
    assert {name: n for name, n in sizes.items() if not name.endswith(MARKER)} == expected
    assert list_folders(location) == (["whole"] if is_remote(location) else ["torn", "whole"])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch.*AWS_SECRET_ACCESS_KEY"),
        ("AWS_ACCESS_KEY_ID", "nobody", "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ],
    ids=["secret", "key"],
)
def test_wrong_credentials_are_refused_with_a_remedy(s3_location, monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=f"^{s3_location}: cannot be used .*{said}"):
        check_bucket(s3_location)
    with pytest.raises(StorageError, match=s3_location):
        write_object(f"{s3_location}/one", b"1")
    with pytest.raises(StorageError, match=s3_location):
        read_object(f"{s3_location}/one")


def test_a_bucket_that_is_missing_is_named(s3_location, folder):
    check_bucket(s3_location)
    with pytest.raises(StorageError, match=r"^s3://nobody/x: .*NoSuchBucket.*Create the bucket"):
        check_bucket("s3://nobody/x")
    with pytest.raises(StorageError, match=r"s3://nobody/x.*Create the bucket"):
        put_folder(folder, "s3://nobody/x")


def test_local_locations_need_no_s3_client():
    code = (
        "import sys, trainables.hosts.storage, trainables.hosts.progress;"
        "print('boto3' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_object_that_is_gone_is_told_apart_from_a_bucket_that_does_not_answer(
    s3_location, tmp_path
):
    """A host replaces states while another reads them."""
    with pytest.raises(MissingObjectError, match="gone: cannot be used"):
        download_file(f"{s3_location}/gone", tmp_path / "file")
    with pytest.raises(StorageError) as caught:
        download_file("s3://no-such-bucket-here/file", tmp_path / "file")
    assert str(caught.value).startswith("s3://no-such-bucket-here/file: cannot be used")
