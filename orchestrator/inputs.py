"""The files a sweep reads: where they are, that they are there, and what they hold.

Trials run in other processes and on other machines than the one that read the sweep file, so a
local source becomes an absolute path, and rows in memory become a file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.complaint import complaint
from orchestrator.errors import SweepSpecError, SweepStorageError
from trainables.spec import BaseSpec, DataSpec

SPLITS = ("train", "validation", "test")
_DATA_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
_BASE_SUFFIXES = (".gguf",)


def with_located_sources(sweep: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A sweep's plain values with its local sources made absolute, before they are parsed.

    Raises:
        SweepSpecError: A file is missing; relative ones are looked up in the folder.
    """
    located = dict(sweep)
    for section, names, suffixes in (
        ("data", SPLITS, _DATA_SUFFIXES),
        ("base", ("model",), _BASE_SUFFIXES),
    ):
        values = sweep.get(section)
        if isinstance(values, Mapping):
            located[section] = dict(values) | {
                name: _locate(values[name], folder, suffixes, f"{section}.{name}")
                for name in names
                if isinstance(values.get(name), str)
            }
    return located


def locate_data(data: DataSpec, folder: Path) -> DataSpec:
    """The same data with absolute paths; relative ones are looked up in the folder.

    Raises:
        SweepSpecError: A file is missing.
    """
    paths: dict[str, Any] = {
        split: _locate(source, folder, _DATA_SUFFIXES, f"data.{split}")
        for split in SPLITS
        if isinstance(source := getattr(data, split), str)
    }
    return dataclasses.replace(data, **paths) if paths else data


def locate_base(base: BaseSpec, folder: Path) -> BaseSpec:
    """The same base with an absolute path, where it is a local folder or file.

    Raises:
        SweepSpecError: The folder or file is missing.
    """
    return dataclasses.replace(
        base, model=_locate(base.model, folder, _BASE_SUFFIXES, "base.model")
    )


def save_rows(data: DataSpec, folder: Path) -> DataSpec:
    """Write splits held in memory to JSONL files of the folder; the data that reads them instead.

    Raises:
        SweepSpecError: A row is not JSON.
        SweepStorageError: The folder cannot be written.
    """
    paths: dict[str, Any] = {}
    for split in SPLITS:
        rows = getattr(data, split)
        if rows is None or isinstance(rows, str):
            continue
        try:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except (TypeError, ValueError) as error:
            raise SweepSpecError(
                f"data.{split}: a row is not JSON ({error}); allowed: text, numbers, lists and "
                "mappings. Convert the column."
            ) from error
        # Named by content: another sweep's rows must not replace those that hosts are reading.
        name = f"{split}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
        path = (folder / name).resolve()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            writing = path.with_suffix(f".{os.getpid()}")
            writing.write_text(text, encoding="utf-8")
            writing.replace(path)
        except OSError as error:
            raise SweepStorageError(
                f"{path}: cannot be written ({error}); allowed: a writable storage folder. "
                "Choose another folder or free some space."
            ) from error
        paths[split] = str(path)
    return dataclasses.replace(data, **paths) if paths else data


def content_digest(source: str | None) -> str | None:
    """What a data source holds, for a file; its name otherwise."""
    if source is None or not Path(source).is_file():
        return source
    with Path(source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _locate(source: str, folder: Path, suffixes: tuple[str, ...], where: str) -> str:
    if not source.strip() or source.startswith("package:"):
        return source
    path = folder / Path(source).expanduser()
    is_path = source.startswith((".", "~", "/")) or path.suffix in suffixes
    if path.exists():
        return str(path.resolve())
    if not is_path:
        return source  # a hub id
    raise complaint(where, source, f"an existing file (looked for {path})", "Correct the path.")
