"""Which searched settings mattered: what each explains of the order of the trials."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.outcome import Outcome
from orchestrator.report.plots import DPI, is_number, is_wide, to_png
from orchestrator.spec.settings import ALPHA_PER_RANK
from orchestrator.spec.sweep import SweepSpec
from orchestrator.wording import format_setting

FEWEST_TRIALS = 12
"""Of made-up sweeps over five settings with one that decides, 12 trials named that one in 11 to
12 cases of 12, 8 trials in 6 to 8 of 12."""

# Beyond these, the parts of 100 to 400 made-up trials changed by a hundredth at most, and the
# time for them grew fourfold.
_TREES, _DEPTH = 32, 8
_COLOR = "#0072b2"


@dataclass(frozen=True, kw_only=True)
class Importance:
    """What settings explain of the order of the trials.

    Attributes:
        parts: Of each setting that varied, its part of what single settings explain of the order;
            they sum up to 1, largest first. Empty where that cannot be said.
        constant: Settings of the space that had one value in all trials looked at.
        trials: How many were looked at.
        note: One sentence on how it was found, or why it was not.
    """

    parts: Mapping[str, float] = field(default_factory=dict)
    constant: tuple[str, ...] = ()
    trials: int
    note: str


def find_importance(spec: SweepSpec, history: SweepHistory) -> Importance:
    """The importance of each knob for the first objective, by functional ANOVA.

    (F. Hutter, H. Hoos, K. Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter
    Importance", ICML 2014; Optuna's implementation.) Trials count by their place in the order and
    not by their value, so that one that went very wrong does not hide what the others say; those
    that diverged share the last place. Knobs that a trial did not search count with their fixed
    setting. Not looked at are repeats, copies made by `pbt`, and trials without a measurement.
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
            note=f"{count} trials with results are too few to tell which settings mattered; it "
            f"takes {FEWEST_TRIALS}.",
        )
    if len(varied) < 2 or len(set(places)) < 2:
        return Importance(
            constant=constant,
            trials=count,
            note=f"Of {count} trials with results, {len(varied)} settings varied and "
            f"{len(set(places))} places differ; with fewer than two there is nothing to compare.",
        )
    return Importance(
        parts=_explain(varied, places),
        constant=constant,
        trials=count,
        note=f"What each setting explains, by itself, of the order of {count} trials by "
        f"{spec.objective.metric} (functional ANOVA), as part of what they explain one by one; "
        "what only several explain together is left out. Trials stopped early count with what "
        "they measured last. It tells of the values that were tried, which a search draws where "
        "it expects good ones.",
    )


def _explain(varied: Mapping[str, Sequence[Any]], places: Sequence[float]) -> dict[str, float]:
    # scikit-learn, which Optuna's trees are of, takes a second to import; only reports need it.
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
    evaluator = FanovaImportanceEvaluator(n_trees=_TREES, max_depth=_DEPTH, seed=0)
    parts = get_param_importances(study, evaluator=evaluator)
    return {name: float(part) for name, part in parts.items()}


def _axis(column: Sequence[Any]) -> tuple[Any, list[Any]]:
    """An Optuna distribution for a column, and the column's values in its terms."""
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


def plot_importance(importance: Importance) -> Any:
    """A plotly figure of the parts, largest on top."""
    names = list(importance.parts)[::-1]
    parts = [importance.parts[name] for name in names]
    figure = go.Figure(
        go.Bar(
            x=parts,
            y=names,
            orientation="h",
            marker={"color": _COLOR},
            text=[f"{part:.0%}" for part in parts],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
    )
    figure.update_xaxes(
        title="part of what single settings explain", tickformat=".0%", range=[0, 1]
    )
    figure.update_layout(
        template="plotly_white", height=130 + 34 * len(names), margin={"t": 30, "r": 50}
    )
    figure.update_yaxes(automargin=True)
    return figure


def draw_importance(importance: Importance, *, title: str) -> bytes:
    """`plot_importance` as a PNG 1200 pixels wide."""
    names = list(importance.parts)[::-1]
    parts = [importance.parts[name] for name in names]
    figure = Figure(figsize=(8, 1.4 + 0.4 * len(names)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(names, parts, color=_COLOR)
    axes.bar_label(bars, [f"{part:.0%}" for part in parts], padding=3)
    axes.set(title=title, xlabel="part of what single settings explain", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return to_png(figure)
