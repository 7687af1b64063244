"""Importance of searched settings: the share of the trials' order that each setting explains."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.outcome import Outcome
from orchestrator.report.plots import DPI, is_number, is_wide, to_png
from orchestrator.spec.settings import ALPHA_PER_RANK
from orchestrator.spec.sweep import SweepSpec
from orchestrator.wording import format_setting

FEWEST_TRIALS = 12
"""In 12 synthetic sweeps over five settings, one of them decisive, 12 trials identified the
decisive setting in 11 to 12 sweeps, 8 trials in 6 to 8 sweeps."""

# Beyond these, the shares of 100 to 400 synthetic trials changed by 0.01 at most, and the time
# grew fourfold.
_TREES, _DEPTH = 32, 8
_RESAMPLES = 12
_CUT = 1
"""Resamples outside of an interval at each end."""
_COLOR = "#0072b2"


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Shares of the trials' order that settings explain.

    Attributes:
        parts: Share of each setting that varied, of all that single settings explain; the shares
            sum to 1, the largest first. Empty where the trials do not suffice.
        constant: Settings of the space with one value in all counted trials.
        trials: Number of counted trials.
        intervals: Interval of each part: the middle 10 of its parts in 12 resamples of the trials.
        note: Sentences about the method, or the reason for empty `parts`.
    """

    parts: Mapping[str, float] = field(default_factory=dict)
    constant: tuple[str, ...] = ()
    trials: int
    note: str
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def find_importance(spec: SweepSpec, history: SweepHistory) -> Importance:
    """The importance of each knob for the first objective, by functional ANOVA.

    (F. Hutter, H. Hoos, K. Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter
    Importance", ICML 2014; Optuna's implementation.) Trials count by rank and not by value, so
    that a single very bad trial does not hide the differences among the others; diverged trials
    share the last rank. A knob that a trial did not search counts with its fixed setting. Repeats,
    copies made by `pbt`, and trials without an evaluation do not count.
    """
    ranked = [record for record in history.ranking(spec.objective) if record.parent is None]
    diverged = [record for record in history.searched() if record.outcome is Outcome.DIVERGED]
    records = [*ranked, *diverged]
    places = [float(min(place, len(ranked))) for place in range(len(records))]
    values = {
        name: [_value(record, name) for record in records] for name in spec.search_space.knobs
    }
    varied = {name: column for name, column in values.items() if len(set(map(str, column))) > 1}
    constant = tuple(name for name in values if name not in varied)
    count = len(records)
    if count < FEWEST_TRIALS:
        return Importance(
            trials=count,
            note=f"{count} trials with results are too few to tell which settings mattered; at "
            f"least {FEWEST_TRIALS} are needed.",
        )
    if len(varied) < 2 or len(set(places)) < 2:
        return Importance(
            constant=constant,
            trials=count,
            note=f"In {count} trials with results, {len(varied)} settings varied and "
            f"{len(set(places))} ranks differ; a comparison needs at least two of each.",
        )
    return Importance(
        parts=_explain(varied, places),
        intervals=_resample(varied, places),
        constant=constant,
        trials=count,
        note=f"Share of the order of {count} trials by {spec.objective.metric} that each setting "
        "explains alone (functional ANOVA), relative to the sum over all settings; effects of "
        "several settings together are left out. Trials stopped early count with their last "
        "value. The shares describe the values that were tried, and a search tries more values "
        f"where it expects good ones. Intervals: the middle {_RESAMPLES - 2 * _CUT} of "
        f"{_RESAMPLES} resamples of the trials.",
    )


def _explain(
    varied: Mapping[str, Sequence[Any]], places: Sequence[float], trees: int = _TREES
) -> dict[str, float]:
    # Optuna's trees import scikit-learn, which takes a second; only reports need them.
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    logging.getLogger("optuna.storages._in_memory").setLevel(logging.WARNING)
    columns = {name: _axis(column) for name, column in varied.items()}
    distributions = {name: distribution for name, (distribution, _) in columns.items()}
    study = optuna.create_study()
    for row, place in enumerate(places):
        params = {name: column[row] for name, (_, column) in columns.items()}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=place)
        )
    evaluator = FanovaImportanceEvaluator(n_trees=trees, max_depth=_DEPTH, seed=0)
    parts = get_param_importances(study, evaluator=evaluator)
    return {name: float(part) for name, part in parts.items()}


def _resample(
    varied: Mapping[str, Sequence[Any]], places: Sequence[float]
) -> dict[str, tuple[float, float]]:
    """Intervals of the parts: trials are drawn with replacement, and the parts found again."""
    rng, found = random.Random(0), []
    for _ in range(_RESAMPLES):
        rows = rng.choices(range(len(places)), k=len(places))
        columns = {name: [column[row] for row in rows] for name, column in varied.items()}
        told = {name: one for name, one in columns.items() if len(set(map(str, one))) > 1}
        drawn = [places[row] for row in rows]
        if len(told) > 1 and len(set(drawn)) > 1:
            found.append(_explain(told, drawn, trees=_TREES // 4))
    parts = {name: sorted(one.get(name, 0.0) for one in found) for name in varied}
    return {
        name: (one[_CUT], one[-1 - _CUT]) for name, one in parts.items() if len(one) > 2 * _CUT
    }


def _axis(column: Sequence[Any]) -> tuple[Any, list[Any]]:
    """An Optuna distribution for a column, and the column's values within the distribution."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(map(is_number, column)):
        numbers = [float(value) for value in column]
        return FloatDistribution(min(numbers), max(numbers), log=is_wide(numbers)), numbers
    words = [format_setting(value) for value in column]
    return CategoricalDistribution(sorted(set(words))), words


def _value(record: TrialRecord, knob: str) -> Any:
    """A knob's value in a trial; the fixed setting if the trial did not search the knob."""
    if knob in record.knobs:
        return record.knobs[knob]
    if knob == ALPHA_PER_RANK:
        lora = record.spec["lora"]
        return lora["alpha"] / lora["rank"]
    section, _, name = knob.partition(".")
    return record.spec[section].get(name) if name else record.spec[section]


def draw_importance(importance: Importance, *, title: str) -> bytes:
    """The parts with their intervals, largest on top, as a PNG 1200 pixels wide."""
    names = list(importance.parts)[::-1]
    parts = [importance.parts[name] for name in names]
    figure = Figure(figsize=(8, 1.4 + 0.4 * len(names)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    ends = [
        importance.intervals.get(name, (part, part))
        for name, part in zip(names, parts, strict=True)
    ]
    margins = [
        [max(0.0, part - low) for part, (low, _) in zip(parts, ends, strict=True)],
        [max(0.0, high - part) for part, (_, high) in zip(parts, ends, strict=True)],
    ]
    style = {"ecolor": "#555555", "capsize": 3}
    bars = axes.barh(names, parts, color=_COLOR, xerr=margins, error_kw=style)
    axes.bar_label(bars, [f"{part:.0%}" for part in parts], padding=3)
    axes.set(title=title, xlabel="part of what single settings explain", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return to_png(figure)
