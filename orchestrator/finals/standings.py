"""Standings of the finalists: each configuration with several seeds, as a mean and its interval.

The search tries many configurations with one seed each, so its best value is too optimistic. In
the finals, each of the best configurations is trained again to the full horizon with new seeds,
and all adapters are evaluated on test rows, which no choice has seen.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.journal.history import SweepHistory, TrialRecord, exceeded
from orchestrator.outcome import Outcome
from orchestrator.spec.sections import ObjectiveSpec
from orchestrator.spec.sweep import SweepSpec
from trainables.hosts.orders import Split


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One finalist.

    Attributes:
        trial: The trial of the search.
        runs: The trial and its repeats, as far as they were trained from the start to the
            horizon, were evaluated, and keep the constraints.
        metric: Name of the metric of `values`.
        values: The metric of each run.
        mean: Mean of the values; `None` without values.
        half_width: Half width of the mean's confidence interval; `None` for fewer than two values.
    """

    trial: TrialRecord
    runs: tuple[TrialRecord, ...]
    metric: str
    values: tuple[float, ...]
    mean: float | None
    half_width: float | None

    @property
    def adapter(self) -> TrialRecord:
        """The run whose adapter represents the configuration: the best run on validation rows."""
        return self.trial if not self.runs else self.runs[0]

    @property
    def is_repeated(self) -> bool:
        """Whether the finalist was trained again with another seed."""
        return any(run.repeat_of is not None for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Separation:
    """Whether the first finalist is really better than the second.

    Attributes:
        is_clear: Whether the interval of the difference excludes zero.
        text: One sentence for the report.
    """

    is_clear: bool
    text: str


def finalists(spec: SweepSpec, history: SweepHistory) -> list[TrialRecord]:
    """The trials of the search that go into the finals, best on validation rows first.

    A trial whose state was pruned cannot be evaluated again and is no finalist.
    """
    registered = 0 if spec.register is None else spec.register.top
    able = [trial for trial in history.ranking(spec.objective) if "state" not in trial.pruned]
    return able[: max(spec.finals.top, registered)]


def rank_finalists(spec: SweepSpec, history: SweepHistory) -> list[Standing]:
    """The finalists, best first.

    Repeated finalists come first, by their mean on test rows. The others follow in the order of
    the search, because a choice among single runs by test rows would be biased.
    """
    standings = [_stand(spec, history, trial) for trial in finalists(spec, history)]
    sign = 1.0 if spec.objective.mode == "min" else -1.0

    def place(standing: Standing) -> tuple[bool, float]:
        if standing.mean is None or not standing.is_repeated:
            return True, 0.0
        return False, sign * standing.mean

    return sorted(standings, key=place)  # stable: the others keep the order of the search


def compare_first_two(standings: Sequence[Standing], confidence: float) -> Separation | None:
    """Welch's interval for the difference of the first two means; `None` for fewer than two.

    (B. L. Welch, "The generalization of 'Student's' problem when several different population
    variances are involved", Biometrika 34, 1947.)
    """
    measured = [standing for standing in standings if standing.values]
    if len(measured) < 2:
        return None
    first, second = measured[:2]
    names = f"trial {first.trial.number} and trial {second.trial.number}"
    if min(len(first.values), len(second.values)) < 2:
        text = f"{names} have a single run: their difference says nothing beyond noise"
        return Separation(is_clear=False, text=text)
    difference = statistics.fmean(first.values) - statistics.fmean(second.values)
    margin = _welch_margin(first.values, second.values, confidence)
    shown = f"{difference:+.4g} ± {margin:.2g} in {first.metric} at {confidence:.0%}"
    if abs(difference) > margin:
        return Separation(is_clear=True, text=f"{names} differ by {shown}")
    text = f"{names} cannot be told apart: they differ by {shown}"
    return Separation(is_clear=False, text=text)


def has_test_rows(spec: SweepSpec) -> bool:
    """Whether the data has test rows, on which only finalists are evaluated."""
    return spec.data.test is not None or spec.data.test_fraction > 0


def deciding_split(spec: SweepSpec) -> Split:
    """The split whose rows decide the finals."""
    return "test" if has_test_rows(spec) else "validation"


def held_out_name(objective: ObjectiveSpec, metrics: Mapping[str, float]) -> str:
    """Name of the objective on test rows; on validation rows if it has no value on test rows."""
    on_test = objective.metric.replace("eval_", "test_")
    return on_test if on_test in metrics else objective.metric


def _stand(spec: SweepSpec, history: SweepHistory, trial: TrialRecord) -> Standing:
    """The standing of a finalist, from its complete runs."""
    runs = [
        run
        for run in (trial, *history.repeats_of(trial.number))
        if run.outcome is Outcome.COMPLETED
        and _value(run, spec) is not None
        and not exceeded(run, spec.objective)
    ]
    if len(runs) > 1:  # a copy of another trial's checkpoint trained partly with other settings
        runs = [run for run in runs if run.parent is None]
    if not runs and _value(trial, spec) is not None:
        runs = [trial]  # stopped or cut short, without a complete repeat
    metric = held_out_name(spec.objective, runs[0].final_metrics or {}) if runs else ""
    values = tuple(value for run in runs if (value := _value(run, spec)) is not None)
    half_width = None
    if len(values) > 1:
        error = statistics.stdev(values) / math.sqrt(len(values))
        half_width = _student_t(spec.finals.confidence, len(values) - 1) * error
    # Best on validation rows first, because a choice among seeds by test rows would be biased.
    sign = 1.0 if spec.objective.mode == "min" else -1.0
    runs.sort(key=lambda run: sign * (run.last(spec.objective.metric) or 0.0))
    return Standing(
        trial=trial,
        runs=tuple(runs),
        metric=metric,
        values=values,
        mean=statistics.fmean(values) if values else None,
        half_width=half_width,
    )


def _value(run: TrialRecord, spec: SweepSpec) -> float | None:
    """The objective of a run on test rows; without a test split, the last validation value."""
    if not has_test_rows(spec):
        return run.last(spec.objective.metric)
    metrics = run.final_metrics or {}
    value = metrics.get(held_out_name(spec.objective, metrics))
    return value if value is not None and math.isfinite(value) else None


def _welch_margin(a: Sequence[float], b: Sequence[float], confidence: float) -> float:
    """Half width of Welch's interval for the difference of two means."""
    parts = [(statistics.variance(values) / len(values), len(values) - 1) for values in (a, b)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    return _student_t(confidence, freedom) * math.sqrt(variance)


def _student_t(confidence: float, freedom: float) -> float:
    """Half width, in standard errors, of the interval at a confidence, by Student's t."""
    from scipy.stats import t  # the import takes a second; only sweeps with finals need it

    return float(t.ppf((1 + confidence) / 2, freedom))
