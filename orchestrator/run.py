"""A sweep from its spec to its report. Read this page first.

    open the storage folder   event log: a new sweep, or a sweep to continue
    check the data, MLflow    all rows and permissions, before any trial starts
    start Ray, hosts          a local Ray, or the cluster in $RAY_ADDRESS
    search                    Ray Tune asks Optuna, seats trials on hosts, stops weak trials
    finals                    the best trials on test rows, and the base without an adapter
    register, promote         versions in MLflow, one of them champion
    report                    leaderboard, plots, spending

Each event is written to disk before the driver acts on the event. The same call on the same
folder therefore continues from the point where an earlier call ended, even after a crash.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import ray
from ray.actor import ActorHandle
from ray.tune.schedulers import FIFOScheduler
from rich.console import Console

from orchestrator.adapters.registering import Registration
from orchestrator.checkpoints import remove_unneeded
from orchestrator.errors import SweepError, SweepFailedError
from orchestrator.finals.forms import evaluate_forms
from orchestrator.finals.held_out import evaluate_finalists
from orchestrator.finals.repeats import RepeatSearcher, are_repeated, unwanted_repeats
from orchestrator.hosts.broker import broker_loss_told, start_broker
from orchestrator.hosts.cluster import ray_cluster, shape_of_workers
from orchestrator.hosts.fleet import Fleet
from orchestrator.hosts.members import Occupancy
from orchestrator.hosts.pool import HostPool
from orchestrator.interrupts import raise_swallowed
from orchestrator.journal.events import PhaseEnded, StartPointsChosen, SweepEnded
from orchestrator.journal.history import SweepHistory, exceeded
from orchestrator.journal.paths import (
    CURSOR_FILE,
    DATA_FOLDER,
    LOG_FILE,
    REPORT_FOLDER,
    SWEEP_FILE,
    bundle_folder,
)
from orchestrator.journal.recording import SweepRecord
from orchestrator.journal.requests import CANCELLED_BY_USER, UserRequests, take_requests
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.live.display import ProgressDisplay
from orchestrator.live.screen import CHECKING, loading
from orchestrator.outcome import Outcome, TrialOutcome, can_leave_adapter
from orchestrator.pages.files import write_report
from orchestrator.preflight.prepared import PreparedSweep, prepare_sweep
from orchestrator.quiet import hush_noisy_loggers, library_chatter_to
from orchestrator.report.delivery import Delivery
from orchestrator.report.gauges import GaugeFeed, Reading, read_gauges
from orchestrator.report.report import SweepReport, build_report
from orchestrator.resources.reachable import check_ray
from orchestrator.resuming import SweepProgress
from orchestrator.search.budget import Budget, require_measurable
from orchestrator.search.schedule import build_scheduler, replay_history
from orchestrator.search.searcher import OptunaSearcher
from orchestrator.search.startpoints import choose_start_points
from orchestrator.spec.sweep import SweepSpec
from orchestrator.supervision import SteeringWithRequests, Supervisor
from orchestrator.sweepfile.writing import dump_sweep
from orchestrator.tuning import Stage
from registry import Registry, RegistryError, Tracker
from registry.tracking.connection import is_server
from registry.tracking.experiments import SWEEPS_EXPERIMENT
from registry.tracking.server import UI_PORT, pages_address
from trainables.errors import TrialError

logger = logging.getLogger(__name__)

_FLUSH_S = 120.0


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """The values that all parts of a run share."""

    spec: SweepSpec
    storage: SweepStorage
    prepared: PreparedSweep
    record: SweepRecord
    display: ProgressDisplay

    @property
    def progress(self) -> SweepProgress:
        """The progress of the sweep."""
        return SweepProgress(spec=self.spec, storage=self.storage, record=self.record)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show a phase and record its duration."""
        raise_swallowed()
        self.display.phase(name)
        started = time.monotonic()
        yield
        self.record.add(PhaseEnded(name=name, seconds=time.monotonic() - started))


