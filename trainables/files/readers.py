"""Rows of files in common formats, each with its place of origin.

A line without a valid row does not stop the reading: the line is listed with its problem, and the
caller decides.
"""

from __future__ import annotations

import ast
import bz2
import codecs
import csv
import gzip
import io
import itertools
import json
import lzma
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.claims import kind_of
from trainables.errors import DataError

MAX_DEPTH = 100
"""Most levels of lists and objects in JSON; Python's own limit depends on the call stack."""

_DELIMITERS = (",", ";", "\t", "|")
_TRIED_RECORDS = 20
_BOMS = (
    # UTF-32's mark begins with UTF-16's.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """Row of a source with its place.

    Attributes:
        values: Values by column name.
        place: Place for the user: the source and the 1-based line of a text file or row.
    """

    values: Mapping[str, Any]
    place: str


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        place: As `RawRow.place`.
        problem: The problem, worded to follow the place: `is not JSON: …`.
        allowed: Allowed values.
        remedy: The remedy, as a sentence.
    """

    place: str
    problem: str
    allowed: str
    remedy: str


Found = RawRow | BadRow


class JsonError(ValueError):
    """A text is not an accepted JSON value; the message gives the reason."""


def parse_json(text: str) -> Any:
    """Value of a JSON text.

    Raises:
        JsonError: The text is not JSON, nested too deeply, or holds a number of too many digits.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise JsonError(f"is not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise JsonError(f"is nested more than {MAX_DEPTH} levels deep") from error
    except ValueError as error:
        digits = sys.get_int_max_str_digits()
        raise JsonError(f"holds a number of more than {digits:,} digits") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise JsonError(f"is nested more than {MAX_DEPTH} levels deep")
    return value


def parse_list(text: str) -> list[Any] | None:
    """List from a cell's text: JSON, or Python's notation, as pandas writes.

    Returns:
        `None` where the text is not a list.
    """
    if not text.lstrip().startswith("["):
        return None
    try:
        value = parse_json(text)
    except JsonError:
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    return value if isinstance(value, list) else None


def is_readable(path: Path) -> bool:
    """Whether a file's name has the ending of a readable format."""
    return _suffixes(path)[0] in _READERS


def readable_names() -> str:
    """Endings of readable files, for messages."""
    return f"{', '.join(_READERS)}, each also with {', '.join(_OPENERS)} behind it"


def read_file(path: Path, field: str) -> tuple[Found, ...]:
    """Rows and bad rows of a file, in the file's order.

    Raises:
        DataError: The file cannot be read in the format of its name.
    """
    kind, packing = _suffixes(path)
    if kind not in _READERS:
        raise DataError(
            f"{field}: cannot read {str(path)!r}; allowed: {readable_names()}. Convert it."
        )
    try:
        content = _OPENERS[packing](path) if packing else path.read_bytes()
        for start, (what, ending, remedy) in _KINDS.items():
            if content.startswith(start) and ending != kind:
                raise DataError(
                    f"{field}: {str(path)!r} holds {what}; allowed: what its name says. {remedy}"
                )
        return tuple(_READERS[kind](content, path, field))
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{field}: cannot read {str(path)!r}: {error}; allowed: a readable {kind}{packing} "
            "file. Correct or convert the file."
        ) from error


_KINDS = {
    b"\x1f\x8b": ("a gzip archive", ".gz", "Put .gz behind its name."),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", ".zst", "Put .zst behind its name."),
    b"BZh": ("a bzip2 archive", ".bz2", "Put .bz2 behind its name."),
    b"\xfd7zXZ": ("an xz archive", ".xz", "Put .xz behind its name."),
    b"PAR1": ("a Parquet table", ".parquet", "Let its name end with .parquet."),
    b"PK\x03\x04": ("a ZIP archive or an Excel sheet", ".zip", "Unpack it, or save it as CSV."),
    b"version https://git-lfs": (
        "a pointer of Git LFS and no rows", ".lfs", "Fetch the file itself: git lfs pull.",
    ),
    b"<!DOCTYPE": ("a web page", ".html", "Download the file itself."),
    b"<html": ("a web page", ".html", "Download the file itself."),
}  # fmt: skip
"""First bytes of files, with what they are, the ending of such files, and a remedy."""


