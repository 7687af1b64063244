"""A sweep file that is checked here and run elsewhere: its rows and bases are in the cluster.

A path of the image or of a mounted volume does not exist on the laptop that submits. Such rows
and bases count as names here; everything else in the file is checked as `lorchestra check` does.
A path of the laptop is refused, because no node of the cluster could read it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from orchestrator.errors import SweepSpecError
from orchestrator.spec.inputs import SPLITS, rename_choices, rename_in_rule
from orchestrator.spec.sweep import SweepSpec, parse_sweep
from orchestrator.sweepfile.changes import apply_changes, parse_changes, show_change
from orchestrator.sweepfile.loader import SweepDumper
from orchestrator.sweepfile.reading import YamlText
from orchestrator.wording import refusal, shorten
from trainables.files.sources import is_local

IMAGE_PLACE = "/opt/lorchestra"
"""Folder of the image that holds rows of its own."""

_MAX_DIFFERENCES = 5
_PACKAGED = "package:"
_SUFFIX = ".gguf"


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    """A sweep as it is submitted.

    Attributes:
        spec: The sweep, for reading: rows and bases of the cluster are only names in it.
        settings: All its settings by section, defaults included, with the sources as written.
        text: The sweep file that the driver reads.
        is_whole: Whether every row and base can be looked up from here, so that memory can be
            forecast.
    """

    spec: SweepSpec
    settings: Mapping[str, Any]
    text: str
    is_whole: bool


def read_sweep_file(
    path: Path, changes: Sequence[str] = (), places: Sequence[str] = ()
) -> SweepFile:
    """Read and check a sweep file for a cluster.

    Args:
        path: The file.
        changes: Changed fields, such as `lora.rank=16`.
        places: Folders that exist in the cluster's containers, besides `/opt/lorchestra`.

    Raises:
        SweepSpecError: A value cannot work, or names a file of this machine.
    """
    source, parsed = YamlText.of_file(path), parse_changes(changes)
    written = source.mapping()
    try:
        values = apply_changes(written, parsed)
        text = source.text if values == written else _dump(values)
        return _read(values, text, (IMAGE_PLACE, *places))
    except SweepSpecError as error:
        raise show_change(error, parsed) or source.show_field(error) from error


def read_submitted(text: str, name: str) -> SweepFile:
    """The sweep that was submitted with a text; its paths are not looked at.

    Raises:
        SweepSpecError: This version of lorchestra cannot read it.
    """
    return _read(YamlText(name, text).mapping(), text, ("/",))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`lora.rank was 8, is 16`: the fields that differ; empty if none does."""
    old, new = _flat(before), _flat(now)
    absent = "absent"
    told = [
        f"{name} was {_short(old.get(name, absent))}, is {_short(new.get(name, absent))}"
        for name in dict.fromkeys([*new, *old])
        if old.get(name, absent) != new.get(name, absent)
    ]
    more = len(told) - _MAX_DIFFERENCES
    return "; ".join(told[:_MAX_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def _read(values: Mapping[str, Any], text: str, places: Sequence[str]) -> SweepFile:
    _refuse_local_functions(values, places)
    names = _Names(places)
    spec = parse_sweep(names.replaced(values), Path.cwd())
    settings = json.loads(json.dumps(dataclasses.asdict(spec), allow_nan=False))
    return SweepFile(
        spec=spec,
        settings=names.restored(settings),
        text=text,
        is_whole=not names.bases and not names.rows,
    )


class _Names:
    """Names in place of the rows and bases that only the cluster has.

    Attributes:
        bases: Name of each such base, by its path or package.
        rows: Path of each such split.
    """

    def __init__(self, places: Sequence[str]) -> None:
        self._places = places
        self.bases: dict[str, str] = {}
        self.rows: dict[str, str] = {}

    def replaced(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A sweep's plain values with names."""
        found = dict(values)
        data, base, search = (values.get(name) for name in ("data", "base", "search"))
        if isinstance(data, Mapping):
            found["data"] = {key: self._split(key, value) for key, value in data.items()}
        if isinstance(base, Mapping) and isinstance(base.get("model"), str):
            found["base"] = {**base, "model": self._base(base["model"], "base.model")}
        if isinstance(values.get("space"), Mapping):
            found["space"] = rename_choices(values["space"], self._base)
        if isinstance(values.get("forbid"), list):
            found["forbid"] = [
                rename_in_rule(one, self._base, "forbid") for one in values["forbid"]
            ]
        if isinstance(search, Mapping) and isinstance(search.get("start"), list):
            start = [rename_in_rule(one, self._base, "search.start") for one in search["start"]]
            found["search"] = {**search, "start": start}
        return found

    def restored(self, settings: Any) -> Any:
        """Settings with the paths in place of the names."""
        paths = {name: path for path, name in self.bases.items()}

        def restore(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: restore(one) for key, one in value.items()}
            if isinstance(value, list):
                return [restore(one) for one in value]
            return paths.get(value, value) if isinstance(value, str) else value

        whole = restore(settings)
        return {**whole, "data": {**whole["data"], **self.rows}}

    def _split(self, split: str, source: Any) -> Any:
        if split not in SPLITS or not isinstance(source, str) or not is_local(source):
            return source
        self._require_reachable(f"data.{split}", source)
        self.rows[split] = source
        return [{"text": f"rows of {source}"}]

    def _base(self, model: str, where: str) -> str:
        if model.startswith(_PACKAGED):
            package = model.removeprefix(_PACKAGED).partition("/")[0]
            if not package.isidentifier() or importlib.util.find_spec(package) is not None:
                return model
        elif model.startswith((".", "~", "/")) or model.endswith(_SUFFIX) or _is_here(model):
            self._require_reachable(where, model)
        else:
            return model  # a hub id
        return self.bases.setdefault(model, f"cluster/base-{len(self.bases)}")

    def _require_reachable(self, where: str, path: str) -> None:
        if any(PurePosixPath(path).is_relative_to(place) for place in self._places):
            return
        told = ", ".join(self._places)
        raise SweepSpecError(
            refusal(
                where,
                path,
                f"a name on the hub, or a path in the cluster's containers, below {told}",
                "Put it on the hub, into the image or onto a volume that every node mounts.",
                flaw="a path that no node of the cluster has",
            )
        )


def _is_here(model: str) -> bool:
    return bool(model.strip()) and Path(model).expanduser().exists()


def _refuse_local_functions(values: Mapping[str, Any], places: Sequence[str]) -> None:
    """Refuse functions in files of this machine."""
    for section, name in (("eval", "metric"), ("exits", "stop"), ("finals", "metrics")):
        inner = values.get(section)
        named = inner.get(name) if isinstance(inner, Mapping) else None
        for one in named if isinstance(named, list) else [named]:
            file = str(one or "").rpartition(":")[0]
            is_there = any(PurePosixPath(file).is_relative_to(place) for place in places)
            if file.endswith(".py") and not is_there:
                raise SweepSpecError(
                    refusal(
                        f"{section}.{name}",
                        one,
                        "package.module:function of a package in the image",
                        "Put the function into the image.",
                        flaw="a file that no node of the cluster has",
                    )
                )


def _dump(values: Mapping[str, Any]) -> str:
    return yaml.dump(dict(values), Dumper=SweepDumper, sort_keys=False, allow_unicode=True)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name."""
    return {
        f"{name}.{key}" if key else name: inner
        for name, value in values.items()
        for key, inner in (
            _flat(value).items() if isinstance(value, Mapping) and value else [("", value)]
        )
    }


def _short(value: Any) -> str:
    return shorten(str(value), 40)
