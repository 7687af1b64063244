"""Checks of user-written values: a failed check raises a `SpecError` with a remedy."""

from __future__ import annotations

import math
from typing import get_args

from trainables.errors import SpecError


def require(claim: bool, where: str, value: object, allowed: str, remedy: str) -> None:
    """Raise a `SpecError` with the field, the value, the allowed values and the remedy."""
    if not claim:
        raise SpecError(f"{where}: got {value!r}; allowed: {allowed}. {remedy}")


def require_choice(
    value: object, literal: object, where: str, remedy: str = "Choose one of these."
) -> None:
    """Require that a value is a member of a `Literal`."""
    allowed = get_args(literal)
    require(value in allowed, where, value, ", ".join(map(str, allowed)), remedy)


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
