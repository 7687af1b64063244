"""Fields of the dataclasses that a sweep file fills: types, defaults and meaning.

The meaning is the field's entry under `Attributes:` in the docstring of its class.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

_ENTRY = re.compile(r"^    (\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)
_PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "any"}


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a section.

    Attributes:
        name: Its dotted name.
        hint: Its type.
        default: Its default as a plain value; `REQUIRED` without one.
        meaning: One or more sentences.
        section: The dataclass of its own fields, if it has any.
    """

    name: str
    hint: Any
    default: object
    meaning: str
    section: type | None


REQUIRED = object()
"""Default of a field that has none."""


def fields_of(kind: type, prefix: str = "") -> Iterator[Field]:
    """The fields of a dataclass, in order."""
    meanings, hints = read_attributes(kind), get_type_hints(kind)
    for one in dataclasses.fields(kind):
        yield Field(
            name=f"{prefix}{one.name}",
            hint=hints[one.name],
            default=_default(one),
            meaning=meanings.get(one.name, ""),
            section=section_of(hints[one.name]),
        )


def summary_of(kind: type) -> str:
    """The docstring of a class before its `Attributes:`."""
    return " ".join(inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")[0].split())


def read_attributes(kind: type) -> Mapping[str, str]:
    """The entries under `Attributes:` in the docstring of a class, by name."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")[2]
    return {name: " ".join(entry.split()) for name, entry in _ENTRY.findall(text)}


def section_of(hint: Any) -> type | None:
    """The dataclass among the options of a type."""
    options = get_args(hint) or (hint,)
    return next((one for one in options if is_dataclass_type(one)), None)


def is_dataclass_type(hint: Any) -> TypeGuard[type]:
    """Whether a type is a dataclass."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def options_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union; a type alone is its own member."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def say_type(hint: Any) -> str:
    """A type in words, such as `whole number or null`."""
    return " or ".join(dict.fromkeys(_say_one(one) for one in options_of(hint)))


def _say_one(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is NoneType:
        return "null"
    if origin is Literal:
        return "one of " + ", ".join(f"`{one}`" for one in parts)
    if origin is tuple:
        return f"list of {say_type(parts[0])}"
    if dataclasses.is_dataclass(hint):
        return "section"
    return _PLAIN.get(hint, "mapping")


def _default(one: dataclasses.Field[Any]) -> object:
    if one.default is not dataclasses.MISSING:
        return list(one.default) if isinstance(one.default, tuple) else one.default
    if one.default_factory is dataclasses.MISSING:
        return REQUIRED
    made = one.default_factory()
    return None if dataclasses.is_dataclass(made) else made
