"""Scores of an adapter in each serving form, and their differences from the trained form.

The metrics of a trial in a form are its measures (`loss`, `accuracy`, …). With numbers for each
row, `loss.low` and `loss.high` are the interval of `loss`, `loss.difference` is the difference
from the trained form on the same rows, and `loss.difference.low` and `loss.difference.high` are
the interval of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from trainables.contract import SERVING_FORMS, TRAINED

_DIFFERENCE = ".difference"


class Estimate(NamedTuple):
    """A value with its interval, if known."""

    value: float
    low: float | None = None
    high: float | None = None


class FormScore(NamedTuple):
    """A measure of a trial's adapter in a serving form.

    Attributes:
        trial: Number of the trial.
        form: A serving form.
        measure: Name of the measure, such as `loss`.
        score: Value of the measure.
        difference: Difference from the trained form; `None` for the trained form itself, and
            where the trained form has no value.
    """

    trial: int
    form: str
    measure: str
    score: Estimate
    difference: Estimate | None


def list_form_scores(
    forms: Mapping[int, Mapping[str, Mapping[str, float]]],
) -> list[FormScore]:
    """All scores in serving forms, ordered by trial, measure and form.

    Args:
        forms: Metrics by trial and form.
    """
    return [
        FormScore(trial, form, measure, score, _difference(by_form, form, measure))
        for trial, by_form in sorted(forms.items())
        for measure in dict.fromkeys(
            name for form in sorted(by_form, key=_place) for name in by_form[form]
        )
        if "." not in measure
        for form in sorted(by_form, key=_place)
        if (score := _estimate(by_form[form], measure)) is not None
    ]


def _place(form: str) -> tuple[int, str]:
    return (SERVING_FORMS.index(form) if form in SERVING_FORMS else len(SERVING_FORMS)), form


def _difference(
    by_form: Mapping[str, Mapping[str, float]], form: str, measure: str
) -> Estimate | None:
    if form == TRAINED:
        return None
    measured = _estimate(by_form[form], measure + _DIFFERENCE)
    if measured is not None:
        return measured
    here = _estimate(by_form[form], measure)
    there = _estimate(by_form.get(TRAINED, {}), measure)
    return None if here is None or there is None else Estimate(here.value - there.value)


def _estimate(metrics: Mapping[str, float], name: str) -> Estimate | None:
    value = metrics.get(name)
    if value is None or not math.isfinite(value):
        return None
    return Estimate(value, metrics.get(f"{name}.low"), metrics.get(f"{name}.high"))
