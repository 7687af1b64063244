"""A sweep from its spec to its report. Read this page first.

    open the storage folder   event log: a new sweep, or one to go on with
    check the data            every row, before anything is started
    start Ray, hosts          embedded, or the cluster it is told of
    search                    Ray Tune asks Optuna, seats trials on hosts, stops the weak
    finals                    the best on test rows, beside the bare base
    register, promote         versions in MLflow, one of them champion
    report                    leaderboard, plots; what was spent

Everything that happens is an event on disk before anything else is done about it, so the same
call on the same folder goes on wherever an earlier one ended, however it ended.
"""

from __future__ import annotations

import logging
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray import tune
from ray.actor import ActorHandle
from rich.console import Console

from orchestrator.broker import start_broker
from orchestrator.cluster import PROXY_CPUS, Placement, ray_cluster
from orchestrator.delivery import Delivery
from orchestrator.errors import SweepFailedError, SweepStorageError
from orchestrator.events import EventLog
from orchestrator.finals import (
    are_measured,
    evaluate_finalists,
    finalists,
    register_finalists,
)
from orchestrator.history import SweepHistory, TrialRecord
from orchestrator.hosts import HostPool
from orchestrator.outcome import Outcome, TrialOutcome
from orchestrator.progress import ProgressDisplay
from orchestrator.quiet import hush_noisy_loggers, library_chatter_to
from orchestrator.recording import SweepRecord, TrialRecorder
from orchestrator.report import SweepReport, build_report, write_report
from orchestrator.schedule import build_scheduler, replay_history
from orchestrator.search import OptunaSearcher
from orchestrator.spec import SweepSpec
from orchestrator.trial import SeatReleaser, TrialProxy, trial_dir
from registry import RegistryError, Tracker, tracking_uri_for
from trainables.data import read_raw_splits

logger = logging.getLogger(__name__)

EXPERIMENT = "lorchestra"
EVENTS_FILE = "events.jsonl"
LOG_FILE = "lorchestra.log"
REPORT_FOLDER = "report"
_MAX_PROXY_FAILURES = 2
_FLUSH_S = 120.0


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """What the parts of a run share."""

    spec: SweepSpec
    storage: Path
    record: SweepRecord
    display: ProgressDisplay

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show what is going on, and record how long it took."""
        self.display.phase(name)
        started = time.monotonic()
        yield
        self.record.add("phase", name=name, seconds=time.monotonic() - started)


def run_sweep(
    spec: SweepSpec, storage: str | Path | None = None, *, console: Console | None = None
) -> SweepReport:
    """Run a sweep, or go on with the one in the storage folder.

    Args:
        spec: What to search, on what, for how long.
        storage: The sweep's folder; `runs/<name>` when not given. Sweeps beside each other share
            `mlflow.db` and `mlartifacts` there, unless `$MLFLOW_TRACKING_URI` names a server.
        console: Where progress is shown; standard output when not given.

    Raises:
        SweepSpecError: Something in the spec cannot work.
        DataError: A row cannot be used.
        SweepStorageError: The folder holds another sweep, is in use, or cannot be written.
        SweepFailedError: No trial came to an adapter.
        KeyboardInterrupt: Interrupted; the same call goes on.
    """
    folder = Path(storage or Path("runs") / spec.name).absolute()
    spec = spec.with_saved_rows(folder / "data")
    read_raw_splits(spec.data)
    console = console or Console(file=sys.stdout)
    with (
        library_chatter_to(folder / LOG_FILE),
        EventLog(folder / EVENTS_FILE) as log,
        ProgressDisplay(spec, console) as display,
    ):
        hush_noisy_loggers()
        history = SweepHistory.read(log.path)
        tracking_uri, artifacts = tracking_uri_for(folder.parent)
        delivery = Delivery(
            spec,
            log.path,
            lambda: Tracker(tracking_uri, EXPERIMENT, artifacts),
            folder / REPORT_FOLDER,
        )

        def on_change(history: SweepHistory) -> None:
            display.update(history)
            delivery.nudge()

        record = SweepRecord(log, history, on_change)
        sweep = _Sweep(spec=spec, storage=folder, record=record, display=display)
        _start_or_resume(sweep)
        with delivery:
            if not _is_over(sweep):
                _train(sweep)
            if not _is_registered(sweep):
                _register(sweep, delivery, tracking_uri)
            report = _conclude(sweep)
            with sweep.phase("recording"):
                if not delivery.flush(_FLUSH_S):
                    logger.warning("not all was delivered to MLflow: %s", delivery.problem)
    if report.best is None:
        raise SweepFailedError(
            f"{spec.name}: no trial came to an adapter: {report.reason}. See {folder / LOG_FILE}."
        )
    return report


def _start_or_resume(sweep: _Sweep) -> None:
    """Record the start of a new sweep, or make sure that the folder's sweep is this one."""
    history, spec = sweep.record.history, sweep.spec
    if history.sweep_id is None:
        sweep.record.add(
            "sweep_started", sweep_id=uuid.uuid4().hex, spec=spec.to_dict(), digest=spec.digest
        )
    elif history.digest != spec.digest:
        raise SweepStorageError(
            f"{sweep.storage}: holds sweep {history.sweep_id} of another spec; allowed: the spec "
            "it was started with, in which only budget, hosts and register may change. Choose "
            "another --storage, or another name."
        )
    elif not _is_over(sweep) or not _is_registered(sweep):
        is_failed = history.status == Outcome.FAILED
        sweep.record.add("sweep_resumed")
        for trial in history.ended():
            if _goes_on(trial, is_failed):
                sweep.record.add("trial_resumed", trial=trial.number, step=trial.step)


