"""Whole folders at a location: a local path, or `s3://bucket/prefix`.

A local folder is renamed into place. A bucket has no folders: the last object, `_whole.json`,
lists the files of a complete folder with sizes and digests, and a folder without this object was
never finished.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainables.contract import digest_file, file_record
from trainables.errors import DamagedFolderError, MissingObjectError, StorageError
from trainables.hosts.objects import (
    delete_objects,
    download_file,
    list_objects,
    object_sizes,
    read_object,
    upload_file,
    write_object,
)
from trainables.whole import new_folder, remove_tree

MARKER = "_whole.json"

_DAMAGE_REMEDY = "Let only one sweep write below its storage location."


def is_remote(location: str) -> bool:
    """Whether a location is an address in a bucket rather than a local path."""
    return location.startswith("s3://")


def join_location(location: str, *parts: str) -> str:
    """Location of a path below another location."""
    if is_remote(location):
        return "/".join([location.rstrip("/"), *parts])
    return str(Path(location, *parts))


def put_folder(folder: Path, location: str) -> None:
    """Copy a folder to a location, whole or not at all, in place of an older folder.

    Raises:
        StorageError: The location cannot be written.
        OSError: The folder cannot be read.
    """
    if not is_remote(location):
        with new_folder(Path(location)) as filling:
            shutil.copytree(folder, filling, dirs_exist_ok=True)
        return
    remove_folder(location)
    files = {file.relative_to(folder).as_posix(): file for file in _files(folder)}
    for name, file in files.items():
        upload_file(file, join_location(location, name))
    records = {name: file_record(file) for name, file in files.items()}
    write_object(join_location(location, MARKER), json.dumps({"files": records}).encode())


def has_folder(location: str) -> bool:
    """Whether a whole folder exists at a location; in a bucket, each file with its size.

    Raises:
        StorageError: The location cannot be read.
    """
    if is_remote(location):
        with suppress(DamagedFolderError):
            return _whole_files(location) is not None
        return False
    return Path(location).is_dir()


def _whole_files(location: str) -> dict[str, dict[str, Any]] | None:
    """Files of a folder in a bucket as they were uploaded; `None` if there is no whole folder.

    Raises:
        DamagedFolderError: A file is missing or has another size.
        StorageError: The bucket cannot be read, or a name leads out of the folder.
    """
    marker = read_object(join_location(location, MARKER))
    if marker is None:
        return None
    found = object_sizes(location)
    try:
        files = {name: _record(kept) for name, kept in json.loads(marker)["files"].items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedFolderError(
            f"{location}/{MARKER}: cannot be read ({error}); allowed: the object as lorchestra "
            "wrote it. Restore it from a copy, or remove the folder."
        ) from error
    for name, record in files.items():
        path_below(Path(), name)
        if found.get(name) != record["bytes"]:
            raise DamagedFolderError(
                f"{location}/{name}: has {found.get(name, 'no')} bytes; allowed: "
                f"{record['bytes']}, as uploaded. {_DAMAGE_REMEDY}"
            )
    return files


def _record(kept: Any) -> dict[str, Any]:
    """Record of a file in a marker; markers of earlier versions hold sizes alone."""
    if isinstance(kept, int):
        return {"bytes": kept}
    return {"bytes": int(kept["bytes"]), "sha256": str(kept["sha256"])}


def fetch_folder(location: str, into: Path) -> Path | None:
    """Local copy of a whole folder, or `None` if there is none.

    Args:
        location: Location of the folder; a local folder is returned without a copy.
        into: An empty folder for the files, created when missing.

    Raises:
        DamagedFolderError: A file is missing or is not as it was uploaded.
        StorageError: The location cannot be read.
    """
    if not is_remote(location):
        return Path(location) if Path(location).is_dir() else None
    files = _whole_files(location)
    if files is None:
        return None
    for name, record in files.items():
        file = path_below(into, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_file(join_location(location, name), file)
        except MissingObjectError as error:  # removed since it was listed
            raise DamagedFolderError(str(error)) from error
        if "sha256" in record and digest_file(file) != record["sha256"]:
            raise DamagedFolderError(
                f"{location}/{name}: its content is not that which was uploaded; allowed: sha256 "
                f"{record['sha256']}. {_DAMAGE_REMEDY}"
            )
    into.mkdir(parents=True, exist_ok=True)
    return into


def path_below(folder: Path, name: str) -> Path:
    """Path within `folder` of a file named in a bucket.

    Raises:
        StorageError: The name leads out of the folder.
    """
    path = folder / name
    if ".." in path.parts or not path.is_relative_to(folder):
        raise StorageError(
            f"storage: got an object named {name!r}; allowed: names of files below the sweep's "
            "location. Remove it from the bucket."
        )
    return path


def list_folders(location: str) -> list[str]:
    """Sorted names of the whole folders directly below a location.

    Raises:
        StorageError: The location cannot be read.
    """
    if is_remote(location):
        parts = [name.split("/") for name in list_objects(location)]
        return [name[0] for name in parts if len(name) == 2 and name[1] == MARKER]
    folder = Path(location)
    children = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in children if path.is_dir() and path.name[0] != ".")


def file_sizes(location: str) -> dict[str, int]:
    """Sizes in bytes of all files below a location, by relative path, complete or not.

    Raises:
        StorageError: The location cannot be read.
    """
    if is_remote(location):
        return object_sizes(location)
    folder = Path(location)
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in _files(folder)}


def remove_folder(location: str) -> None:
    """Remove a folder, complete or not; a missing folder is ignored.

    Raises:
        StorageError: The location cannot be written.
    """
    if not is_remote(location):
        remove_tree(Path(location))
        return
    names = list_objects(location)
    if MARKER in names:  # removed first: a half-removed folder must not look whole
        delete_objects(location, [MARKER])
    delete_objects(location, [name for name in names if name != MARKER])


@contextmanager
def writing_folder(location: str, guard: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Local folder to write; the files are at the location once the block ends well.

    Args:
        location: Where the files will be, in place of an older folder.
        guard: Called just before the files get their name; an error leaves the location as it
            was.

    Raises:
        StorageError: A remote location cannot be written.
        OSError: A local location cannot be written.
    """
    if not is_remote(location):
        with new_folder(Path(location), guard=guard) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="lorchestra-") as temporary:
        folder = Path(temporary) / "folder"
        folder.mkdir()
        yield folder
        guard()
        put_folder(folder, location)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