def run_sweep(
    spec: SweepSpec, storage: str | Path | None = None, *, console: Console | None = None
) -> SweepReport:
    """Run a sweep, or continue the sweep in the storage folder.

    Args:
        spec: The sweep: base, data, search space, budget.
        storage: The sweep's folder, or `s3://bucket/prefix`; `runs/<name>` when not given. Sweeps
            in neighbouring folders share `mlflow.db` and `mlartifacts` in their parent folder,
            and sweeps in buckets share those of `runs`, unless `$MLFLOW_TRACKING_URI` names a
            server.
        console: Console for progress; standard output when not given.

    Raises:
        SweepSpecError: A value in the spec cannot work.
        DataError: A row cannot be used.
        SweepStorageError: The folder holds another sweep, is in use, or cannot be written.
        SweepFailedError: No trial produced an adapter.
        ClusterError: Ray cannot be started, or the cluster in `$RAY_ADDRESS` cannot be joined.
        TrackingError: MLflow refuses this user or denies writing. An MLflow server that does not
            answer is no error.
        KeyboardInterrupt: The call was interrupted; the same call continues the sweep.
    """
    console = console or Console(file=sys.stdout)
    first_line = f"lorchestra: sweep {spec.name}, {spec.budget.trials} trials"
    with loading(console, first_line, CHECKING):
        prepared = prepare_sweep(spec, storage, check_cluster=check_new_ray)
    return run_prepared(prepared, console)


def check_new_ray() -> bool:
    """Check the Ray to start or to join; a process that has a Ray needs no check.

    Returns:
        Whether Ray was checked.

    Raises:
        ClusterError: Ray cannot be used.
    """
    is_new = not ray.is_initialized()
    if is_new:
        check_ray()
    return is_new


def run_prepared(prepared: PreparedSweep, console: Console) -> SweepReport:
    """Run a sweep that was checked; errors are those of `run_sweep`."""
    spec, kept = prepared.spec, prepared.storage
    folder, tracking_uri = kept.folder, prepared.tracking_uri
    with (
        library_chatter_to(folder / LOG_FILE, prepared.said),
        kept.open_log() as log,
        ProgressDisplay(spec, console) as display,
    ):
        for line in prepared.lines:
            display.print(line)
        hush_noisy_loggers()
        kept.pull(CURSOR_FILE)
        history = SweepHistory.read(log.path)
        delivery = Delivery(
            spec,
            log.path,
            lambda: Tracker(tracking_uri, SWEEPS_EXPERIMENT, prepared.artifacts),
            folder / REPORT_FOLDER,
        )

        def on_change(history: SweepHistory) -> None:
            display.update(history)
            delivery.nudge()

        record = SweepRecord(log, history, on_change)
        sweep = _Sweep(spec=spec, storage=kept, prepared=prepared, record=record, display=display)
        progress = sweep.progress
        if not (prepared.is_cluster_checked or progress.is_over()):
            check_new_ray()
        progress.start_or_resume()
        progress.keep_inputs(prepared.pins, prepared.data)
        kept.send(SWEEP_FILE, dump_sweep(spec.to_dict(), kept.location).encode())
        with delivery, _pushing(kept):
            report = _train_and_deliver(sweep, delivery)
    if report.status == Outcome.FAILED:
        raise SweepFailedError(
            f"{spec.name}: no trial produced an adapter: {report.reason.rstrip('.')}. "
            f"See {folder / LOG_FILE}."
        )
    return report


def _train_and_deliver(sweep: _Sweep, delivery: Delivery) -> SweepReport:
    """Train what is left to train, register the best, and write the report."""
    is_cancelled = not sweep.progress.is_over() and _train(sweep)
    undelivered = ""
    if not is_cancelled and not sweep.progress.is_registered():
        undelivered = _register(sweep, delivery)
    report = _conclude(sweep, is_cancelled)
    with sweep.phase("recording"):
        if not delivery.flush(_FLUSH_S):
            problem = delivery.problem or "it is slow"
            logger.warning("not all was delivered to MLflow: %s", problem)
            undelivered = undelivered or f"Not all is recorded in MLflow: {problem}"
    address = _pages_address(sweep.prepared.tracking_uri)
    links = None if undelivered else delivery.links(address, sweep.spec.name)
    return replace(report, undelivered=undelivered.rstrip("."), links=links)


def _pages_address(tracking_uri: str) -> str:
    """Address of MLflow's pages: the server's, or that of `lorchestra ui` for a database."""
    return tracking_uri if is_server(tracking_uri) else pages_address(UI_PORT)


@contextmanager
def _pushing(storage: SweepStorage) -> Iterator[None]:
    """Copy the driver's own files to a remote storage, also after an error."""
    storage.push(DATA_FOLDER)
    try:
        yield
    finally:
        for name in (REPORT_FOLDER, CURSOR_FILE, LOG_FILE):
            storage.push(name)


