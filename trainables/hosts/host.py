"""Host loop: holds the ordered seats and trains each seat up to its permitted step.

The loop drives an engine and communicates through a mailbox; it knows neither Ray nor the engine's
class. A trial's fault stays in its seat: neighbours return to their last report and are trained
again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from trainables.hosts.bench import Bench, Failure, Stepped, attempt, with_sizes
from trainables.hosts.claims import claim, require_claim
from trainables.hosts.gauging import Gauge
from trainables.hosts.orders import (
    HostReport,
    Orders,
    SeatFreed,
    SeatOrder,
    SeatReport,
    SeatRequest,
    TaskReport,
    fault_metrics,
    kept_bundle,
)
from trainables.hosts.progress import find_progress, lost_state, save_between, save_progress
from trainables.hosts.storage import writing_folder
from trainables.hosts.tasks import do_task
from trainables.spec import TrialSpec
from trainables.training.optim import learning_rate_at


class Mailbox(Protocol):
    """Connection to the broker."""

    def exchange(self, report: HostReport) -> Orders:
        """Deliver a report; wait, for a bounded time, for orders that require work."""


@dataclass(kw_only=True)
class _Seat:
    """A trial in its seat; `losses` and `busy_s` start anew after each report.

    `host_s` continues from the saved reports: seconds of host time for the trial, where each seat
    of a packed step counts an equal share. `marks` of a damaged state are in every later report,
    because only the last report of a step is sure to reach the proxy.
    """

    key: str
    request: SeatRequest
    spec: TrialSpec
    is_entered: bool = False
    passes: int = 1
    step: int = 0
    tokens: int = 0
    reports: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    busy_s: float = 0.0
    host_s: float = 0.0
    marks: dict[str, float] = field(default_factory=dict)
    claim: int = 0

    def require_claim(self) -> None:
        """Raise `SupersededError` if another seat has taken the trial over."""
        require_claim(self.request.state_dir, self.claim)

    def last_report(self) -> dict[str, Any]:
        return self.reports[-1] if self.reports else {}


class HostLoop:
    """Loop that carries out orders until the broker ends the host.

    Args:
        bench: The engine and its state files.
        mailbox: Connection to the broker.
        clock: Time in seconds, for `tokens_per_s` and `host_s`.
        gauge: Measures the engine; `None` for a number of seats that others decide.
        is_ending: Whether the process is about to be ended.
    """

    def __init__(
        self,
        bench: Bench,
        mailbox: Mailbox,
        clock: Callable[[], float] = time.monotonic,
        gauge: Gauge | None = None,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_ending = is_ending
        self._bench = bench
        self._engine = bench.engine
        self._mailbox = mailbox
        self._clock = clock
        self._gauge = gauge or Gauge(bench.engine, clock)
        self._seats: dict[str, _Seat] = {}
        self._ended: set[str] = set()
        self._max_pack: int | None = None
        self._reports: list[SeatReport] = []
        self._freed: list[SeatFreed] = []
        self._task_reports: list[TaskReport] = []

    def run(self) -> None:
        """Exchange reports for orders until the orders are over, or the process is ending.

        A process that is ending saves its trials as they are between two steps.
        """
        orders = self._mailbox.exchange(self._take_report())
        while not orders.is_over:
            if self._is_ending():
                for seat in self._seats.values():
                    attempt(partial(self._save_between, seat))
                return
            self._arrange(orders.seats)
            self._advance(orders.seats)
            for order in orders.tasks[:1]:  # one at a time: seats wait while a task runs
                self._task_reports.append(do_task(self._bench, order))
            orders = self._mailbox.exchange(self._take_report())

    def _take_report(self) -> HostReport:
        report = HostReport(
            holding=frozenset(self._seats),
            reports=tuple(self._reports),
            freed=tuple(self._freed),
            tasks=tuple(self._task_reports),
            gauge=self._gauge.take(self._max_pack),
        )
        self._reports, self._freed, self._task_reports = [], [], []
        return report

    # --------------------------------------------------------------------------------- seats

    def _arrange(self, orders: Sequence[SeatOrder]) -> None:
        """Drop, export and seat trials until the engine matches the orders."""
        ordered = {order.key for order in orders}
        self._ended &= ordered
        for key in self._seats.keys() - ordered:
            self._drop(key)
        for order in sorted(orders, key=lambda order: not order.is_leaving):
            if order.key not in self._seats and order.key not in self._ended:
                self._seat(order)
            if order.is_leaving:
                self._export(order.key, order.known)

    def _seat(self, order: SeatOrder) -> None:
        spec = attempt(lambda: TrialSpec.from_dict(order.request.spec))
        if isinstance(spec, Failure):
            self._end(order.key, order.known, {}, spec)
            return
        seat = _Seat(key=order.key, request=order.request, spec=spec, claim=order.claim)
        if not self._seats:
            self._gauge.measure_speeds(spec)
        self._seats[order.key] = seat
        failure = attempt(lambda: self._enter(seat))
        if isinstance(failure, Failure):
            self._fail(seat, failure)

    def _enter(self, seat: _Seat, *, is_reported: bool = False) -> None:
        """Join the engine with the newest sound state, or that of a report, or at the start."""
        claim(seat.request.state_dir, seat.claim)
        where = seat.request.state_dir
        with find_progress(where, seat.spec, is_reported=is_reported) as found:
            state = None if found.folder is None else self._bench.load_state(found.folder)
        self._engine.join(seat.key, seat.spec, state, seat.passes)
        seat.is_entered = True
        seat.marks = seat.marks | found.marks
        seat.reports = list(found.reports)
        last = {"tokens": 0, **seat.last_report(), "losses": (), "busy_s": 0.0, **found.between}
        seat.step, seat.tokens = found.step, int(last["tokens"])
        seat.losses, seat.busy_s = list(last["losses"]), float(last["busy_s"])
        # Steps repeated after a restart were already counted once.
        seat.host_s = max(seat.host_s, float(seat.last_report().get("host_s", 0.0)))

    def _vacate(self, seat: _Seat) -> None:
        if seat.is_entered:
            seat.is_entered = False
            self._engine.leave(seat.key)
            self._gauge.forget(seat.key)

    def _drop(self, key: str) -> None:
        self._vacate(self._seats.pop(key))

    def _export(self, key: str, known: int) -> None:
        """Export a bundle of the last report and free the seat; without a report, only free it."""
        seat = self._seats.get(key)
        failure = None
        if seat is not None:
            if seat.reports or known:
                failure = attempt(lambda: self._write_bundle(seat, known))
            self._drop(key)
        error = failure.reason if isinstance(failure, Failure) else ""
        self._freed.append(SeatFreed(key=key, error=error))

    def _write_bundle(self, seat: _Seat, known: int) -> None:
        reported = max(known, int(seat.last_report().get("step", 0)))
        if seat.step != seat.last_report().get("step", 0):  # ordered away between two reports
            self._vacate(seat)
            self._enter(seat, is_reported=True)
        if seat.step < reported:  # the state of the last report is damaged
            raise lost_state(seat.request.state_dir, reported)
        with writing_folder(seat.request.bundle_dir, seat.require_claim) as folder:
            self._engine.export(seat.key, folder, seat.last_report())

    def _fail(self, seat: _Seat, failure: Failure) -> None:
        self._drop(seat.key)
        last = {**seat.last_report(), **seat.marks, "host_s": seat.host_s}
        self._end(seat.key, seat.step, last, failure)

    def _end(self, key: str, step: int, last: Mapping[str, Any], failure: Failure) -> None:
        self._ended.add(key)
        self._reports.append(
            SeatReport(
                key=key,
                step=step,
                metrics=fault_metrics({**last, "step": step}),
                fault=failure.fault,
                reason=failure.reason,
                trace=failure.trace,
            )
        )

    # ------------------------------------------------------------------------------- training

    def _advance(self, orders: Sequence[SeatOrder]) -> None:
        """Take one step in every permitted seat; repeat reports missing at the broker."""
        due: dict[str, int] = {}
        for order in orders:
            seat = self._seats.get(order.key)
            if seat is None or order.until <= order.known:
                continue
            unheard = [report for report in seat.reports if report["step"] >= order.until]
            if unheard:
                self._tell(seat, unheard[0])
            else:
                due[order.key] = order.until
        keys = tuple(due)
        size = self._max_pack or max(1, len(keys))
        for start in range(0, len(keys), size):
            self._step({key: due[key] for key in keys[start : start + size]})

    def _step(self, pack: Mapping[str, int]) -> None:
        """One packed step; `pack` holds the permitted last step of each seat."""
        rehearsed = attempt(lambda: self._gauge.rehearse(tuple(pack)))
        if isinstance(rehearsed, Failure):
            self._recover(pack, rehearsed)
            return
        started = self._clock()
        results = attempt(lambda: self._engine.step(tuple(pack)))
        elapsed_s = self._clock() - started
        for key in pack:
            self._seats[key].host_s += elapsed_s / len(pack)
        if isinstance(results, Failure):
            self._recover(pack, results)
            return
        for key, until in pack.items():
            self._take_step(self._seats[key], results[key], elapsed_s, until)

    def _take_step(self, seat: _Seat, result: Stepped, elapsed_s: float, until: int) -> None:
        if not result.is_finite:
            reason = f"loss {result.loss} or its gradient is not finite at step {seat.step + 1}"
            self._fail(seat, Failure(fault="diverged", reason=reason))
            return
        seat.step = int(result.step)
        seat.tokens = int(result.tokens)
        seat.losses.append(float(result.loss))
        seat.busy_s += elapsed_s
        # Steps below `until` are reported by a trial that went back to an older state.
        if seat.step >= until or seat.step % seat.spec.eval.every == 0:
            self._report_step(seat)

    def _report_step(self, seat: _Seat) -> None:
        """Evaluate, save and report, in this order: a state exists for every report."""
        started = self._clock()
        report = attempt(lambda: self._evaluate(seat))
        seat.host_s += self._clock() - started
        if isinstance(report, Failure):
            self._fail(seat, report)
            return
        if not math.isfinite(report["eval_loss"]):
            reason = f"eval_loss is {report['eval_loss']} at step {seat.step}"
            self._fail(seat, Failure(fault="diverged", reason=reason))
            return
        report |= seat.marks
        report["host_s"] = seat.host_s  # the time of saving counts in the next report
        reports = [*seat.reports, report]
        started = self._clock()
        saved = attempt(lambda: self._save(seat, reports))
        seat.host_s += self._clock() - started
        if isinstance(saved, Failure):
            self._fail(seat, saved)
            return
        seat.reports, seat.losses, seat.busy_s = reports, [], 0.0
        self._tell(seat, report)

    def _evaluate(self, seat: _Seat) -> dict[str, Any]:
        metrics = self._engine.evaluate(seat.key, "validation")
        tokens = seat.tokens - int(seat.last_report().get("tokens", 0))
        host_gib = float(self._bench.peak_memory_gib())
        own = self._engine.foresight.trial_bytes(seat.key)
        return {
            "step": seat.step,
            "tokens": seat.tokens,
            **{name: float(value) for name, value in metrics.items()},
            "train_loss": math.fsum(seat.losses) / len(seat.losses),
            "scheduled_learning_rate": learning_rate_at(seat.spec.optim, seat.step - 1),
            "tokens_per_s": tokens / max(seat.busy_s, 1e-9),
            "peak_memory_gib": host_gib if own is None else own.found / 2**30,
            "forecast_memory_gib": 0.0 if own is None else own.forecast / 2**30,
            "host_peak_memory_gib": host_gib,
            "trainable_params": int(self._engine.trainable_params(seat.key)),
        }

    def _save(self, seat: _Seat, reports: Sequence[Mapping[str, Any]]) -> None:
        """Save the seat's progress; also export the adapter of this step, if the spec says so."""
        every = seat.spec.eval.keep_every
        if every and seat.step % every == 0 and seat.step < seat.spec.optim.steps:
            # Before the state: a trial resumed from the state of this step skips the step.
            kept = kept_bundle(seat.request.bundle_dir, seat.step)
            with writing_folder(kept, seat.require_claim) as bundle:
                self._engine.export(seat.key, bundle, reports[-1])
        state = self._engine.snapshot(seat.key)
        save_progress(
            seat.request.state_dir,
            seat.step,
            reports,
            lambda into: self._bench.save_state(state, into),
            seat.spec,
            seat.require_claim,
        )

    def _save_between(self, seat: _Seat) -> None:
        """Save what a seat has trained since its last report."""
        if not seat.is_entered or seat.step == seat.last_report().get("step", 0):
            return
        state = self._engine.snapshot(seat.key)
        save_between(
            seat.request.state_dir,
            {name: getattr(seat, name) for name in ("step", "tokens", "losses", "busy_s")},
            seat.reports,
            lambda into: self._bench.save_state(state, into),
            seat.spec,
            seat.require_claim,
        )

    def _tell(self, seat: _Seat, report: dict[str, Any]) -> None:
        self._reports.append(SeatReport(key=seat.key, step=report["step"], metrics=report))

    # ------------------------------------------------------------------------- after an error

    def _recover(self, pack: Mapping[str, int], failure: Failure) -> None:
        """Find the seats that caused a failed step: repeat the step alone in each seat.

        If a pack exceeds the memory, decoder layers are computed again from then on; if it still
        does but each seat fits, later packs have half the size. A seat that exceeds the memory
        alone is tried again with half of the rows per pass, down to one row.
        """
        is_new = failure.fault == "infeasible" and self._engine.save_memory()
        if failure.fault == "infeasible" and not is_new and len(pack) > 1:
            self._max_pack = len(pack) // 2
        goals = {key: self._seats[key].step + 1 for key in pack}
        for key in pack:
            self._vacate(self._seats[key])
        for key, until in pack.items():
            seat = self._seats[key]
            is_known = len(pack) == 1 and not is_new
            blame = failure if is_known else self._redo(seat, goals[key], until)
            rows = seat.spec.optim.micro_batch_size or seat.spec.optim.batch_size
            while blame is not None and blame.fault == "infeasible" and seat.passes < rows:
                seat.passes = min(2 * seat.passes, rows)
                blame = self._redo(seat, goals[key], until)
            if blame is not None:
                self._fail(seat, with_sizes(blame, rows, seat.passes, self._engine.widest_pass))

    def _redo(self, seat: _Seat, goal: int, until: int) -> Failure | None:
        def catch_up() -> None:
            self._enter(seat)
            self._gauge.rehearse((seat.key,))
            while seat.is_entered and seat.step < goal:
                started = self._clock()
                try:
                    result = self._engine.step((seat.key,))[seat.key]
                finally:
                    elapsed_s = self._clock() - started
                    seat.host_s += elapsed_s
                self._take_step(seat, result, elapsed_s, until)

        failure = attempt(catch_up)
        if isinstance(failure, Failure):
            self._vacate(seat)
            return failure
        return None
