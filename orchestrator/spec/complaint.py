"""Messages on mistakes in a sweep: one sentence with field, value, allowed values and remedy."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import get_type_hints

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from orchestrator.errors import SweepSpecError
from orchestrator.sweepfile.describing import section_of
from orchestrator.wording import refusal
from trainables.claims import show
from trainables.spec import remedy_for_init

READ_AS_BOOL = "YAML reads yes, no, on and off as true and false"

_MAX_WORD = 60
_MISSING = ("missing", "missing_argument")
_MAPPINGS = ("dataclass_type", "dataclass_exact_type", "mapping_type", "dict_type")
_ALLOWED = dict.fromkeys(_MAPPINGS, "a mapping of settings") | {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "invalid_key": "text as keys",
}
_REMEDY = dict.fromkeys(_MAPPINGS, "Write its settings as `key: value` lines below it.") | {
    "literal_error": "Choose one of these.",
}


def complaint(
    where: str, value: object, allowed: str, remedy: str, meant: str | None = None
) -> SweepSpecError:
    """The error to raise for one impossible value; `meant` is the probable one."""
    return SweepSpecError(refusal(where, value, allowed, remedy, meant=meant))


def require(claim: bool, where: str, value: object, allowed: str, remedy: str) -> None:
    """Raise the `complaint` unless the claim holds."""
    if not claim:
        raise complaint(where, value, allowed, remedy)


def unknown(
    where: str, word: str, known: Iterable[str], hints: Iterable[str] = ()
) -> SweepSpecError:
    """The error for an unknown key, which begins with the nearest known key.

    Args:
        where: Dotted name of the section.
        word: The key.
        known: The keys of the section.
        hints: Fields of other sections that may be meant.
    """
    names = sorted(known)
    full = f"{where}.{word}" if where else word
    allowed = f"allowed: {', '.join(names)}"
    if ":" in word:
        return SweepSpecError(
            f"{full}: unknown key; {allowed}. Write a space after the colon: key: value."
        )
    near = nearest(word, [*names, *hints])
    if near is None:
        return SweepSpecError(f"{full}: unknown key; {allowed}. Remove it.")
    return SweepSpecError(f"{full}: did you mean {near}? Unknown key; {allowed}.")


def nearest(word: str, known: Sequence[str], *, is_dotted: bool = True) -> str | None:
    """The most similar known word; the last dotted part and initials are compared, too.

    Args:
        word: The word that is not known.
        known: Known words.
        is_dotted: Whether the words are dotted names; other words are compared as a whole.
    """
    if not is_dotted:
        return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.5)), None)
    return _nearest_name(word, known)


def _nearest_name(word: str, known: Sequence[str]) -> str | None:
    by_leaf = {name.rpartition(".")[2]: name for name in known}
    # Of names with equal initials, the first wins: lr is learning_rate, not loraplus_ratio.
    by_initials = {
        "".join(part[:1] for part in leaf.split("_")): by_leaf[leaf] for leaf in reversed(by_leaf)
    }
    leaf = word.rpartition(".")[2]
    if leaf in by_leaf or (len(leaf) > 1 and leaf in by_initials):
        return by_leaf.get(leaf) or by_initials[leaf]  # lr: learning_rate
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return close[0]
    close = difflib.get_close_matches(leaf, list(by_leaf), n=1, cutoff=0.5)
    return by_leaf[close[0]] if close else None


_UNKNOWN = ("unexpected_keyword_argument",)


def translate(error: ValidationError, root: type, prefix: str = "") -> SweepSpecError:
    """A pydantic error as a sentence on the first mistake, with the number of other mistakes.

    Args:
        error: Error from `TypeAdapter(root)`.
        root: The dataclass that was parsed, or the plain type of one field.
        prefix: Dotted name of the parsed value; empty for a whole sweep.
    """
    # A misspelled section is unknown and, under its right name, missing: the former says why.
    found = sorted(error.errors(), key=lambda detail: detail["type"] not in _UNKNOWN)
    place = _dotted(found[0]["loc"], root)
    here = [detail for detail in found if _dotted(detail["loc"], root) == place]
    first = _sentence(here, root, prefix)
    # Pydantic has a message for each member of a union: count places, not messages.
    others = len({_dotted(detail["loc"], root) for detail in found}) - 1
    return SweepSpecError(f"{first} (And {others} more after this.)" if others else first)


def _sentence(found: Sequence[ErrorDetails], root: type, prefix: str) -> str:
    # Of a union's members, the user most likely meant the one that failed at the deepest place.
    deepest = max(len(detail["loc"]) for detail in found)
    found = [detail for detail in found if len(detail["loc"]) == deepest]
    detail = found[0]
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, ValueError):
        return f"{prefix}: {cause}" if prefix else str(cause)
    kind = detail["type"]
    where = ".".join(filter(None, (prefix, _dotted(detail["loc"], root))))
    if kind == "unexpected_keyword_argument":
        parent, _, word = where.rpartition(".")
        owner = _owner(detail["loc"][:-1], root)
        hints = () if parent else _dotted_fields(root)
        return str(unknown(parent, word, [one.name for one in dataclasses.fields(owner)], hints))
    if kind in _MISSING:
        return f"{where}: missing; allowed: a value. Add it."
    allowed = dict.fromkeys(
        _ALLOWED.get(each["type"], each["msg"].removeprefix("Input should be ")) for each in found
    )
    value, choices = detail["input"], " or ".join(allowed)
    remedy = _remedy_for_text(value) if kind == "string_type" else _REMEDY.get(kind, "")
    meant = None
    if kind == "literal_error":
        word = value[:_MAX_WORD] if isinstance(value, str) else ""
        meant = nearest(word, re.findall(r"'([^']*)'", choices), is_dotted=False)
        remedy = remedy_for_init(value) if where.endswith("lora.init") else remedy
    remedy = remedy or "Correct the value."
    return str(complaint(where or "sweep", value, choices, remedy, meant))


def _remedy_for_text(value: object) -> str:
    """Remedy for what YAML reads as another value than text."""
    if isinstance(value, bool):
        return f"{READ_AS_BOOL}: put the word in quotes."
    if isinstance(value, int | float | datetime.date):
        return f"Put it in quotes: '{value if isinstance(value, datetime.date) else show(value)}'."
    if isinstance(value, Mapping):
        return "YAML reads braces as a mapping: put the text in quotes."
    return ""


def _dotted_fields(root: type) -> list[str]:
    """`lora.rank` and the like: the fields of the sections of a dataclass."""
    sections = {one.name: _field_class(root, one.name) for one in dataclasses.fields(root)}
    return [
        f"{name}.{one.name}"
        for name, kind in sections.items()
        if kind is not None
        for one in dataclasses.fields(kind)
    ]


def _owner(loc: tuple[int | str, ...], root: type) -> type:
    """The dataclass that contains a location."""
    for part in loc:
        root = _field_class(root, part) or root
    return root


def _field_class(owner: type, name: int | str) -> type | None:
    """The dataclass of a field, looking through `X | None`."""
    return section_of(get_type_hints(owner).get(str(name)))


def _dotted(loc: tuple[int | str, ...], root: type) -> str:
    """Dotted field names of a location, without pydantic's names of unions and dataclasses."""
    owner: type | None = root if dataclasses.is_dataclass(root) else None
    parts: list[str] = []
    for part in loc:
        if owner is None:
            break
        name = str(part)
        if name in get_type_hints(owner):
            parts.append(name)
            owner = _field_class(owner, name)
        elif name != owner.__name__:
            parts.append(name)  # an unknown key
            break
    return ".".join(parts)