def _train(sweep: _Sweep) -> bool:
    """Run the search and the finals on the same warm hosts.

    Returns:
        Whether the user cancelled the sweep meanwhile.
    """
    with broker_loss_told(), ExitStack() as stack:
        with sweep.phase("starting Ray"):
            fleet = stack.enter_context(ray_cluster(sweep.spec, sweep.display.step, sweep.storage))
            broker = start_broker(
                sweep.storage.location,
                max_crashes=sweep.spec.hosts.max_crashes,
                epoch=sweep.record.history.resumes,
            )
            stack.callback(ray.kill, broker)
            pool = HostPool(
                broker,
                sweep.storage,
                fleet.limits,
                fleet.shape,
                lambda sentence: sweep.display.update(sweep.record.history, sentence),
                sweep.display.show_hosts,
                fleet,
                sweep.display.show_wait,
            )
            stack.enter_context(pool)
            budget = _open_budget(sweep, fleet, pool)
            stack.enter_context(_gauge_feed(sweep, broker, budget))
            requests = UserRequests()
            stack.enter_context(
                Supervisor(
                    sweep.record,
                    sweep.storage,
                    requests,
                    broker,
                    pool.usage,
                    partial(remove_unneeded, sweep.spec, sweep.record, sweep.storage),
                )
            )
        stage = Stage(
            record=sweep.record,
            storage=sweep.storage,
            horizon=sweep.spec.horizon,
            broker=broker,
            fleet=fleet,
            budget=budget,
            requests=requests,
            pool=pool,
        )
        if not sweep.progress.has_ended("search"):
            with sweep.phase("searching"):
                _search(sweep, stage)
        is_searched = sweep.progress.has_ended("search")
        if is_searched and not requests.is_cancelled and not sweep.progress.has_ended("repeats"):
            with sweep.phase("training the best again"):
                _repeat(sweep, stage)
        if not requests.is_cancelled:
            with sweep.phase("evaluating"):
                evaluate_finalists(
                    sweep.spec,
                    sweep.record,
                    broker,
                    sweep.storage,
                    pool.check,
                    sweep.display.step,
                )
        with sweep.phase("ending hosts"):
            pool.close()
        if not requests.is_cancelled:
            with sweep.phase("evaluating serving forms"):
                evaluate_forms(
                    sweep.spec,
                    sweep.record,
                    sweep.storage,
                    shape_of_workers(fleet.on_gpus),
                    lambda: requests.is_cancelled,
                    sweep.display.step,
                )
        return requests.is_cancelled


def _gauge_feed(sweep: _Sweep, broker: ActorHandle, budget: Budget) -> GaugeFeed:
    """Feeds Ray's metrics endpoint with the sweep's state."""

    def read(occupancy: Occupancy) -> Iterator[Reading]:
        return read_gauges(
            sweep.record.history,
            sweep.spec.objective,
            budget.limits(),
            occupancy,
        )

    return GaugeFeed(sweep.spec.name, broker.occupancy.remote, read)


def _open_budget(sweep: _Sweep, fleet: Fleet, pool: HostPool) -> Budget:
    """The sweep's budget on this cluster.

    Raises:
        SweepSpecError: The budget limits GPU time, and the cluster has no GPU.
    """
    spec, shape = sweep.spec.budget, fleet.shape
    require_measurable(spec, shape.gpus)
    budget = Budget(
        spec,
        sweep.record.history,
        cpus=max(1, shape.torch_threads),
        gpus=shape.gpus,
        usage=pool.usage,
    )
    sweep.display.budget = budget
    return budget


