"""Checks of user-written values: a failed check raises a `SpecError` with a remedy."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from trainables.errors import SpecError

LARGEST = 2**63 - 1
"""Largest whole number in a spec or record: databases, MLflow and torch hold no larger one."""

_SHOWN_CHARS = 120


class NumberError(ValueError):
    """A JSON text holds a number that no spec or record can have."""


def require(claim: bool, where: str, value: object, allowed: str, remedy: str) -> None:
    """Raise a `SpecError` with the field, the value, the allowed values and the remedy."""
    if not claim:
        raise SpecError(f"{where}: got {show(value)}; allowed: {allowed}. {remedy}")


def begin(where: str, meant: str | None = None) -> str:
    """The beginning of a message on a value: the field, and first of all what was meant."""
    return f"{where}: did you mean {meant}? Got" if meant else f"{where}: got"


def kind_of(value: object) -> str:
    """The type of a value with its article: `a list`, `an int`."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def show(value: object) -> str:
    """A value for a message; a long value is cut."""
    try:
        shown = repr(value)
    except ValueError:  # Python writes whole numbers of at most 4300 digits
        return "a number of more than 4300 digits"
    return shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}…"


def similar_path(path: Path) -> Path | None:
    """The file or folder beside a missing path with the most similar name, if there is one."""
    try:
        names = [one.name for one in path.expanduser().parent.iterdir() if one.name != path.name]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return path.with_name(near[0]) if near else None


def require_choice(
    value: object, literal: object, where: str, remedy: str = "Choose one of these."
) -> None:
    """Require that a value is a member of a `Literal`."""
    allowed = [str(one) for one in get_args(literal)]
    if value not in allowed:
        near = difflib.get_close_matches(str(value)[:_SHOWN_CHARS], allowed, n=1)
        raise SpecError(
            f"{begin(where, *near)} {show(value)}; allowed: {', '.join(allowed)}. {remedy}"
        )


def require_path(text: str, where: str) -> None:
    """Require that a text can be a path or an id: no system takes longer ones."""
    size = len(text.encode(errors="replace"))
    longest = max(len(part.encode(errors="replace")) for part in text.split("/"))
    require(
        size < 4096 and longest <= 255,
        where,
        text,
        "at most 4095 bytes, and 255 between two slashes",
        "Correct the name or path.",
    )


def require_finite(value: float, where: str, *, above: float | None = None) -> None:
    """Require a finite number that is at least 0, or larger than `above`."""
    claim = math.isfinite(value) and (value >= 0 if above is None else value > above)
    require(
        claim,
        where,
        value,
        "a finite number > 0" if above is not None else "a finite number >= 0",
        "Set a number in that range.",
    )


def require_small_numbers(spec: object, section: str = "") -> None:
    """Refuse whole numbers beyond `LARGEST` in a spec, before other checks write them.

    Raises:
        SpecError: A number is too large.
    """
    where, value = huge_number(spec, section) or ("", None)
    allowed = f"whole numbers from -{LARGEST} to {LARGEST}"
    require(value is None, where, value, allowed, "Use a smaller number.")


_TYPES: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
}


def require_types(spec: object, section: str) -> None:
    """Require that plain fields of a spec from a file have their declared types.

    Raises:
        SpecError: A field has another type.
    """
    for name, options in _plain_fields(type(spec)).items():  # type: ignore[arg-type]
        value = getattr(spec, name)
        is_float = float in options and type(value) is int
        require(
            type(value) in options or is_float,
            f"{section}.{name}",
            value,
            " or ".join(_TYPES[option] for option in options),
            "Correct the value.",
        )


@functools.cache
def _plain_fields(owner: Any) -> dict[str, tuple[type, ...]]:
    """Types of the fields that hold numbers, text, true, false or null only."""
    options = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(owner).items()}
    return {name: kinds for name, kinds in options.items() if all(one in _TYPES for one in kinds)}


def parse_numbers(text: str | bytes) -> Any:
    """The value of a JSON text whose numbers are finite and whose whole numbers are not huge.

    Raises:
        NumberError: A number is not finite, or a whole number is beyond `LARGEST`.
        ValueError: The text is not JSON.
    """
    return json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)


def _refuse(written: str) -> float:
    shown = written if len(written) <= 40 else f"{written[:40]}… ({len(written)} digits)"
    raise NumberError(f"the number {shown}")


def _finite(written: str) -> float:
    value = float(written)
    return value if math.isfinite(value) else _refuse(written)


def _whole(written: str) -> int:
    # Python converts at most 4300 digits, and takes time quadratic in their number.
    if len(written) > 20 or abs(int(written)) > LARGEST:
        _refuse(written)
    return int(written)


def huge_number(values: object, where: str = "") -> tuple[str, int] | None:
    """Dotted name and value of the first whole number beyond `LARGEST`; `None` if none is."""
    if isinstance(values, int) and abs(values) > LARGEST:
        return where, values
    nested: Iterable[tuple[object, object]] = ()
    if isinstance(values, Mapping):
        nested = values.items()
    elif isinstance(values, list | tuple):
        nested = enumerate(values)
    elif dataclasses.is_dataclass(values):
        nested = vars(values).items()
    for name, value in nested:
        found = huge_number(value, f"{where}.{name}" if where else str(name))
        if found is not None:
            return found
    return None


def settle_floats(spec: object) -> None:
    """Convert whole numbers in float fields to floats, so that 16 and 16.0 are the same trial."""
    for one in dataclasses.fields(spec):  # type: ignore[arg-type]
        value = getattr(spec, one.name)
        if one.type == "float" and type(value) is int:
            object.__setattr__(spec, one.name, float(value))