def _suffixes(path: Path) -> tuple[str, str]:
    """Endings of a file's name: the format and the compression."""
    last = path.suffix.lower()
    if last in _OPENERS:
        return Path(path.stem).suffix.lower(), last
    return last, ""


def _unpack_zst(path: Path) -> bytes:
    # Imported here: 0.3 s and a compiled package that most runs do not need.
    import pyarrow

    try:
        with pyarrow.input_stream(str(path), compression="zstd") as stream:
            content: bytes = stream.read()
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error
    return content


_OPENERS: dict[str, Callable[[Path], bytes]] = {
    ".gz": lambda path: gzip.decompress(path.read_bytes()),
    ".zst": _unpack_zst,
    ".bz2": lambda path: bz2.decompress(path.read_bytes()),
    ".xz": lambda path: lzma.decompress(path.read_bytes()),
}


def _decode(content: bytes, path: Path, field: str) -> str:
    encoding = next((name for bom, name in _BOMS if content.startswith(bom)), "utf-8-sig")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{field}: cannot read {str(path)!r}: line {line} is not UTF-8 ({error.reason}); "
            "allowed: UTF-8, or UTF-16 with a byte order mark. Save the file as UTF-8."
        ) from error


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        inner = [one for one in level if isinstance(one, dict | list)]
        level = [
            each for one in inner for each in (one.values() if isinstance(one, dict) else one)
        ]
        depth += bool(inner)
    return depth


def _mapping(value: Any, place: str) -> Found:
    if isinstance(value, dict):
        return RawRow(values=value, place=place)
    return BadRow(
        place=place,
        problem=f"is {kind_of(value)}",
        allowed="an object with named columns",
        remedy="Write each row as {...}.",
    )


def _read_jsonl(content: bytes, path: Path, field: str) -> Iterator[Found]:
    text = _decode(content, path, field)
    if text.lstrip()[:1] == "[" and (values := _list_of_objects(text)):
        yield from _rows_of(values, path)
        return
    if _is_spread(text):
        raise DataError(
            f"{field}: {path} holds objects that are spread over several lines; allowed: one JSON "
            "object on each line. Write each on a line of its own, such as with: jq -c . FILE."
        )
    # Not splitlines(): JSON strings may hold U+2028 and similar characters unescaped.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            yield _mapping(parse_json(line), place)
        except JsonError as error:
            yield BadRow(
                place=place,
                problem=str(error),
                allowed="one JSON object on each line",
                remedy="Correct the line.",
            )


def _list_of_objects(text: str) -> list[Any]:
    """Rows of a JSON list of objects; empty for any other text."""
    try:
        value = parse_json(text)
    except JsonError:
        return []
    is_right = isinstance(value, list) and all(isinstance(one, dict) for one in value)
    return value if is_right else []


def _rows_of(values: list[Any], path: Path) -> Iterator[Found]:
    return (_mapping(value, f"{path} row {number}") for number, value in enumerate(values, 1))


def _is_spread(text: str) -> bool:
    """Whether a text begins with an object that ends on a later line."""
    start = text.lstrip()
    try:
        value, end = json.JSONDecoder().raw_decode(start)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "\n" in start[:end]


def _read_json(content: bytes, path: Path, field: str) -> Iterator[Found]:
    text = _decode(content, path, field)
    try:
        values = parse_json(text)
    except JsonError as error:
        if _is_jsonl(text):
            return _read_jsonl(content, path, field)
        cause = error.__cause__
        line = f" line {cause.lineno}" if isinstance(cause, json.JSONDecodeError) else ""
        raise DataError(
            f"{field}: {path}{line} {str(error).partition(' at column')[0]}; allowed: one list of "
            "objects, or one object on each line. Correct the file."
        ) from error
    if isinstance(values, list):
        return _rows_of(values, path)
    entries = values.items() if isinstance(values, dict) else ()
    lists = [name for name, value in entries if isinstance(value, list)]
    inner = f", with lists under {', '.join(map(repr, lists))}" if lists else ""
    remedy = f"Write the list under {lists[0]!r} to a file of its own." if lists else ""
    raise DataError(
        f"{field}: {path} holds {kind_of(values)}{inner}; allowed: one list of objects. "
        f"{remedy or 'Put the rows in a list.'}"
    )


