"""Writing of a sweep file: sections apart, small values in one line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from orchestrator.sweepfile.loader import SweepDumper

_HEAD = """\
# All settings of the sweep {name}, defaults included. To run the same sweep:
#   lorchestra run {file} --storage {storage}
"""
_WIDTH = 99


def dump_sweep(values: Mapping[str, Any], storage: str) -> str:
    """The text of a sweep file with a sweep's plain values.

    Args:
        values: The values, as `SweepSpec.to_dict` gives them.
        storage: The folder or bucket of the sweep.
    """
    file = "sweep.yaml" if "://" in storage else f"{storage}/sweep.yaml"
    parts = [
        _HEAD.format(name=values["name"], file=shlex.quote(file), storage=shlex.quote(storage))
    ]
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            settings = "".join(_entry(key, inner, 2) for key, inner in value.items())
            parts.append(f"\n{_dump(name)}:\n{settings}\n")
        else:
            parts.append(_entry(name, value, 0))
    return "".join(parts).replace("\n\n\n", "\n\n")


def _entry(name: str, value: Any, indent: int) -> str:
    """`name: value` in one line where it fits, else in lines below the name."""
    margin = " " * indent
    line = f"{margin}{_dump(name)}: {_dump(value)}\n"
    if len(line) <= _WIDTH or not isinstance(value, list):
        return line
    return f"{margin}{_dump(name)}:\n" + "".join(f"{margin}  - {_dump(one)}\n" for one in value)


def _dump(value: Any) -> str:
    """A value in YAML's flow style, in one line."""
    # In a list, a lone scalar has no `...` behind it.
    text: str = yaml.dump(
        [value],
        Dumper=SweepDumper,
        default_flow_style=True,
        sort_keys=False,
        allow_unicode=True,
        width=10**9,
    )
    return text.strip()[1:-1]
