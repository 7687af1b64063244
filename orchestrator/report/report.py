"""The report of a sweep: leaderboard, best adapter, its promotion, finals and spending."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from orchestrator.finals.standings import (
    Separation,
    Standing,
    compare_first_two,
    rank_finalists,
)
from orchestrator.hosts.members import base_key
from orchestrator.journal.events import PromotionDecided
from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.report.leaderboard import (
    build_curves,
    build_leaderboard,
    build_outcomes,
    describe_trial,
    find_pareto,
)
from orchestrator.report.measurements import BaseComparison, Generated, compare_with_base
from orchestrator.report.verdict import Evidence, Verdict, reach_verdict
from orchestrator.spec.sweep import SweepSpec
from orchestrator.wording import format_metric
from registry.tracking.views import SweepLinks
from trainables.contract import TRAINED, Mode
from trainables.spec import METRIC_COST

if TYPE_CHECKING:
    from trainables.evaluation.serving import Served

PlotName = Literal["curves", "tradeoffs", "importance"]

_SHOWN_ROWS = 10


@dataclass(frozen=True, kw_only=True)
class BestAdapter:
    """The best adapter of the ranking, which is put to the promotion gate.

    >>> best = open_sweep("runs/wordnet-classes").report.best
    >>> best.ref, best.is_champion
    ('wordnet-classes/1', True)
    >>> served = best.load()
    >>> served.form, served.model.training
    ('trained', False)

    Attributes:
        ref: The version, such as `wordnet-classes/1`; `None` when not registered.
        trial: Number of the trial that trained the adapter.
        repeat_of: Number of the trial of the search that `trial` repeats with another seed.
        bundle: Folder of the bundle, as recorded: within the sweep's storage when relative.
        hyperparameters: All settings, under the names of `orchestrator.spec.space.describe`.
        metrics: Last reported `eval_*`, on validation rows.
        test_metrics: `test_*`; empty when not evaluated on test rows.
        is_champion: Whether the gate promoted the version.
        location: The sweep's storage: a folder, or `s3://bucket/prefix`.
    """

    ref: str | None
    trial: int
    repeat_of: int | None = None
    bundle: str | None
    hyperparameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    test_metrics: Mapping[str, float]
    is_champion: bool
    location: str = ""

    @property
    def found_by(self) -> int:
        """Number of the trial of the search with the same settings."""
        return self.trial if self.repeat_of is None else self.repeat_of

    def load(
        self,
        *,
        form: str | None = None,
        base_model: str | None = None,
        device: str | None = None,
    ) -> Served:
        """Load the adapter on its base: `.model`, `.tokenizer` and `.manifest`, in eval mode.

        A registered adapter comes from the registry, checked against its registered digest;
        another one comes from its bundle in the sweep's storage.

        Args:
            form: `trained`, `unquantized`, `merged` or `requantized`; `None` takes the registered
                version's own form, else `trained`.
            base_model: Location of the base, where it differs from the manifest's.
            device: Such as `cuda:0`; by default the first CUDA device, else the CPU.

        Raises:
            SweepStorageError: The storage has no bundle of the trial.
            RegistryError: The version or MLflow cannot be used.
            BundleError: A file of the bundle differs from the manifest.
            BaseModelError: The base cannot be loaded, or is not the training base.
            SpecError: The base does not have the form.
        """
        # Importing torch and MLflow takes seconds, and a report is read without them.
        from registry import Registry, tracking_uri_for
        from trainables.evaluation.serving import load_served, require_form
        from trainables.training.bundle import read_manifest

        storage, chosen = SweepStorage(self.location), form
        with tempfile.TemporaryDirectory(prefix="lorchestra-") as work:
            if self.ref is None:
                bundle = storage.fetch_bundle(self.trial)
            else:
                runs = Path("runs") if storage.is_remote else storage.folder.parent
                adapters = Registry(tracking_uri_for(runs)[0])
                chosen = form or adapters.get(self.ref).form
                bundle = adapters.pull(self.ref, Path(work) / "adapter")
            served = require_form(read_manifest(bundle), chosen or TRAINED)
            return load_served(bundle, served, base_model=base_model, device=device)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A plot as the bytes of a PNG file; a notebook shows the picture."""

    png: bytes = field(repr=False)

    def save(self, path: str | Path) -> Path:
        """Write the PNG file and return its path."""
        Path(path).write_bytes(self.png)
        return Path(path)

    def _repr_png_(self) -> bytes:
        return self.png


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepReport:
    """The report of a sweep that has ended or is running; a notebook shows it as a table.

    >>> report = open_sweep("runs/wordnet-classes").report
    >>> report.outcomes[["outcome", "trials"]].to_dict("records")
    [{'outcome': 'completed', 'trials': 4}]
    >>> list(report.curves.columns[:3])
    ['trial', 'repeat_of', 'step']
    >>> report.plot("curves").save("curves.png").name
    'curves.png'

    Attributes:
        name: Name of the sweep.
        sweep_id: Id of the sweep; `None` before its start.
        storage: Folder of the sweep.
        status: `running`, `not started`, or the outcome of the sweep.
        reason: Why the sweep ended.
        leaderboard: One row per trial of the search, the best first.
        curves: One row per trial and evaluated step: `trial`, `repeat_of`, `step`, the metrics
            and `seconds`.
        outcomes: One row per outcome: `outcome`, `trials`, `share` and the most frequent `reason`.
        best: The best adapter; `None` until a trial ends with a finite value of the objective.
        base_metrics: Metrics by split of the best adapter's base, without an adapter.
        phases: Seconds of each phase, by name.
        metric: The objective.
        mode: Whether less or more of the objective is better.
        promotion: Why the gate promoted the best adapter or not.
        finals: The finalists with their standings, best first; empty before the finals.
        separation: Whether the first finalist is better than the second, beyond noise; `None` for
            fewer than two finalists.
        verdict: What the sweep found, in a few sentences, with warnings.
        pareto: Trials on the Pareto front of all objectives; empty with one objective.
        spent: Spent amounts: `wall_clock_s`, `cpu_seconds`, `gpu_seconds`, and `money` if the
            budget has a price; `metric_s`, the hosts' time for `eval.metric`, where there is one.
        limits: Limits of the budget, under the names of `spent` and for `trials`; without the
            names that have no limit.
        ended_early: Why the search or the finals left out work.
        forms: Metrics by trial and serving form, for trials evaluated in any form.
        form_errors: Errors by trial and serving form, for forms that could not be evaluated.
        undelivered: What is not yet registered or recorded in MLflow, and why; empty when all is.
        spec: The sweep that the report is about.
        history: The events that the report was made from.
        links: Addresses of the trials in MLflow's pages; `None` unless all is recorded there.
    """

    name: str
    sweep_id: str | None
    storage: Path
    status: str
    reason: str
    leaderboard: pd.DataFrame
    curves: pd.DataFrame
    outcomes: pd.DataFrame
    best: BestAdapter | None
    base_metrics: Mapping[str, Mapping[str, float]]
    phases: Mapping[str, float]
    metric: str
    mode: Mode
    promotion: str
    finals: tuple[Standing, ...] = ()
    separation: Separation | None = None
    verdict: Verdict = field(default_factory=Verdict)
    pareto: tuple[int, ...] = ()
    spent: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    ended_early: str = ""
    forms: Mapping[int, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    form_errors: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    undelivered: str = ""
    spec: SweepSpec = field(repr=False)
    history: SweepHistory = field(repr=False)
    links: SweepLinks | None = None

    def plot(self, name: PlotName = "curves") -> Picture | None:
        """A picture of the sweep; `None` where the trials are too few for it.

        Args:
            name: `curves` is the objective of every trial by step, `tradeoffs` the objective
                against memory, size and time, `importance` the share of each searched setting.

        Raises:
            KeyError: There is no such plot.
        """
        png = _DRAWN[name](self)
        return None if png is None else Picture(png=png)

    def comparisons(self) -> list[BaseComparison]:
        """Base and best adapter side by side, on validation and on test rows."""
        return _compare(self.base_metrics, self.best)

    def generated(self) -> Generated | None:
        """Exact match and accuracy of the best adapter; `None` without generated completions."""
        return _find_generated({} if self.best is None else self.forms.get(self.best.trial, {}))

    def _repr_html_(self) -> str:
        best = self.best
        lines = [f"<b>{escape(self.name)}</b>: {escape(self.status)}. {escape(self.reason)}"]
        if best is not None:
            value = format_metric(best.metrics.get(self.metric))
            kept = f"registered as {best.ref}" if best.ref else "not registered"
            lines.append(f"Best: trial {best.trial}, {self.metric} {value}, {kept}")
        lines += [escape(text) for text in (self.verdict.text, self.undelivered) if text]
        table = self.leaderboard.head(_SHOWN_ROWS).to_html(index=False, na_rep="", border=0)
        return f"<p>{'<br>'.join(lines)}</p>{table}"


def build_report(
    spec: SweepSpec, history: SweepHistory, storage: Path, location: str | None = None
) -> SweepReport:
    """The report of a sweep, as far as its history goes.

    Args:
        spec: The sweep.
        history: History of the sweep.
        storage: Folder of the sweep.
        location: Address of the storage, where it is not the folder.
    """
    standings = rank_finalists(spec, history)
    record = standings[0].adapter if standings else None
    place = location or str(storage)
    best = None if record is None else _describe_best(record, history, place)
    finals = tuple(standing for standing in standings if standing.values)
    base = dataclasses.asdict(spec.base) if record is None else record.spec["base"]
    base_metrics = dict(history.base_metrics.get(base_key(base), {}))
    separation = compare_first_two(finals, spec.finals.confidence)
    return SweepReport(
        name=spec.name,
        sweep_id=history.sweep_id,
        storage=storage,
        status=history.status or "not started",
        reason=history.reason,
        leaderboard=build_leaderboard(spec, history),
        curves=build_curves(history),
        outcomes=build_outcomes(history),
        best=best,
        base_metrics=base_metrics,
        phases=dict(history.phases),
        metric=spec.objective.metric,
        mode=spec.objective.mode,
        promotion=_explain_promotion(spec, history, best),
        finals=finals,
        separation=separation,
        verdict=reach_verdict(
            Evidence(
                trial=None if best is None else best.found_by,
                value=None if best is None else best.metrics.get(spec.objective.metric),
                metric=spec.objective.metric,
                mode=spec.objective.mode,
                is_over=history.status not in (None, "running") or _is_trained(history),
                finals=finals,
                separation=separation,
                comparisons=_compare(base_metrics, best),
                generated=None if record is None else _find_generated(record.forms),
                forms={} if record is None else record.forms,
                stored_form=str(base["quantization"]),
                has_answers=_has_answers(history),
            )
        ),
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
        spec=spec,
        history=history,
    )


def _compare(
    base_metrics: Mapping[str, Mapping[str, float]], best: BestAdapter | None
) -> list[BaseComparison]:
    adapter = {}
    if best is not None:
        adapter = {"validation": best.metrics, "test": best.test_metrics}
    return compare_with_base(base_metrics, adapter)


def _find_generated(forms: Mapping[str, Mapping[str, float]]) -> Generated | None:
    found = forms.get(TRAINED, {})
    if "exact_match" not in found or "accuracy" not in found:
        return None
    return Generated(found["accuracy"], found["exact_match"])


def _is_trained(history: SweepHistory) -> bool:
    """Whether search and repeats have ended, as they have before the sweep's own end."""
    return {"search", "repeats"} <= history.stages.keys()


def _has_answers(history: SweepHistory) -> bool:
    """Whether rows have answers; plain text has none, and none of its rows is ever all right."""
    layouts = [facts.get("layout") or {} for facts in history.data_facts.values()]
    return not any(layout.get("format") == "text" for layout in layouts)


# The libraries that draw take seconds to import, and tables need none of them.


def _draw_curves(report: SweepReport) -> bytes:
    from orchestrator.report.plots import draw_learning_curves

    return draw_learning_curves(
        report.history,
        title=report.name,
        metric=report.metric,
        best=None if report.best is None else report.best.trial,
        base=report.base_metrics.get("validation", {}).get(report.metric),
    )


def _draw_tradeoffs(report: SweepReport) -> bytes | None:
    from orchestrator.report.tradeoffs import draw_tradeoffs, find_tradeoffs

    best = None if report.best is None else report.best.found_by
    found = find_tradeoffs(report.leaderboard, metric=report.metric, mode=report.mode)
    if not found:
        return None
    return draw_tradeoffs(found, title=report.name, metric=report.metric, best=best)


def _draw_importance(report: SweepReport) -> bytes | None:
    from orchestrator.report.importance import draw_importance, find_importance

    found = find_importance(report.spec, report.history)
    return draw_importance(found, title=report.name) if found.parts else None


_DRAWN: Mapping[str, Callable[[SweepReport], bytes | None]] = {
    "curves": _draw_curves,
    "tradeoffs": _draw_tradeoffs,
    "importance": _draw_importance,
}


def _sum_up(spec: SweepSpec, history: SweepHistory) -> dict[str, float]:
    meter, price = history.meter, spec.budget.price_per_gpu_hour
    spent = {
        "wall_clock_s": meter.wall_clock_s(),
        "cpu_seconds": meter.cpu_s,
        "gpu_seconds": meter.gpu_s,
    }
    if spec.eval.metric is not None:
        reports = [report for one in history.trials.values() for report in one.measured]
        spent[METRIC_COST] = math.fsum(report.metrics.get(METRIC_COST, 0.0) for report in reports)
    return spent if price is None else spent | {"money": meter.gpu_s * price / 3600}


def _describe_best(record: TrialRecord, history: SweepHistory, location: str) -> BestAdapter:
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
        location=location,
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