def _is_jsonl(text: str) -> bool:
    """Whether each of the first two non-empty lines is a JSON object."""
    lines = itertools.islice((line for line in text.split("\n") if line.strip()), 2)
    try:
        return [type(parse_json(line)) for line in lines] == [dict, dict]
    except JsonError:
        return False


def _read_csv(content: bytes, path: Path, field: str) -> Iterator[Found]:
    text = _decode(content, path, field)
    delimiter = _delimiter(text, path)
    # strict: otherwise an unclosed quote would put the rest of the file into one cell.
    records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    # The limit applies to the whole process; cells of data files have no limit.
    limit = csv.field_size_limit(len(text) + 1)
    try:
        filled = ((records.line_num, record) for record in records if record)
        header_line, header = next(filled, (0, []))
        if header and header[0].lower().startswith("sep="):  # Excel's separator line
            header_line, header = next(filled, (0, []))
        names = _column_names(header, f"{path} line {header_line}", field)
        return iter([_table_row(f"{path} line {line}", record, names) for line, record in filled])
    except csv.Error as error:
        raise DataError(
            f"{field}: {path} line {records.line_num} is not CSV: {error}; allowed: cells that "
            f'{delimiter!r} separates, quoted with ". Correct the line.'
        ) from error
    finally:
        csv.field_size_limit(limit)


def _table_row(place: str, record: list[str], names: list[str]) -> Found:
    if len(record) > len(names):
        return BadRow(
            place=place,
            problem="has more cells than the header names",
            allowed=str(len(names)),
            remedy="Quote cells that hold the separator.",
        )
    cells: list[str | None] = [*record, *itertools.repeat(None, len(names) - len(record))]
    return RawRow(values=dict(zip(names, cells, strict=True)), place=place)


def _column_names(header: list[str], place: str, field: str) -> list[str]:
    """Header with names for unnamed columns, such as the index that pandas writes."""
    twice = [name for name, count in Counter(header).items() if name.strip() and count > 1]
    if twice:
        raise DataError(
            f"{field}: {place} names the column {twice[0]!r} more than once; allowed: different "
            "names. Rename one of the columns."
        )
    return [name if name.strip() else f"unnamed {n}" for n, name in enumerate(header, 1)]


def _delimiter(text: str, path: Path) -> str:
    """Delimiter with the most cells per record, where header and first records agree."""
    if _suffixes(path)[0] == ".tsv":
        return "\t"
    if text[:4].lower() == "sep=":
        return text[4:5] or ","
    widths = {delimiter: _shared_width(text, delimiter) for delimiter in _DELIMITERS}
    return max(widths, key=lambda delimiter: widths[delimiter])


def _shared_width(text: str, delimiter: str) -> tuple[int, int]:
    """Cells of the header and number of first records with as many; zeros for one column."""
    limit = csv.field_size_limit(len(text) + 1)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        records = list(itertools.islice((one for one in reader if one), _TRIED_RECORDS))
    except csv.Error:
        return 0, 0
    finally:
        csv.field_size_limit(limit)
    width = len(records[0]) if records else 0
    alike = sum(len(record) == width for record in records)
    return (width, alike) if 2 * alike > len(records) and width > 1 else (0, 0)


def _read_parquet(content: bytes, path: Path, field: str) -> Iterator[Found]:
    # Imported here: 0.3 s and a compiled package that most runs do not need.
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(pyarrow.BufferReader(content))
        names = Counter(table.column_names)
        if max(names.values(), default=1) > 1:
            raise DataError(
                f"{field}: {path} names the column {names.most_common(1)[0][0]!r} more than once; "
                "allowed: different names. Rename one of the columns."
            )
        values = table.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{field}: cannot read {str(path)!r}: {error}; allowed: a Parquet file. "
            "Write the file again."
        ) from error
    return (RawRow(values=row, place=f"{path} row {n}") for n, row in enumerate(values, 1))


_READERS: dict[str, Callable[[bytes, Path, str], Iterator[Found]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}
