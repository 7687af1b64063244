"""Raw rows from files, folders, the hub or memory, each with the place it came from.

Nothing here knows tokens. A row keeps its place (`rows.jsonl line 7`) so that whatever is found
wrong with it later can be looked up in an editor.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.data_spec import DataSpec, Rows
from trainables.errors import DataError
from trainables.files.bad_rows import refuse_bad
from trainables.files.readers import BadRow, Found, RawRow, is_readable, read_file, readable_names

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")
_GLOB = re.compile(r"[*?\[]")

_SAVED_MARKS = ("state.json", "dataset_dict.json")
"""Files of a folder that `Dataset.save_to_disk` wrote."""

_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words that a file's or folder's name says its split with, as `datasets` reads them."""


@dataclass(frozen=True, kw_only=True)
class SourceRows:
    """What a source holds.

    Attributes:
        rows: In their order; at least one.
        bad: What is no row, such as a line that is no JSON.
        unread: Files of a folder that hold rows of other splits than the one that was asked for.
    """

    rows: tuple[RawRow, ...]
    bad: tuple[BadRow, ...] = ()
    unread: tuple[str, ...] = ()


def read_rows(source: str | Rows, field: str) -> tuple[RawRow, ...]:
    """Every row of a file, a folder, a hub dataset or of memory, in its order.

    Args:
        source: A file, a folder, a glob, a hub id, or the rows themselves.
        field: Dotted field that named the source.

    Raises:
        DataError: The source is missing, unreadable or empty, or holds something that is no row.
    """
    found = _settle(*_find(source, field, None), source=source, field=field)
    refuse_bad(found.bad, len(found.rows) + len(found.bad), field)
    return found.rows


def read_source(spec: DataSpec, split: str) -> SourceRows:
    """What the source of a split holds.

    Args:
        spec: Names the source, and what is read of it.
        split: `train`, `validation` or `test`.

    Raises:
        DataError: The source is missing, unreadable or empty.
    """
    source, field = getattr(spec, split), f"data.{split}"
    return _settle(*_find(source, field, spec), source=source, field=field)


def files_of(source: str, split: str | None = None) -> tuple[Path, ...]:
    """The files that a folder or glob stands for, sorted; hidden ones and notes are none.

    Args:
        source: A folder, a glob, or a file.
        split: Of a folder, only files that belong to it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _files_of_folder(path, split)[0]
    if path.exists() or not _GLOB.search(source):
        return (path,)
    # What is hidden above the pattern was named, what is hidden below it is not meant.
    plain = list(itertools.takewhile(lambda part: not _GLOB.search(part), path.parts))
    root = Path(*plain)
    pattern = str(Path(*path.parts[len(plain) :]))
    return tuple(sorted(one for one in root.glob(pattern) if _holds_rows(one, root)))


def is_local(source: str) -> bool:
    """Whether a source is meant to lie on this machine."""
    return names_path(source) or Path(source).expanduser().exists()


def names_path(source: str) -> bool:
    """Whether a source is written as a path or glob, whatever is there."""
    is_path = source.startswith((".", "~", "/")) or is_readable(Path(source))
    return is_path or _GLOB.search(source) is not None


def digest_files(files: Sequence[Path]) -> str:
    """Hex SHA-256 over the names of files below their common folder, and over their contents."""
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
    """Everything a source holds, and the files that were passed over."""
    if not isinstance(source, str):
        return _number(source, f"{field} row"), ()
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
    """The files of a split, and those of others; files that name none are of `train`."""
    files = sorted(one for one in folder.rglob("*") if _holds_rows(one, folder))
    if split is None:
        return tuple(files), ()
    homes = {one: _split_of(one.relative_to(folder)) for one in files}
    unnamed = "" if split in homes.values() or split != "train" else None
    chosen = tuple(one for one in files if homes[one] in (split, unnamed))
    return chosen, tuple(one for one in files if one not in set(chosen))


def _holds_rows(path: Path, root: Path) -> bool:
    """Whether a path below a folder is a file of rows; hidden ones and notes are none."""
    is_hidden = any(part.startswith((".", "_")) for part in path.relative_to(root).parts)
    # What `datasets` and editors write beside rows.
    is_note = path.name in ("dataset_info.json", "dataset_infos.json", "state.json")
    return path.is_file() and is_readable(path) and not is_hidden and not is_note


def _split_of(path: Path) -> str | None:
    """The split that the nearest part of a path names, such as `train-00000-of-00002.parquet`."""
    for part in reversed(path.parts):
        words = re.split(r"[^a-z]+", part.lower())
        for split, names in _SPLIT_WORDS.items():
            if any(name in words for name in names):
                return split
    return None


# ------------------------------------------------------------------------------------ the hub


def _load_dataset(source: str, field: str, spec: DataSpec | None) -> tuple[RawRow, ...]:
    """Rows of a hub dataset or of a folder laid out like one."""
    is_folder = Path(source).is_dir()
    if not is_folder and not _HUB_ID.fullmatch(source):
        raise DataError(
            f"{field}: {source!r} is no existing file and no hub id; allowed: a "
            f"{readable_names()} file, a folder or glob of such files, or owner/name. Correct "
            "the name."
        )
    # Imported here: it takes two seconds, and files are read without it.
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
            saved = datasets.load_from_disk(name)
            rows = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
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
