"""What a trial costs the driver, with an engine whose steps cost nothing.

The parts are those of `orchestrator.run`: searcher, scheduler, Ray Tune, proxies, broker, a host,
the event log on disk and delivery to MLflow on SQLite. Only the engine in the host is another
one. Each of its evaluations is a little better than all before, so that no rule stops a trial and
every trial makes all its reports.

CPU-seconds are counted from the end of the warm-up trials, when Ray, the host and MLflow's tables
are up, to the last trial's end and delivery. `driver` is this process, by the kernel's count of
its threads; `children` are all its descendants: Ray's own processes, the proxies and the host.
The parts of the driver's main thread are timed with `time.thread_time` around the calls that Ray
Tune makes; what they leave is Ray Tune's own. The trials of a run are cut into equal windows: flat
means that the driver's CPU per trial, delivery aside, is the same in the first as in the last. Own
memory (USS) of driver, broker and the largest proxy is read at the same moments.

    python benchmarks/search_overhead.py --trials 50 200 1000 --out search_overhead.json
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import ray
from rich.console import Console

from orchestrator.hosts.broker import start_broker
from orchestrator.hosts.cluster import ray_cluster
from orchestrator.hosts.pool import HostPool
from orchestrator.journal.events import Event, LogEntry, SweepStarted
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.paths import REPORT_FOLDER
from orchestrator.journal.recording import SweepRecord
from orchestrator.journal.requests import UserRequests
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.live.display import ProgressDisplay
from orchestrator.quiet import hush_noisy_loggers
from orchestrator.report.delivery import Delivery
from orchestrator.search.budget import Budget
from orchestrator.search.schedule import build_scheduler
from orchestrator.search.searcher import OptunaSearcher
from orchestrator.spec.sweep import SweepSpec, parse_sweep
from orchestrator.supervision import Supervisor
from orchestrator.tuning import Stage
from registry import Tracker, tracking_uri_for
from trainables.errors import BundleError
from trainables.hosts.bench import Bench
from trainables.spec import BaseSpec, TrialSpec

REPORTS = 4
WARMUP = 10
WINDOWS = 5
SEATS = 4
DELIVERY = "mlflow-delivery"
FLUSH_S = 600.0
KINDS = {"broker": ("ray::Broker",), "proxy": ("ray::TrialProxy", "ray::ResourceTrainable")}
"""How Ray names the processes whose memory is looked at."""
FOREVER_S = 1e7


# ------------------------------------------------------------------------------------- the engine


@dataclass(frozen=True)
class NoStep:
    """A step that was free; also the state of a seat."""

    step: int = 0
    loss: float = 1.0
    tokens: int = 0
    is_finite: bool = True


class NoMemory:
    """Knows nothing of memory."""

    def room(self):
        return None

    def take_reading(self):
        return None

    def trial_bytes(self, name):
        return None


class NoEngine:
    """Counts steps."""

    foresight = NoMemory()

    def __init__(self) -> None:
        self._seats: dict[str, NoStep] = {}
        self._evaluations = 0

    def join(self, seat, spec, state=None, passes=1):
        self._seats[seat] = state or NoStep()

    def leave(self, seat):
        del self._seats[seat]

    def rehearse(self, seats):
        return False

    def step(self, seats):
        for seat in seats:
            self._seats[seat] = NoStep(step=self._seats[seat].step + 1)
        return {seat: self._seats[seat] for seat in seats}

    def evaluate(self, seat, split="validation"):
        self._evaluations += 1
        return {"eval_loss": 1 + 1 / self._evaluations, "eval_accuracy": 0.5}

    def evaluate_base(self, spec, split="validation"):
        return {"eval_loss": 9.0, "eval_accuracy": 0.0}

    def snapshot(self, seat):
        return self._seats[seat]

    def export(self, seat, folder, metrics):
        (folder / "manifest.json").write_text(json.dumps(dict(metrics)))

    def trainable_params(self, seat):
        return 1


def save_state(state: NoStep, folder: Path) -> None:
    (folder / "state.json").write_text(json.dumps(asdict(state)))


def load_state(folder: Path) -> NoStep:
    return NoStep(**json.loads((folder / "state.json").read_text()))


def load_bundle(folder: Path, spec: TrialSpec) -> tuple[NoStep, dict[str, float]]:
    raise BundleError(f"{folder}: this benchmark evaluates no bundles")


def build_bench(base: BaseSpec) -> Bench:
    return Bench(
        engine=NoEngine(),
        save_state=save_state,
        load_state=load_state,
        load_bundle=load_bundle,
        peak_memory_gib=lambda: 0.0,
    )


# -------------------------------------------------------------------------------------- measuring


@dataclass
class Stopwatch:
    """CPU-seconds of the calling thread, and the wall clock, spent within named calls."""

    cpu_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    wall_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Time every call of a method from now on."""
        setattr(owner, method, self.timed(getattr(owner, method), name))

    def timed(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            cpu, wall = time.thread_time(), time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.cpu_s[name] += time.thread_time() - cpu
                self.wall_s[name] += time.perf_counter() - wall

        return measured


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Where all clocks stood when so many trials had ended."""

    trials: int
    reports: int
    wall_s: float
    driver_s: float
    children_s: float
    threads_s: dict[str, float]
    parts_s: dict[str, float]
    log_wall_s: float
    memory_mib: dict[str, float]


@dataclass
class Clocks:
    """Reads them at the end of the warm-up and of each window of trials.

    Attributes:
        trials: How many there will be.
        watch: Times the parts.
        readings: In order.
    """

    trials: int
    watch: Stopwatch
    readings: list[Reading] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _children_s: dict[psutil.Process, float] = field(default_factory=dict)

    def count(self, kind: str) -> None:
        """One more event is in the log."""
        self._counts[kind] += 1
        warmup = min(WARMUP, self.trials // 2)
        due = warmup + (self.trials - warmup) * len(self.readings) // WINDOWS
        if kind == "trial_ended" and self._counts[kind] >= due:
            memory = self._look_at_children()
            self.readings.append(self._read(sum(self._children_s.values()), memory))

    def finish(self) -> None:
        """One more reading, when all is delivered; Ray's processes are gone by then."""
        last = self.readings[-1]
        self.readings.append(self._read(last.children_s, last.memory_mib))

    def _look_at_children(self) -> dict[str, float]:
        """Own memory of the driver and of processes by their kind, the largest of each, in MiB.

        Whoever has ended since, such as Ray's idle workers, keeps the CPU time last seen.
        """
        memory = {"driver": psutil.Process().memory_full_info().uss / 2**20}
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self._children_s[process] = times.user + times.system
                title = (process.cmdline() or [""])[0]
                for kind, starts in KINDS.items():
                    if title.startswith(starts):
                        own = process.memory_full_info().uss / 2**20
                        memory[kind] = max(memory.get(kind, 0.0), own)
        return memory

    def _read(self, children_s: float, memory: dict[str, float]) -> Reading:
        me = psutil.Process()
        own = me.cpu_times()
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        threads: dict[str, float] = defaultdict(float)
        for thread in me.threads():
            threads[names.get(thread.id, "libraries")] += thread.user_time + thread.system_time
        return Reading(
            trials=self._counts["trial_ended"],
            reports=self._counts["report"],
            wall_s=time.perf_counter(),
            driver_s=own.user + own.system,
            children_s=children_s,
            threads_s=dict(threads),
            parts_s=dict(self.watch.cpu_s),
            log_wall_s=self.watch.wall_s["log"],
            memory_mib=memory,
        )


# ---------------------------------------------------------------------------------------- one run


def build_spec(trials: int, algorithm: str, schedule: str, seats: int = SEATS) -> SweepSpec:
    values = {
        "name": f"overhead-{trials}",
        "base": {"model": "no/base"},
        "data": {"train": "no/rows"},
        "optim": {"steps": REPORTS},
        "eval": {"every": 1},
        "space": {
            "lora.rank": {"choice": [4, 8, 16, 32]},
            "lora.alpha_per_rank": {"choice": [1, 2, 4]},
            "lora.targets": {"choice": ["attention", "mlp", "all-linear"]},
            "lora.dropout": {"uniform": [0.0, 0.2]},
            "optim.learning_rate": {"log_uniform": [1e-5, 1e-2]},
        },
        "search": {"algorithm": algorithm},
        "schedule": {"algorithm": schedule},
        # Limits that are never met: what it takes to watch them is part of the cost.
        "budget": {"trials": trials, "wall_clock_s": FOREVER_S, "cpu_seconds": FOREVER_S},
        "hosts": {"seats": seats},
    }
    return parse_sweep(values, Path.cwd())


def run_trials(
    trials: int, algorithm: str, schedule: str, folder: Path, seats: int = SEATS
) -> list[Reading]:
    """Search with the real driver in the folder; the clocks at each window's end."""
    spec = build_spec(trials, algorithm, schedule, seats)
    watch, storage = Stopwatch(), SweepStorage(folder / spec.name)
    clocks = Clocks(trials, watch)
    with ExitStack() as stack:
        log = stack.enter_context(storage.open_log())
        quiet = Console(file=stack.enter_context(Path(os.devnull).open("w")))
        display = stack.enter_context(ProgressDisplay(spec, quiet))
        hush_noisy_loggers()
        uri, artifacts = tracking_uri_for(folder)
        delivery = Delivery(
            spec,
            log.path,
            lambda: Tracker(uri, "overhead", artifacts),
            storage.folder / REPORT_FOLDER,
        )
        watch.watch(log, "append", "log")
        log.append = counted(log.append, clocks)
        watch.watch(display, "update", "display")

        def on_change(history: SweepHistory) -> None:
            display.update(history)
            delivery.nudge()

        record = SweepRecord(log, SweepHistory(), on_change)
        record.add(SweepStarted(sweep_id=spec.name, spec=spec.to_dict(), digest=spec.digest))
        stack.enter_context(delivery)
        stage = _open_stage(spec, record, storage, watch, stack)
        _search(spec, stage, watch)
        if not delivery.flush(FLUSH_S):
            raise SystemExit(f"MLflow was not told in time: {delivery.problem}")
        clocks.finish()
    return clocks.readings


def counted(append: Callable[..., Any], clocks: Clocks) -> Callable[..., Any]:
    """Also tells the clocks of each event."""

    def append_and_count(event: Event) -> LogEntry:
        entry: LogEntry = append(event)
        clocks.count(entry.kind)
        return entry

    return append_and_count


def _open_stage(
    spec: SweepSpec,
    record: SweepRecord,
    storage: SweepStorage,
    watch: Stopwatch,
    stack: ExitStack,
) -> Stage:
    fleet = stack.enter_context(ray_cluster(spec))
    broker = start_broker(storage.location)
    stack.callback(ray.kill, broker)
    shape = replace(fleet.shape, build_bench=build_bench)
    pool = stack.enter_context(HostPool(broker, storage, fleet.limits, shape))
    budget = Budget(spec.budget, record.history, usage=pool.usage)
    watch.watch(budget, "exhausted", "budget")
    watch.watch(budget, "forbids", "budget")
    requests = UserRequests()
    stack.enter_context(Supervisor(record, storage, requests, broker, pool.usage))
    return Stage(
        record=record,
        storage=storage,
        horizon=spec.horizon,
        broker=broker,
        fleet=fleet,
        budget=budget,
        requests=requests,
        pool=pool,
    )


def _search(spec: SweepSpec, stage: Stage, watch: Stopwatch) -> None:
    scheduler = build_scheduler(spec)
    searcher = OptunaSearcher(
        spec,
        stage.record.history,
        {"storage": stage.storage.location},
        may_start=lambda started: stage.budget.forbids(1, stage.budget.search_share),
        scheduler=scheduler,
    )
    watch.watch(searcher, "suggest", "suggestion")
    watch.watch(scheduler, "on_trial_result", "scheduler")
    stage.run(searcher, scheduler, scheduler.end_of, stage.budget.search_share)


# ------------------------------------------------------------------------------------------ table


def summarize(trials: int, readings: list[Reading]) -> dict[str, Any]:
    """One run in milliseconds of CPU per trial, unless a name says otherwise."""
    first, last = readings[0], readings[-1]
    done = last.trials - first.trials
    reports = last.reports - first.reports

    def per_trial(before: float, after: float) -> float:
        return 1000 * (after - before) / done

    # Delivery has a thread of its own and lags behind: which window it works in says nothing.
    windows = [
        1000 * (_without_delivery(b) - _without_delivery(a)) / max(1, b.trials - a.trials)
        for a, b in itertools.pairwise(readings[:-1])
    ]
    driver = per_trial(first.driver_s, last.driver_s)
    parts = {
        name: per_trial(first.parts_s.get(name, 0.0), seconds)
        for name, seconds in last.parts_s.items()
    }
    threads = {
        name: per_trial(first.threads_s.get(name, 0.0), seconds)
        for name, seconds in last.threads_s.items()
    }
    return {
        "trials": trials,
        "reports_per_trial": reports / done,
        "driver_ms": driver,
        "driver_ms_per_report": driver * done / reports,
        "children_ms": per_trial(first.children_s, last.children_s),
        "wall_ms": per_trial(first.wall_s, last.wall_s),
        "log_wall_ms": per_trial(first.log_wall_s, last.log_wall_s),
        "driver_ms_by_window": windows,
        "memory_mib_by_window": [reading.memory_mib for reading in readings[:-1]],
        "parts_ms": parts,
        "threads_ms": {name: ms for name, ms in threads.items() if ms >= 0.05},
    }


def _without_delivery(reading: Reading) -> float:
    return reading.driver_s - reading.threads_s.get(DELIVERY, 0.0)


COLUMNS = ("suggestion", "scheduler", "budget", "log", "display")


def table(rows: list[dict[str, Any]]) -> str:
    """The runs as a Markdown table, in milliseconds of CPU per trial."""
    head = ["trials", "driver", "per report", *COLUMNS, "delivery", "children", "first fifth",
            "last fifth"]  # fmt: skip
    lines = [" | ".join(["", *head, ""]).strip(), "|" + "---:|" * len(head)]
    for row in rows:
        delivery = row["threads_ms"].get(DELIVERY, 0.0)
        values = [row["driver_ms"], row["driver_ms_per_report"]]
        values += [row["parts_ms"].get(name, 0.0) for name in COLUMNS]
        values += [delivery, row["children_ms"]]
        values += [row["driver_ms_by_window"][0], row["driver_ms_by_window"][-1]]
        lines.append(" | ".join([f"| {row['trials']}", *(f"{ms:.1f}" for ms in values)]) + " |")
    return "\n".join(lines)


def memory_table(rows: list[dict[str, Any]]) -> str:
    """Own memory (USS) in MiB after the warm-up and each window, as a Markdown table."""
    points = len(rows[0]["memory_mib_by_window"])
    head = ["trials", "process", "warm-up", *(f"window {n}" for n in range(1, points))]
    lines = [" | ".join(["", *head, ""]).strip(), "|---:|---|" + "---:|" * points]
    for row in rows:
        for kind in ("driver", *KINDS):
            sizes = [f"{memory.get(kind, 0.0):.0f}" for memory in row["memory_mib_by_window"]]
            lines.append(f"| {row['trials']} | {kind} | {' | '.join(sizes)} |")
    return "\n".join(lines)


def measure(trials: int, algorithm: str, schedule: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return summarize(trials, run_trials(trials, algorithm, schedule, Path(folder)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--algorithm", default="tpe")
    parser.add_argument("--schedule", default="asha")
    parser.add_argument("--out", type=Path, help="where all numbers go, as JSON")
    args = parser.parse_args()
    rows = []
    for trials in args.trials:
        rows.append(measure(trials, args.algorithm, args.schedule))
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows), memory_table(rows), sep="\n\n")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