def _goes_on(trial: TrialRecord, is_failed: bool) -> bool:
    """Whether an ended trial is taken up again when its sweep is.

    One that the budget cut short is; and when the whole sweep failed, each that failed before it
    measured anything, as the user may have mended what was wrong.
    """
    return trial.outcome is Outcome.CANCELLED or (
        is_failed and trial.outcome is Outcome.FAILED and not trial.reports
    )


def _is_over(sweep: _Sweep) -> bool:
    """Whether nothing is left to train or measure."""
    history = sweep.record.history
    ended = [trial for trial in history.ended() if trial.outcome is not Outcome.CANCELLED]
    size = sweep.spec.search_space.size
    wanted = sweep.spec.budget.trials if size is None else min(sweep.spec.budget.trials, size)
    return (
        history.status != Outcome.FAILED
        and len(ended) == len(history.trials) >= wanted
        and are_measured(sweep.spec, sweep.record, sweep.storage)
    )


def _is_registered(sweep: _Sweep) -> bool:
    """Whether every finalist is a version, and the best has been before the gate."""
    register = sweep.spec.register
    chosen = finalists(sweep.spec, sweep.record)
    if register is None or not chosen:
        return True
    gated = {promotion["ref"] for promotion in sweep.record.history.promotions}
    return all((trial.ref or "").startswith(f"{register.name}/") for trial in chosen) and (
        not register.promote or chosen[0].ref in gated
    )


def _train(sweep: _Sweep) -> None:
    """Search, then measure the best; both on the same warm hosts."""
    with ExitStack() as stack:
        with sweep.phase("starting Ray"):
            placement = stack.enter_context(ray_cluster(sweep.spec))
            broker = start_broker(sweep.storage)
            stack.callback(ray.kill, broker)
            pool = HostPool(broker, sweep.storage, placement.limits, placement.shape)
            stack.enter_context(pool)
        with sweep.phase("searching"):
            _search(sweep, broker, placement)
        with sweep.phase("evaluating"):
            evaluate_finalists(sweep.spec, sweep.record, broker, sweep.storage)
        with sweep.phase("ending hosts"):
            pool.close()


def _search(sweep: _Sweep, broker: ActorHandle, placement: Placement) -> None:
    """Let Ray Tune run trials until the budget is spent or nothing is left to try."""
    spec, record = sweep.spec, sweep.record
    scheduler = build_scheduler(spec)
    for trial in replay_history(scheduler, record.history, spec.horizon):
        end = TrialOutcome(Outcome.STOPPED, "others were better, decided before the last resume")
        bundle = trial_dir(sweep.storage, trial) / "bundle"
        record.end_trial(trial, end, str(bundle.relative_to(sweep.storage)))
    searcher = OptunaSearcher(spec, record.history, {"storage": str(sweep.storage)})
    seconds = spec.budget.wall_clock_s
    deadline = float("inf") if seconds is None else time.monotonic() + seconds
    recorder = TrialRecorder(record, sweep.storage, spec.horizon, deadline)
    tuner = tune.Tuner(
        tune.with_resources(TrialProxy, {"cpu": PROXY_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=placement.max_trials,
            reuse_actors=True,
            time_budget_s=seconds,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{uuid.uuid4().hex[:8]}",
            storage_path=str(sweep.storage / "tune"),
            callbacks=[recorder, SeatReleaser(broker)],
            failure_config=tune.FailureConfig(max_failures=_MAX_PROXY_FAILURES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    tuner.fit()
    if time.monotonic() >= deadline:
        _cut_short(sweep, broker)


def _cut_short(sweep: _Sweep, broker: ActorHandle) -> None:
    """End the trials that the wall clock stopped; Ray Tune tells no callback of them."""
    for trial in sweep.record.history.unfinished():
        ray.get(broker.leave.remote(trial.number, None, keep=True))
        bundle = trial_dir(sweep.storage, trial.number) / "bundle"
        sweep.record.end_trial(
            trial.number,
            TrialOutcome(Outcome.CANCELLED, "the wall-clock budget was spent"),
            str(bundle.relative_to(sweep.storage)) if trial.reports else None,
        )


def _register(sweep: _Sweep, delivery: Delivery, tracking_uri: str) -> None:
    """Put the best into the registry; MLflow being away leaves that to a later run."""
    with sweep.phase("registering"):
        try:
            delivery.flush(_FLUSH_S)
            register_finalists(sweep.spec, sweep.record, delivery, sweep.storage, tracking_uri)
        except RegistryError as error:
            logger.error("nothing was registered: %s", error)
            sweep.display.update(sweep.record.history, f"nothing was registered: {error}")


def _conclude(sweep: _Sweep) -> SweepReport:
    """Write the report and record the end."""
    history = sweep.record.history
    status, reason = _status(sweep)
    report = build_report(sweep.spec, history, sweep.storage)
    report = replace(report, status=status, reason=reason)
    write_report(report, sweep.spec, history, sweep.storage / REPORT_FOLDER)
    if history.status != status:
        sweep.record.add("sweep_ended", status=status, reason=reason)
    return report


def _status(sweep: _Sweep) -> tuple[str, str]:
    """How it ended: an adapter is a success; without one, the commonest reason counts."""
    trials = sweep.record.history.ended()
    if _best(sweep) is not None:
        return Outcome.COMPLETED.value, f"{len(trials)} trials"
    reasons = [trial.reason for trial in trials]
    return Outcome.FAILED.value, max(reasons, key=reasons.count, default="no trial was started")


def _best(sweep: _Sweep) -> TrialRecord | None:
    objective = sweep.spec.objective
    return sweep.record.history.best(objective.metric, objective.mode)
