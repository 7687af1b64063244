"""Evaluation of completions: pattern matches, choices, and a user's metric functions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from trainables.contract import Mode
from trainables.errors import SpecError
from trainables.evaluation.measures import RESERVED
from trainables.evaluation_spec import EvaluationSpec
from trainables.functions import load_function, source_digest, split_name

_FIELD = "evaluation.metrics"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A user's function of predictions and references.

    Attributes:
        name: Name of the function, of its column and of its measure.
        mode: `min` where less is better, `max` where more is better.
    """

    name: str
    mode: Mode
    function: Callable[[list[str], list[str]], Sequence[float]]


def find_pattern(pattern: str, text: str) -> str | None:
    """First match of a regular expression: group 1, if there is one; `None` without a match."""
    found = re.search(pattern, text)
    if found is None:
        return None
    groups = found.groups()
    return groups[0] if groups else found[0]


def find_choice(choices: Sequence[str], text: str) -> str | None:
    """The choice that occurs first in a text; of choices at the same place, the longest.

    An ASCII letter or digit at the border of a choice must not be part of a longer word: `A` is
    not found in `Answer`, nor `no` in `know`.
    """
    found = re.search("|".join(map(_whole, sorted(choices, key=len, reverse=True))), text)
    return None if found is None else found[0]


def load_metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """The functions named by `EvaluationSpec.metrics`; their files are run.

    Raises:
        SpecError: The module, file or function does not exist or cannot be imported; or the name
            of the function is taken, or its mode is unknown.
    """
    return tuple(_load_metric(name) for name in names)


def metric_digests(names: Sequence[str]) -> dict[str, str]:
    """Digest `sha256:...` of each metric's source file, by metric name; no file is run.

    Raises:
        SpecError: The module or file does not exist.
    """
    return {split_name(name)[1]: source_digest(name, _FIELD) for name in names}


def evaluate_completions(
    how: EvaluationSpec,
    metrics: Sequence[Metric],
    predictions: Sequence[str],
    references: Sequence[str],
) -> dict[str, list[float]]:
    """Columns of numbers by name, one number for each completion.

    Raises:
        SpecError: A metric returned something other than one finite number for each row.
    """
    pairs = list(zip(predictions, references, strict=True))
    columns: dict[str, list[float]] = {
        "exact_match": [int(written.strip() == wanted.strip()) for written, wanted in pairs]
    }
    for column, read in readings(how).items():
        columns[column] = [int(read(written) == read(wanted)) for written, wanted in pairs]
    for metric in metrics:
        columns[metric.name] = _metric_column(metric, predictions, references)
    return columns


def readings(how: EvaluationSpec) -> dict[str, Callable[[str], str | None]]:
    """Functions that extract a pattern or a choice from a text, by column name."""
    found: dict[str, Callable[[str], str | None]] = {}
    if how.pattern is not None:
        pattern = how.pattern
        found["pattern_match"] = lambda text: find_pattern(pattern, text)
    if how.choices:
        found["choice_match"] = lambda text: find_choice(how.choices, text)
    return found


def missing_reading(how: EvaluationSpec, reference: str) -> tuple[str, object] | None:
    """Field and value of `how` without a match in a reference; `None` if all have a match.

    A row whose reference has no match cannot be evaluated.
    """
    fields: Mapping[str, tuple[str, object]] = {
        "pattern_match": ("pattern", how.pattern),
        "choice_match": ("choices", how.choices),
    }
    for column, read in readings(how).items():
        if read(reference) is None:
            return fields[column]
    return None


def _whole(choice: str) -> str:
    before = r"(?<![A-Za-z0-9_])" if re.match(r"\w", choice, re.ASCII) else ""
    behind = r"(?![A-Za-z0-9_])" if re.search(r"\w\Z", choice, re.ASCII) else ""
    return before + re.escape(choice) + behind


def _load_metric(name: str) -> Metric:
    function, called = load_function(name, _FIELD), split_name(name)[1]
    if called in RESERVED:
        raise SpecError(
            f"evaluation.metrics: got {name!r}, but the name {called!r} is taken; allowed: any "
            f"but {', '.join(sorted(RESERVED))}. Rename the function."
        )
    mode: Any = getattr(function, "mode", "max")
    if mode not in get_args(Mode):
        raise SpecError(
            f"evaluation.metrics: {name!r} has mode {mode!r}; allowed: {', '.join(get_args(Mode))}"
            ". Correct the attribute."
        )
    return Metric(name=called, mode=mode, function=function)


def _metric_column(
    metric: Metric, predictions: Sequence[str], references: Sequence[str]
) -> list[float]:
    # Pass copies: the function may change its arguments.
    given: Any = metric.function(list(predictions), list(references))
    allowed = f"a list of {len(predictions)} finite numbers, one for each row"
    where = f"evaluation.metrics: {metric.name}"
    try:
        column = [float(number) for number in given]
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"{where} gave a {type(given).__name__} ({error}); allowed: {allowed}. Correct the "
            "function."
        ) from error
    if len(column) != len(predictions):
        raise SpecError(
            f"{where} gave {len(column)} numbers; allowed: {allowed}. Correct the function."
        )
    for row, number in enumerate(column, 1):
        if not math.isfinite(number):
            raise SpecError(
                f"{where} gave {number} for row {row}; allowed: {allowed}. Correct the function."
            )
    return column
