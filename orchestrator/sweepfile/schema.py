"""A JSON Schema (draft 7) of dataclasses, for editors that complete and check YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from orchestrator.sweepfile.describing import (
    REQUIRED,
    Field,
    fields_of,
    is_dataclass_type,
    options_of,
    summary_of,
)

Schema = dict[str, Any]

_PLAIN: dict[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    NoneType: {"type": "null"},
    Any: {},
}
_BOUNDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r">= ([\d.]+)", ("minimum",)),
    (r"([\d.]+) to ([\d.]+)", ("minimum", "maximum")),
    (r"([\d.]+) to \w.*", ("minimum",)),
    (r"a (?:finite )?number >= ([\d.]+)", ("minimum",)),
    (r"a (?:finite )?number > ([\d.]+)", ("exclusiveMinimum",)),
    (r"a number > ([\d.]+) and <= ([\d.]+)", ("exclusiveMinimum", "maximum")),
    (r"([\d.]+) <= \w+ < ([\d.]+)", ("minimum", "exclusiveMaximum")),
    (r"([\d.]+) seconds or more", ("minimum",)),
)
"""Forms of `allowed` in messages, with the keywords of the numbers in them."""


def schema_of(kind: type, allowed: Mapping[str, str], prefix: str = "") -> Schema:
    """The schema of a mapping that fills a dataclass.

    Args:
        kind: The dataclass.
        allowed: Allowed values by dotted field, as messages say them.
        prefix: Dotted name of the section, with its last dot.
    """
    fields = list(fields_of(kind, prefix))
    return {
        "type": "object",
        "description": summary_of(kind),
        "properties": {
            one.name.removeprefix(prefix): _field_schema(one, allowed) for one in fields
        },
        "required": [one.name.removeprefix(prefix) for one in fields if one.default is REQUIRED],
        "additionalProperties": False,
    }


def _field_schema(one: Field, allowed: Mapping[str, str]) -> Schema:
    schemas = [
        schema_of(part, allowed, f"{one.name}.") if is_dataclass_type(part) else type_schema(part)
        for part in options_of(one.hint)
    ]
    bounds = bounds_of(allowed.get(one.name, ""))
    schemas = [
        {**part, **bounds} if part.get("type") in ("integer", "number") else part
        for part in schemas
    ]
    joined = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    described = {**joined, "description": one.meaning} if one.meaning else dict(joined)
    if _has_default(one):
        described["default"] = one.default
    return described


def _has_default(one: Field) -> bool:
    """Whether a file can say the default."""
    if one.default is None:
        return NoneType in options_of(one.hint)
    return one.default is not REQUIRED


def type_schema(hint: Any) -> Schema:
    """The schema of a plain value, a list or a mapping of a type."""
    origin, parts = get_origin(hint), get_args(hint)
    options = options_of(hint)
    if len(options) > 1:
        return {"anyOf": [type_schema(one) for one in options]}
    if origin is Literal:
        return {"enum": list(parts)}
    if origin is tuple:
        return {"type": "array", "items": type_schema(parts[0])}
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    found: Schema = {"type": "object"}
    if len(parts) == 2:
        key, value = parts
        found["additionalProperties"] = type_schema(value)
        if get_origin(key) is Literal:
            found["propertyNames"] = {"enum": list(get_args(key))}
    return found


def bounds_of(allowed: str) -> Schema:
    """Bounds of a number from the allowed values that a message says; empty for other words.

    The message may allow a word beside numbers, as in `auto, or 1 to 256`.
    """
    allowed = re.sub(r"^[a-z]+, or ", "", allowed)
    for pattern, keywords in _BOUNDS:
        match = re.fullmatch(pattern, allowed)
        if match:
            numbers = [float(one) for one in match.groups()]
            plain = [int(one) if one.is_integer() else one for one in numbers]
            return dict(zip(keywords, plain, strict=True))
    return {}