def _search(sweep: _Sweep, stage: Stage) -> None:
    """Let Ray Tune run trials until the budget is spent or no configuration is left to try."""
    spec, record, goal = sweep.spec, sweep.record, sweep.spec.objective
    scheduler = build_scheduler(spec)
    for trial, end in replay_history(scheduler, record.history, spec.horizon).items():
        bundle = bundle_folder(trial) if can_leave_adapter(end.outcome) else None
        record.end_trial(trial, end, bundle)
    share = stage.budget.search_share
    may_stop = spec.schedule.algorithm != "none"
    must_reach = spec.schedule.grace_steps if may_stop else spec.horizon

    def may_start(started: int) -> str:
        return stage.budget.forbids(must_reach, share, None if may_stop else spec.horizon)

    if record.history.start_points is None:  # chosen once: the registry changes until a resume
        points = choose_start_points(
            spec,
            lambda name: Registry(sweep.prepared.tracking_uri).best_specs(
                name, metric=goal.metric, mode=goal.mode
            ),
        )
        record.add(StartPointsChosen(points=points))
    searcher = OptunaSearcher(
        spec,
        record.history,
        {"storage": sweep.storage.location},
        start_points=record.history.start_points or [],
        may_start=may_start,
        scheduler=SteeringWithRequests(scheduler, stage.requests),
        refuse=lambda trial: sweep.prepared.refuse(trial, record.history),
    )
    reason = stage.run(searcher, scheduler, scheduler.end_of, share)
    # A search without an adapter is not recorded as ended: a resume continues it after a fix.
    has_found = any(can_leave_adapter(trial.outcome) for trial in record.history.searched())
    if not stage.requests.is_cancelled and has_found:
        is_short = len(record.history.searched()) < spec.budget.trials
        sweep.progress.end("search", reason or (searcher.finish_reason if is_short else ""))


def _repeat(sweep: _Sweep, stage: Stage) -> None:
    """Train the finalists again with new seeds, to the full horizon."""
    spec, record = sweep.spec, sweep.record
    for trial in unwanted_repeats(spec, record.history):
        end = TrialOutcome(Outcome.CANCELLED, "the repeated trial is no longer a finalist")
        record.end_trial(trial.number, end, by="budget")
    reason = ""
    if not are_repeated(spec, record.history):
        searcher = RepeatSearcher(
            spec,
            record.history,
            {"storage": sweep.storage.location},
            lambda: stage.budget.forbids(spec.horizon, horizon=spec.horizon, is_finals=True),
        )
        reason = stage.run(searcher, FIFOScheduler(), lambda trial: None, is_finals=True)
        reason = reason or searcher.finish_reason
    if not stage.requests.is_cancelled:
        sweep.progress.end("repeats", reason)


def _register(sweep: _Sweep, delivery: Delivery) -> str:
    """Register the best adapters; if MLflow does not answer, a later run registers them.

    Returns:
        The error that prevented a registration; empty when all are registered.
    """
    with sweep.phase("registering"):
        try:
            delivery.flush(_FLUSH_S)
            Registration(
                spec=sweep.spec,
                record=sweep.record,
                delivery=delivery,
                storage=sweep.storage,
                adapters=Registry(sweep.prepared.tracking_uri),
                tell=sweep.display.step,
            ).register_finalists()
        except (RegistryError, SweepError, TrialError) as error:
            said = f"Not all is registered: {error}"
            logger.error("%s", said, exc_info=error)
            sweep.display.update(sweep.record.history, said)
            return said
    return ""


def _conclude(sweep: _Sweep, is_cancelled: bool) -> SweepReport:
    """Write the report and record the end."""
    history = sweep.record.history
    cancelled = (Outcome.CANCELLED, CANCELLED_BY_USER)
    status, reason = cancelled if is_cancelled else _status(sweep)
    storage = sweep.storage
    report = build_report(sweep.spec, history, storage.folder, storage.location)
    report = replace(report, status=status, reason=reason)
    write_report(report, sweep.spec, history, sweep.storage.folder / REPORT_FOLDER)
    if history.status != status:
        sweep.record.add(SweepEnded(status=status, reason=reason))
    for request in take_requests(sweep.storage.folder):
        sweep.display.update(history, f"{request.kind}: too late, the sweep trained no more")
    return report


def _status(sweep: _Sweep) -> tuple[Outcome, str]:
    """Outcome and reason of a sweep; without an adapter, the most frequent reason of trials."""
    history = sweep.record.history
    trials = [trial for trial in history.searched() if trial.outcome is not None]
    if history.best(sweep.spec.objective) is not None:
        return Outcome.COMPLETED, f"{len(trials)} trials"
    left = [trial for trial in trials if can_leave_adapter(trial.outcome)]
    broken = [exceeded(trial, sweep.spec.objective) for trial in left]
    if any(broken):
        common = max(broken, key=broken.count)
        return Outcome.FAILED, f"none of {len(broken)} adapters keeps {common}"
    reasons = [trial.reason for trial in trials]
    return Outcome.FAILED, max(reasons, key=reasons.count, default="no trial was started")
