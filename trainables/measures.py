"""What is measured of an adapter, each as a formula over columns with one entry for each row.

A measure's value is `scale(sum of its column / sum of another)`, so whoever holds the columns of
an evaluation document can compute it again: on all rows, on some, or on resampled ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Scale = Literal["identity", "exp", "bits"]
Mode = Literal["min", "max"]

Columns = Mapping[str, Sequence[Any]]
"""Numbers (`None` where one is not finite) or texts, one for each row, by name."""

_SCALES: dict[Scale, Callable[[float], float]] = {
    "identity": lambda ratio: ratio,
    "exp": math.exp,
    "bits": lambda nats: nats / math.log(2),
}


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a number comes from columns.

    Attributes:
        of: Column whose sum is measured.
        per: Column whose sum it is divided by; `None` divides by the number of rows.
        scale: What is done to the ratio: nothing, `exp`, or nats to bits.
        mode: Whether less or more is better.
    """

    of: str
    per: str | None
    scale: Scale
    mode: Mode


def _mean(column: str) -> Measure:
    return Measure(of=column, per=None, scale="identity", mode="max")


MEASURES: dict[str, Measure] = {
    "loss": Measure(of="loss_sum", per="answer_tokens", scale="identity", mode="min"),
    "perplexity": Measure(of="loss_sum", per="answer_tokens", scale="exp", mode="min"),
    # Bytes are the same for every tokenizer. The end token costs bits and has no bytes.
    "bits_per_byte": Measure(of="loss_sum", per="answer_bytes", scale="bits", mode="min"),
    "token_accuracy": Measure(
        of="correct_tokens", per="answer_tokens", scale="identity", mode="max"
    ),
    "accuracy": _mean("accuracy"),
    "exact_match": _mean("exact_match"),
    "pattern_match": _mean("pattern_match"),
    "choice_match": _mean("choice_match"),
}
"""The measures there are; one is taken where its columns are."""

RESERVED = frozenset(
    {*MEASURES, "prediction", "reference"}
    | {column for one in MEASURES.values() for column in (one.of, one.per) if column is not None}
)
"""Names that a user's metric cannot have."""


def value_of(columns: Columns, measure: Measure) -> float | None:
    """The measure's value; `None` where it is not finite, or a row has none (`None` or NaN)."""
    of = columns[measure.of]
    per = [1] * len(of) if measure.per is None else columns[measure.per]
    if any(entry is None for entry in (*of, *per)) or sum(per) == 0:
        return None
    try:
        value = _SCALES[measure.scale](math.fsum(of) / math.fsum(per))
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def measured(columns: Columns, own: Mapping[str, Mode]) -> dict[str, dict[str, Any]]:
    """Every measure whose columns are there, as an evaluation document holds it.

    Args:
        columns: What was measured of each row.
        own: Columns of a user's metrics and which way they are better; each gives a mean.
    """
    measures = {
        name: measure
        for name, measure in MEASURES.items()
        if measure.of in columns and (measure.per is None or measure.per in columns)
    }
    measures |= {
        name: Measure(of=name, per=None, scale="identity", mode=mode) for name, mode in own.items()
    }
    return {
        name: {
            "value": value_of(columns, measure),
            "of": measure.of,
            "per": measure.per,
            "scale": measure.scale,
            "mode": measure.mode,
        }
        for name, measure in measures.items()
    }
