"""Raw rows from files, folders, the hub or memory, each with the place it came from.

Nothing here knows tokens. A row keeps its place (`rows.jsonl line 7`) so that whatever is found
wrong with it later can be looked up in an editor.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.errors import DataError
from trainables.spec import Rows

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """One example as its source holds it.

    Attributes:
        values: Column names to values.
        place: Where a user finds it: the source and the 1-based line of a text file or row.
    """

    values: Mapping[str, Any]
    place: str


def read_rows(source: str | Rows, field: str, revision: str | None = None) -> tuple[RawRow, ...]:
    """Every row of a data source, in its order.

    Args:
        source: A file, a folder or hub id that `datasets` can load, or the rows themselves.
        field: Dotted field that named the source; its last part names the split of a folder or hub
            dataset.
        revision: Commit, branch or tag of a hub dataset.

    Raises:
        DataError: The source is missing, unreadable or empty, or a row is not a mapping.
    """
    if not isinstance(source, str):
        rows = _number(source, f"{field} row")
    elif _is_local(source):
        rows = _read_local(Path(source).expanduser(), field)
    else:
        rows = _load_dataset(source, field, revision)
    if not rows:
        raise DataError(
            f"{field}: {_name(source)} holds no rows; allowed: at least one. Add rows."
        )
    return rows


def _name(source: str | Rows) -> str:
    return repr(source) if isinstance(source, str) else "the list"


def _number(values: Any, place: str) -> tuple[RawRow, ...]:
    return tuple(
        RawRow(values=value, place=f"{place} {number}") for number, value in enumerate(values, 1)
    )


def _is_local(source: str) -> bool:
    path = Path(source).expanduser()
    return source.startswith((".", "~", "/")) or path.suffix in _READERS or path.exists()


def _read_local(path: Path, field: str) -> tuple[RawRow, ...]:
    if not path.exists():
        raise DataError(
            f"{field}: no file {str(path)!r} seen from {str(Path.cwd())!r}; allowed: an existing "
            f"{', '.join(_READERS)} file. Correct the path."
        )
    if path.is_dir():
        return _load_dataset(str(path), field, None)
    if path.suffix not in _READERS:
        raise DataError(
            f"{field}: cannot read {str(path)!r}; allowed: {', '.join(_READERS)}. Convert it."
        )
    try:
        return _READERS[path.suffix](path, field)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{field}: cannot read {str(path)!r}: {error}; allowed: a readable UTF-8 "
            f"{path.suffix} file. Mend or convert the file."
        ) from error


def _require_mapping(values: Any, place: str, field: str) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise DataError(
            f"{field}: {place} is a {type(values).__name__}; allowed: an object with named "
            "columns. Write each row as {...}."
        )
    return values


def _read_jsonl(path: Path, field: str) -> tuple[RawRow, ...]:
    rows = []
    # Not splitlines(): JSON strings may hold U+2028 and its kin unescaped.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{field}: {place} is not JSON: {error.msg} at column {error.colno}; allowed: one "
                "JSON object on each line. Mend the line."
            ) from error
        rows.append(RawRow(values=_require_mapping(values, place, field), place=place))
    return tuple(rows)


def _read_json(path: Path, field: str) -> tuple[RawRow, ...]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{field}: {path} line {error.lineno} is not JSON: {error.msg}; allowed: one list of "
            "objects. Mend the file, or name it .jsonl when it holds one object on each line."
        ) from error
    if not isinstance(values, list):
        raise DataError(
            f"{field}: {path} holds a {type(values).__name__}; allowed: one list of objects. "
            "Put the rows in a list."
        )
    rows = _number(values, f"{path} row")
    for row in rows:
        _require_mapping(row.values, row.place, field)
    return rows


def _read_csv(path: Path, field: str) -> tuple[RawRow, ...]:
    rows = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        # strict: an unclosed quote would otherwise swallow the rest of the file into one cell.
        reader = csv.DictReader(file, strict=True)
        try:
            for values in reader:
                place = f"{path} line {reader.line_num}"
                if None in values:
                    raise DataError(
                        f"{field}: {place} has more cells than the header names; allowed: "
                        f"{len(reader.fieldnames or ())}. Quote cells that hold commas."
                    )
                rows.append(RawRow(values=values, place=place))
        except csv.Error as error:
            raise DataError(
                f"{field}: {path} line {reader.reader.line_num} is not CSV: {error}; allowed: "
                'comma-separated cells, quoted with ". Mend the line.'
            ) from error
    return tuple(rows)


def _read_parquet(path: Path, field: str) -> tuple[RawRow, ...]:
    # Imported here: 0.3 s and a compiled package that most runs do not need.
    import pyarrow
    from pyarrow import parquet

    try:
        values = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{field}: cannot read {str(path)!r}: {error}; allowed: a Parquet file. "
            "Write the file again."
        ) from error
    return _number(values, f"{path} row")


_READERS: dict[str, Callable[[Path, str], tuple[RawRow, ...]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}


def _load_dataset(source: str, field: str, revision: str | None) -> tuple[RawRow, ...]:
    """Rows of a hub dataset or of a folder laid out like one."""
    if not Path(source).exists() and not _HUB_ID.fullmatch(source):
        raise DataError(
            f"{field}: {source!r} is no existing file and no hub id; allowed: a "
            f"{', '.join(_READERS)} file or owner/name. Correct the name."
        )
    # Imported here: it takes two seconds, and files are read without it.
    import datasets

    split = field.rpartition(".")[2]
    try:
        rows = datasets.load_dataset(source, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"{field}: cannot load split {split!r} of dataset {source!r}: {reason}; allowed: a "
            "hub id or folder that datasets.load_dataset can read. Check the name, the revision "
            "and the network, or name a .jsonl file."
        ) from error
    return _number(rows, f"{source} [{split}] row")
