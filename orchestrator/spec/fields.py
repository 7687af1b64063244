"""The fields of a sweep file, as a page and as a JSON Schema for editors.

`python -m orchestrator.spec.fields` writes `docs/fields.md` and `docs/sweep.schema.json`. Types,
defaults and meaning come from the dataclasses, allowed values from the messages on wrong values.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_origin

from orchestrator.errors import SweepSpecError
from orchestrator.spec.settings import KNOBS
from orchestrator.spec.sweep import SweepSpec, parse_sweep
from orchestrator.sweepfile.describing import (
    REQUIRED,
    Field,
    fields_of,
    options_of,
    say_type,
    summary_of,
)
from orchestrator.sweepfile.schema import Schema, bounds_of, schema_of, type_schema

_KNOB: Schema = {"$ref": "#/definitions/knob"}
PAGE, SCHEMA = Path("docs/fields.md"), Path("docs/sweep.schema.json")

_PLAIN_SWEEP: dict[str, Any] = {
    "name": "sweep",
    "base": {"model": "owner/name"},
    "data": {"train": "owner/rows"},
    "optim": {"steps": 100},
    "eval": {"every": 10},
    "budget": {"trials": 1},
}
_WRONG: dict[Any, tuple[Any, ...]] = {
    int: (-(10**9), 10**15),
    float: (-1e9, 1e15),
    str: ("", "A B"),
    tuple[str, ...]: (["x"],),
}
"""Values that a field refuses if it refuses any of its type."""

_HEAD = """\
# Fields of a sweep file

Made by `make fields` from the classes that read the file. `required` fields have no default;
every other field can be left out. A section is a class of the same fields in Python.

Editors complete and check a sweep file that begins with this line (VS Code: the extension YAML;
others: any client of yaml-language-server). The path leads to
[sweep.schema.json](sweep.schema.json), from the folder of the sweep file:

```
# yaml-language-server: $schema=docs/sweep.schema.json
```

`lorchestra run SWEEP.yaml --set FIELD=VALUE` changes one field. [Search space](search-space.md)
says how the knobs of `space` are written.
"""


def all_fields(kind: type = SweepSpec, prefix: str = "") -> Iterator[Field]:
    """The fields of a sweep and of all its sections, each section behind its own field."""
    for one in fields_of(kind, prefix):
        yield one
        if one.section is not None:
            yield from all_fields(one.section, f"{one.name}.")


def allowed_values() -> dict[str, str]:
    """What the message on a wrong value says is allowed, by field; fields that take any lack."""
    found = {}
    for one in all_fields():
        for part in options_of(one.hint):
            for value in _WRONG.get(part, ()):
                said = _allowed_instead(one.name, value)
                if said and one.name not in found and _fits_default(said, one.default):
                    found[one.name] = said
    return found


def _allowed_instead(name: str, value: Any) -> str:
    """The allowed values that the message on a wrong value of a field says; empty without."""
    try:
        parse_sweep(_with(_PLAIN_SWEEP, name.split("."), value), Path())
    except SweepSpecError as error:
        field, _, rest = str(error).partition(": ")
        said = re.search(r"; allowed: (.*?)\. (?=[A-Z])", rest)
        if field == name and said:
            return re.sub(r" \([^)]*\)", "", said[1])
    return ""


def _fits_default(said: str, default: object) -> bool:
    bounds = bounds_of(said)
    if isinstance(default, bool) or not isinstance(default, int | float):
        return True
    return bool(default >= bounds.get("minimum", default))


def _with(values: Mapping[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    key, *rest = keys
    return {**values, key: _with(values.get(key, {}), rest, value) if rest else value}


def build_page() -> str:
    """The text of `docs/fields.md`."""
    allowed = allowed_values()
    parts = [_HEAD, "## At the top\n", _table(list(fields_of(SweepSpec)), allowed)]
    for one in all_fields():
        if one.section is not None:
            rows = list(fields_of(one.section, f"{one.name}."))
            parts += [f"## {one.name}\n", f"{_plain(summary_of(one.section))}\n"]
            parts.append(_table(rows, allowed))
    return "\n".join(parts)


def _table(fields: list[Field], allowed: Mapping[str, str]) -> str:
    lines = ["| field | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    for one in fields:
        cells = [
            f"`{one.name}`",
            say_type(one.hint),
            _say_default(one),
            allowed.get(one.name, "").replace("<", "&lt;"),
            _plain(one.meaning),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return text.replace("`None`", "`null`").replace("`True`", "`true`")


def _say_default(one: Field) -> str:
    if one.default is REQUIRED:
        return "required"
    is_made = one.default is None and NoneType not in options_of(one.hint)
    if is_made or one.default == "":
        return ""
    return f"`{json.dumps(one.default)}`"


def build_schema() -> Schema:
    """The content of `docs/sweep.schema.json`."""
    allowed = allowed_values()
    schema = schema_of(SweepSpec, allowed)
    properties = schema["properties"]
    meanings = {one.name: one.meaning for one in all_fields()}
    properties["space"]["properties"] = {
        name: {"description": meanings.get(name, "")} | _knob_schema(name, hint, allowed)
        for name, hint in KNOBS.items()
    }
    properties["space"]["additionalProperties"] = False
    for point in (properties["forbid"], properties["search"]["properties"]["start"]):
        point["items"]["propertyNames"] = _KNOB
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "sweep",
        "definitions": {"knob": {"enum": list(KNOBS)}},
        **schema,
    }


def _knob_schema(name: str, hint: Any, allowed: Mapping[str, str]) -> Schema:
    """A constant, one distribution, or an expression."""
    value = type_schema(hint)
    kinds = {part for part in options_of(hint) if get_origin(part) is not Literal}
    forms: list[Schema] = [value | bounds_of(allowed.get(name, "")), _form("choice", value)]
    number = {"type": "number"}
    if float in kinds:
        forms += [_form(kind, number, 2) for kind in ("uniform", "log_uniform")]
    if kinds & {int, float}:
        forms += [_form(kind, {"type": "integer"}, 2) for kind in ("int", "log_int")]
        forms.append(
            {
                "type": "object",
                "properties": {"tied": {"type": ["string", "number"]}},
                "required": ["tied"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": forms}


def _form(kind: str, value: Schema, count: int | None = None) -> Schema:
    """A distribution of values, with or without a condition."""
    size = {"minItems": 1} if count is None else {"minItems": count, "maxItems": count}
    when = {"type": "object", "propertyNames": _KNOB, "minProperties": 1}
    return {
        "type": "object",
        "properties": {kind: {"type": "array", "items": value, **size}, "when": when},
        "required": [kind],
        "additionalProperties": False,
    }


def main() -> int:
    """Write the page and the schema below the working directory."""
    PAGE.write_text(build_page(), encoding="utf-8")
    SCHEMA.write_text(render_schema(), encoding="utf-8")
    return 0


def render_schema() -> str:
    """The text of `docs/sweep.schema.json`."""
    return json.dumps(build_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
