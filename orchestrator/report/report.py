"""The report of a sweep: leaderboard, best adapter, its promotion, finals and spending."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.finals.standings import Standing, compare_first_two, rank_finalists
from orchestrator.hosts.members import base_key
from orchestrator.journal.events import PromotionDecided
from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.metrics import Metric
from orchestrator.report.leaderboard import build_leaderboard, describe_trial, find_pareto
from orchestrator.report.measurements import BaseComparison, Generated, compare_with_base
from orchestrator.spec.sweep import SweepSpec
from registry.tracking.views import SweepLinks
from trainables.contract import TRAINED, Mode


@dataclass(frozen=True, kw_only=True)
class BestAdapter:
    """The best adapter of the ranking, which is put to the promotion gate.

    Attributes:
        ref: The version, such as `wordnet-classes/1`; `None` when not registered.
        trial: Number of the trial that trained the adapter.
        repeat_of: Number of the trial of the search that `trial` repeats with another seed.
        bundle: Folder of the bundle, as recorded: within the sweep's storage when relative.
        hyperparameters: All settings, under the names of `orchestrator.spec.space.describe`.
        metrics: Last reported `eval_*`, on validation rows.
        test_metrics: `test_*`; empty when not evaluated on test rows.
        is_champion: Whether the gate promoted the version.
    """

    ref: str | None
    trial: int
    repeat_of: int | None = None
    bundle: str | None
    hyperparameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    test_metrics: Mapping[str, float]
    is_champion: bool

    @property
    def found_by(self) -> int:
        """Number of the trial of the search with the same settings."""
        return self.trial if self.repeat_of is None else self.repeat_of


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepReport:
    """The report of a sweep that has ended or is running.

    Attributes:
        name: Name of the sweep.
        sweep_id: Id of the sweep; `None` before its start.
        storage: Folder of the sweep.
        status: `running`, `not started`, or the outcome of the sweep.
        reason: Why the sweep ended.
        leaderboard: One row per trial; see `orchestrator.report.leaderboard`.
        best: The best adapter; `None` until a trial ends with a finite value of the objective.
        base_metrics: Metrics by split of the best adapter's base, without an adapter.
        phases: Seconds of each phase, by name.
        metric: The objective.
        mode: Whether less or more of the objective is better.
        promotion: Why the gate promoted the best adapter or not.
        finals: The finalists with their standings, best first; empty before the finals.
        verdict: Whether the first finalist is better than the second, beyond noise.
        pareto: Trials on the Pareto front of all objectives; empty with one objective.
        spent: Spent amounts: `wall_clock_s`, `cpu_seconds`, `gpu_seconds`, and `money` if the
            budget has a price.
        limits: Limits of the budget, under the names of `spent` and for `trials`; without the
            names that have no limit.
        ended_early: Why the search or the finals left out work.
        forms: Metrics by trial and serving form, for trials evaluated in any form.
        form_errors: Errors by trial and serving form, for forms that could not be evaluated.
        undelivered: What is not yet registered or recorded in MLflow, and why; empty when all is.
        links: Addresses of the trials in MLflow's pages; `None` unless all is recorded there.
    """

    name: str
    sweep_id: str | None
    storage: Path
    status: str
    reason: str
    leaderboard: pd.DataFrame
    best: BestAdapter | None
    base_metrics: Mapping[str, Mapping[str, float]]
    phases: Mapping[str, float]
    metric: Metric
    mode: Mode
    promotion: str
    finals: tuple[Standing, ...] = ()
    verdict: str = ""
    pareto: tuple[int, ...] = ()
    spent: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    ended_early: str = ""
    forms: Mapping[int, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    form_errors: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    undelivered: str = ""
    links: SweepLinks | None = None

    def comparisons(self) -> list[BaseComparison]:
        """Base and best adapter side by side, on validation and on test rows."""
        adapter = {}
        if self.best is not None:
            adapter = {"validation": self.best.metrics, "test": self.best.test_metrics}
        return compare_with_base(self.base_metrics, adapter)

    def generated(self) -> Generated | None:
        """Exact match and accuracy of the best adapter; `None` without generated completions."""
        measured = {} if self.best is None else self.forms.get(self.best.trial, {})
        found = measured.get(TRAINED, {})
        if "exact_match" not in found or "accuracy" not in found:
            return None
        return Generated(found["accuracy"], found["exact_match"])


def build_report(spec: SweepSpec, history: SweepHistory, storage: Path) -> SweepReport:
    """The report of a sweep, as far as its history goes.

    Args:
        spec: The sweep.
        history: History of the sweep.
        storage: Folder of the sweep.
    """
    standings = rank_finalists(spec, history)
    record = standings[0].adapter if standings else None
    best = None if record is None else _describe_best(record, history)
    finals = tuple(standing for standing in standings if standing.values)
    verdict = compare_first_two(finals, spec.finals.confidence)
    base = dataclasses.asdict(spec.base) if record is None else record.spec["base"]
    return SweepReport(
        name=spec.name,
        sweep_id=history.sweep_id,
        storage=storage,
        status=history.status or "not started",
        reason=history.reason,
        leaderboard=build_leaderboard(spec, history),
        best=best,
        base_metrics=dict(history.base_metrics.get(base_key(base), {})),
        phases=dict(history.phases),
        metric=spec.objective.metric,
        mode=spec.objective.mode,
        promotion=_explain_promotion(spec, history, best),
        finals=finals,
        verdict="" if verdict is None else verdict.text,
        pareto=find_pareto(spec.objective, history),
        spent=_sum_up(spec, history),
        ended_early="; ".join(stage.reason for stage in history.stages.values() if stage.reason),
        limits={
            name: float(limit)
            for name in ("trials", "wall_clock_s", "cpu_seconds", "gpu_seconds", "money")
            if (limit := getattr(spec.budget, name)) is not None
        },
        forms={number: one.forms for number, one in history.trials.items() if one.forms},
        form_errors={
            number: errors
            for number, one in history.trials.items()
            if (errors := {f: each.error for f, each in one.forms_evaluated.items() if each.error})
        },
    )


def _sum_up(spec: SweepSpec, history: SweepHistory) -> dict[str, float]:
    meter, price = history.meter, spec.budget.price_per_gpu_hour
    spent = {
        "wall_clock_s": meter.wall_clock_s(),
        "cpu_seconds": meter.cpu_s,
        "gpu_seconds": meter.gpu_s,
    }
    return spent if price is None else spent | {"money": meter.gpu_s * price / 3600}


def _describe_best(record: TrialRecord, history: SweepHistory) -> BestAdapter:
    last = record.reports[-1].metrics if record.reports else {}
    decision = _last_decision(history, record.ref)
    return BestAdapter(
        ref=record.ref,
        trial=record.number,
        repeat_of=record.repeat_of,
        bundle=record.bundle,
        hyperparameters=describe_trial(record),
        metrics={name: value for name, value in last.items() if name.startswith("eval_")},
        test_metrics=dict(record.final_metrics or {}),
        is_champion=decision is not None and decision.promoted,
    )


def _last_decision(history: SweepHistory, ref: str | None) -> PromotionDecided | None:
    decisions = [each for each in history.promotions if each.ref == ref]
    return decisions[-1] if decisions else None


def _explain_promotion(spec: SweepSpec, history: SweepHistory, best: BestAdapter | None) -> str:
    if best is None:
        return "there is no adapter to promote"
    decision = _last_decision(history, best.ref)
    if decision is not None:
        return decision.reason
    if spec.register is None:
        return "the sweep registers nothing: it has no register section"
    if not spec.register.promote:
        return "register.promote is off"
    return f"the adapter of trial {best.trial} was not put to the gate yet"
