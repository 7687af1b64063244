"""Raw rows from files, folders, the hub or memory, each with its place.

The module does not know tokens. A row keeps its place (`rows.jsonl line 7`), so that a user can
look up a later problem in an editor.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.claims import show
from trainables.data_spec import DataSpec, Rows
from trainables.errors import DataError, SpecError
from trainables.files.bad_rows import refuse_bad
from trainables.files.readers import BadRow, Found, RawRow, is_readable, read_file, readable_names
from trainables.functions import function_error, load_function, names_function

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")
_GLOB = re.compile(r"[*?\[]")

_SAVED_MARKS = ("state.json", "dataset_dict.json")
"""Files in a folder written by `Dataset.save_to_disk`."""

_NOTES = ("dataset_info.json", "dataset_infos.json", *_SAVED_MARKS)
"""Files that `datasets` writes beside rows."""

_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words for a split in the name of a file or folder, as in `datasets`."""


@dataclass(frozen=True, kw_only=True)
class SourceRows:
    """Rows of a source, with bad rows and unread files.

    Attributes:
        rows: Rows in the source's order; at least one.
        bad: Invalid rows, such as a line that is not JSON.
        unread: Files of a folder with rows of other splits than the requested one.
    """

    rows: tuple[RawRow, ...]
    bad: tuple[BadRow, ...] = ()
    unread: tuple[str, ...] = ()


def read_rows(source: str | Rows, field: str) -> tuple[RawRow, ...]:
    """Every row of a file, a folder, a hub dataset or memory, in order.

    Args:
        source: A file, a folder, a glob, a hub id, or the rows themselves.
        field: Dotted field of the source.

    Raises:
        DataError: The source is missing, unreadable or empty, or holds an invalid row.
    """
    found = _settle(*_find(source, field, None), source=source, field=field)
    refuse_bad(found.bad, len(found.rows) + len(found.bad), field)
    return found.rows


def read_source(spec: DataSpec, split: str) -> SourceRows:
    """Rows of a split's source.

    Args:
        spec: Spec with the source and the part to read.
        split: `train`, `validation` or `test`.

    Raises:
        DataError: The source is missing, unreadable or empty.
    """
    source, field = getattr(spec, split), f"data.{split}"
    return _settle(*_find(source, field, spec), source=source, field=field)


def call_reader(name: str, field: str) -> tuple[Any, ...]:
    """The rows that a function of the user gives; it takes no argument.

    Args:
        name: The function, `path/to/file.py:function` or `module:function`.
        field: Dotted field of the source.

    Raises:
        SpecError: There is no such function, it failed, or it gave something other than mappings.
    """
    function, allowed = load_function(name, field), "a function that gives mappings, one per row"
    try:
        rows = tuple(function())
    except Exception as error:
        raise function_error(name, field, error, allowed) from error
    other = next((row for row in rows if not isinstance(row, Mapping)), None)
    if other is not None:
        raise SpecError(
            f"{field}: {name} gave {show(other)} among its rows; allowed: {allowed}. Correct the "
            "function."
        )
    return rows


def files_of(source: str, split: str | None = None) -> tuple[Path, ...]:
    """Files of a folder or glob, sorted, without hidden files and notes.

    Args:
        source: A folder, a glob, or a file.
        split: Only the files of this split, for a folder.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _files_of_folder(path, split)[0]
    if path.exists() or not _GLOB.search(source):
        return (path,)
    # Hidden folders above the pattern were named by the user; hidden files below are skipped.
    plain = list(itertools.takewhile(lambda part: not _GLOB.search(part), path.parts))
    root = Path(*plain)
    pattern = str(Path(*path.parts[len(plain) :]))
    return tuple(sorted(one for one in root.glob(pattern) if _holds_rows(one, root)))


def is_local(source: str) -> bool:
    """Whether a source is a path on this machine."""
    return names_path(source) or Path(source).expanduser().exists()


def names_path(source: str) -> bool:
    """Whether a source is written as a path or glob, existing or not."""
    is_path = source.startswith((".", "~", "/")) or is_readable(Path(source))
    return is_path or _GLOB.search(source) is not None


def digest_files(files: Sequence[Path]) -> str:
    """Hex SHA-256 of the files' contents and their names relative to the common folder."""
    root = os.path.commonpath([file.parent for file in files]) if files else ""
    lines = []
    for file in sorted(files):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        lines.append(f"{file.relative_to(root).as_posix()} {content}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _find(
    source: str | Rows, field: str, spec: DataSpec | None
) -> tuple[Sequence[Found], tuple[str, ...]]:
    """Rows and bad rows of a source, and the files that were not read."""
    if not isinstance(source, str):
        return _number(source, f"{field} row"), ()
    if names_function(source):
        return _number(call_reader(source, field), f"{source} row"), ()
    if not is_local(source):
        return _load_dataset(source, field, spec), ()
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, field, spec)
    files = files_of(source)
    if not files or not files[0].exists():
        raise DataError(
            f"{field}: no file {str(path)!r} seen from {str(Path.cwd())!r}; allowed: an existing "
            f"{readable_names()} file, or a folder or glob of such files. Correct the path."
        )
    return _read_files(files, field), ()


