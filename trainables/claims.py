"""Claims about values that a user wrote: each is true, or a `SpecError` says what to write."""

from __future__ import annotations

import math
from typing import get_args

from trainables.errors import SpecError


def require(claim: bool, where: str, value: object, allowed: str, remedy: str) -> None:
    """Raise a `SpecError` that names the field, its value, what is allowed and the remedy."""
    if not claim:
        raise SpecError(f"{where}: got {value!r}; allowed: {allowed}. {remedy}")


def require_choice(
    value: object, literal: object, where: str, remedy: str = "Choose one of these."
) -> None:
    """`require` that a value is one of a `Literal`'s."""
    allowed = get_args(literal)
    require(value in allowed, where, value, ", ".join(map(str, allowed)), remedy)


def require_finite(value: float, where: str, *, above: float | None = None) -> None:
    """`require` a finite number that is at least 0, or larger than `above`."""
    claim = math.isfinite(value) and (value >= 0 if above is None else value > above)
    require(
        claim,
        where,
        value,
        "a finite number > 0" if above is not None else "a finite number >= 0",
        "Set a number in that range.",
    )