def _settle(
    found: Sequence[Found], unread: tuple[str, ...], source: str | Rows, field: str
) -> SourceRows:
    rows = tuple(one for one in found if isinstance(one, RawRow))
    bad = tuple(one for one in found if isinstance(one, BadRow))
    if not rows:
        refuse_bad(bad, len(bad), field)
        name = repr(source) if isinstance(source, str) else "the list"
        raise DataError(f"{field}: {name} holds no rows; allowed: at least one. Add rows.")
    return SourceRows(rows=rows, bad=bad, unread=unread)


def _number(values: Iterable[Any], place: str) -> tuple[RawRow, ...]:
    return tuple(
        RawRow(values=value, place=f"{place} {number}") for number, value in enumerate(values, 1)
    )


def _read_files(files: Sequence[Path], field: str) -> tuple[Found, ...]:
    return tuple(itertools.chain.from_iterable(read_file(file, field) for file in files))


# ------------------------------------------------------------------------------- folders of files


def _read_folder(
    folder: Path, field: str, spec: DataSpec | None
) -> tuple[Sequence[Found], tuple[str, ...]]:
    split = field.rpartition(".")[2]
    name = split if spec is None else spec.split_name(split)
    if (spec is not None and spec.config is not None) or name not in _SPLIT_WORDS:
        return _load_dataset(str(folder), field, spec), ()
    files, others = _files_of_folder(folder, name)
    if files:
        return _read_files(files, field), tuple(str(one.relative_to(folder)) for one in others)
    if others:
        raise DataError(
            f"{field}: cannot load split {name!r} of the folder {str(folder)!r}, which holds "
            f"{', '.join(str(one.relative_to(folder)) for one in others[:5])}; allowed: files "
            f"with {' or '.join(_SPLIT_WORDS[name])} in their names. Name the file itself, or "
            "rename it."
        )
    return _load_dataset(str(folder), field, spec), ()  # such as one of .arrow files


def _files_of_folder(folder: Path, split: str | None) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Files of a split and of other splits; files without a split name belong to `train`."""
    files = sorted(one for one in folder.rglob("*") if _holds_rows(one, folder))
    if split is None:
        return tuple(files), ()
    homes = {one: _split_of(one.relative_to(folder)) for one in files}
    unnamed = "" if split in homes.values() or split != "train" else None
    chosen = tuple(one for one in files if homes[one] in (split, unnamed))
    return chosen, tuple(one for one in files if one not in set(chosen))


def _holds_rows(path: Path, root: Path) -> bool:
    """Whether a path below a folder is a file of rows; hidden files and notes are not."""
    is_hidden = any(part.startswith((".", "_")) for part in path.relative_to(root).parts)
    return path.is_file() and is_readable(path) and not is_hidden and path.name not in _NOTES


def _split_of(path: Path) -> str | None:
    """Split named by the nearest part of a path, such as `train-00000-of-00002.parquet`."""
    for part in reversed(path.parts):
        words = re.split(r"[^a-z]+", part.lower())
        for split, names in _SPLIT_WORDS.items():
            if any(name in words for name in names):
                return split
    return None


# ------------------------------------------------------------------------------------ the hub


def _load_dataset(source: str, field: str, spec: DataSpec | None) -> tuple[RawRow, ...]:
    """Rows of a hub dataset or of a folder in the layout of a hub dataset."""
    is_folder = Path(source).is_dir()
    if not is_folder and not _HUB_ID.fullmatch(source):
        raise DataError(
            f"{field}: {source!r} is no existing file and no hub id; allowed: a "
            f"{readable_names()} file, a folder or glob of such files, or owner/name. Correct "
            "the name."
        )
    # Imported here: the import takes two seconds, and files are read without it.
    import datasets

    split = field.rpartition(".")[2]
    if spec is not None:
        split = spec.split_name(split)
    name, _, revision = (source, "", "") if is_folder else source.partition("@")
    if not revision and spec is not None and not is_folder:
        revision = spec.revision or ""
    config = None if spec is None else spec.config
    try:
        if is_folder and any((Path(name) / mark).exists() for mark in _SAVED_MARKS):
            rows = datasets.load_from_disk(name)
            if isinstance(rows, datasets.DatasetDict):
                if split not in rows:
                    raise ValueError(f"it holds the splits {', '.join(rows)}")
                rows = rows[split]
        else:
            rows = datasets.load_dataset(name, name=config, split=split, revision=revision or None)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"{field}: cannot load split {split!r} of dataset {source!r}: {reason}; allowed: a "
            "hub id or folder that datasets.load_dataset can read. Check the name, data.config, "
            "data.split, the revision and the network, or name a .jsonl file."
        ) from error
    return _number(rows, f"{source} [{split}] row")
