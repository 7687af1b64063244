"""What recording a sweep in MLflow costs the driver, and whether it ever holds training up.

The events of a sweep (trials that start, report and end, some at a time) are written to a real
event log as time goes by, and a real `Delivery` carries them to a real MLflow: a SQLite file, and
a server with users on PostgreSQL. Nothing is trained. The same events are written once more
without a delivery; the difference in this process's CPU time is what recording costs. CPU-seconds
of the server are not counted, as it is another process and usually another machine.

`longest nudge` is the longest time that the thread which writes events was held by the call that
tells the delivery of a new one; `longest event` is the longest time for one event as a whole, with
its fsync and what the folding costs, with the delivery and (in brackets) without it.

    python benchmarks/tracking_overhead.py --trials 200 --reports 10 --seconds 60

The server needs Debian's postgresql.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from orchestrator.journal.events import (
    Event,
    SweepEnded,
    SweepStarted,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.log import EventLog
from orchestrator.journal.paths import bundle_folder
from orchestrator.journal.recording import REPORTED, SweepRecord
from orchestrator.outcome import Outcome
from orchestrator.report.delivery import Delivery
from orchestrator.spec.sweep import SweepSpec, parse_sweep
from registry import Tracker
from registry.tracking.connection import artifact_location_for, connect
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec

AT_ONCE = 8
"""Trials under way at a time."""
FLUSH_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How many events there are, over how many seconds."""

    trials: int
    reports: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One run: CPU and wall in seconds."""

    cpu_s: float
    longest_nudge_s: float
    longest_event_s: float
    flush_s: float


def load_servers() -> ModuleType:
    """The module of the tests that starts servers."""
    path = Path(__file__).parents[1] / "tests" / "support" / "servers.py"
    spec = importlib.util.spec_from_file_location("servers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["servers"] = module
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------ what there is to tell


def build_spec(shape: Shape) -> SweepSpec:
    values = {
        "name": "tracking-overhead",
        "base": {"model": "owner/base"},
        "data": {"train": "owner/rows"},
        "optim": {"steps": shape.reports},
        "eval": {"every": 1},
        "space": {"lora.rank": {"choice": [4, 8]}},
        "budget": {"trials": shape.trials},
    }
    return parse_sweep(values, Path.cwd())


def build_trial(number: int, shape: Shape) -> dict[str, Any]:
    return TrialSpec(
        base=BaseSpec(model="owner/base"),
        lora=LoraSpec(rank=4 + number),
        optim=OptimSpec(steps=shape.reports),
        data=DataSpec(train="owner/rows"),
        eval=EvalSpec(every=1),
    ).to_dict()


def timetable(shape: Shape) -> list[tuple[float, Event]]:
    """Seconds from the start and the event, in order."""
    lasts = shape.seconds * AT_ONCE / (shape.trials + AT_ONCE)
    draw = random.Random(7)
    table: list[tuple[float, Event]] = []
    for trial in range(shape.trials):
        begin = (trial + draw.random()) * lasts / AT_ONCE
        knobs = {"lora.rank": 4 + trial}
        spec = build_trial(trial, shape)
        table.append((begin, TrialStarted(trial=trial, knobs=knobs, spec=spec)))
        for step in range(1, shape.reports + 1):
            metrics = {name: draw.random() for name in REPORTED}
            at = begin + lasts * step / (shape.reports + 1)
            table.append((at, TrialReported(trial=trial, step=step, metrics=metrics)))
        ended = TrialEnded(
            trial=trial,
            outcome=Outcome.COMPLETED,
            reason=f"trained {shape.reports} steps",
            step=shape.reports,
            bundle=bundle_folder(trial),
        )
        table.append((begin + lasts, ended))
    return sorted(table, key=lambda entry: entry[0])


def play(shape: Shape, record: SweepRecord, spec: SweepSpec) -> float:
    """Write the events as time goes by; the longest that one of them took, in seconds."""
    longest, began = 0.0, time.monotonic()
    record.add(SweepStarted(sweep_id=spec.name, spec=spec.to_dict(), digest=spec.digest))
    for at, event in timetable(shape):
        time.sleep(max(0.0, began + at - time.monotonic()))
        before = time.perf_counter()
        record.add(event)
        longest = max(longest, time.perf_counter() - before)
    record.add(SweepEnded(status=Outcome.COMPLETED, reason=f"{shape.trials} trials"))
    return longest


# ------------------------------------------------------------------------------------ measuring


def run_alone(shape: Shape, folder: Path) -> Reading:
    """The same events without a delivery."""
    spec = build_spec(shape)
    with EventLog(folder / "events.jsonl") as log:
        began = time.process_time()
        longest = play(shape, SweepRecord(log, SweepHistory(), lambda history: None), spec)
        cpu_s = time.process_time() - began
    return Reading(cpu_s=cpu_s, longest_nudge_s=0.0, longest_event_s=longest, flush_s=0.0)


def run_delivered(shape: Shape, folder: Path, uri: str, experiment: str) -> Reading:
    spec, nudges = build_spec(shape), [0.0]

    def connect_tracker() -> Tracker:
        return Tracker(uri, experiment, artifact_location_for(uri))

    with EventLog(folder / "events.jsonl") as log:
        delivery = Delivery(spec, log.path, connect_tracker, folder / "report")

        def on_change(history: SweepHistory) -> None:
            before = time.perf_counter()
            delivery.nudge()
            nudges.append(time.perf_counter() - before)

        record = SweepRecord(log, SweepHistory(), on_change)
        began = time.process_time()
        with delivery:
            longest = play(shape, record, spec)
            flushing = time.monotonic()
            if not delivery.flush(FLUSH_S):
                raise SystemExit(f"not all was delivered: {delivery.problem}")
            flush_s = time.monotonic() - flushing
        cpu_s = time.process_time() - began
    return Reading(
        cpu_s=cpu_s, longest_nudge_s=max(nudges), longest_event_s=longest, flush_s=flush_s
    )


def require_all(shape: Shape, uri: str, experiment: str) -> None:
    """Stop when MLflow does not hold every run and every point, once."""
    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], max_results=5000)
    points = sum(len(client.get_metric_history(run.info.run_id, "eval_loss")) for run in runs[:20])
    whole = 1 + shape.trials, {"FINISHED"}
    wrong = (len(runs), {run.info.status for run in runs}) != whole
    if wrong or points < 19 * shape.reports:
        raise SystemExit(f"MLflow holds {len(runs)} runs, and {points} points of 20 of them")


@contextmanager
def sqlite(folder: Path) -> Iterator[tuple[str, Callable[[], int | None]]]:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    connect(uri)
    yield uri, lambda: None


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, Callable[[], int | None]]]:
    servers = load_servers()
    programs = servers.find_postgres()
    if programs is None:
        raise SystemExit(servers.POSTGRES_MISSING)
    with ExitStack() as stack:
        postgres = stack.enter_context(servers.postgres(programs))
        databases = (postgres.create("mlflow"), postgres.create("users"))
        mlflow = stack.enter_context(
            servers.mlflow_server(folder, databases, str(folder / "artifacts"))
        )
        stack.enter_context(servers.environment(mlflow.admin.environment))
        yield mlflow.address, lambda: mlflow.log.read_text().count('HTTP/1.1"')


BACK_ENDS = {"sqlite": sqlite, "server": server}


def measure(shape: Shape, back_end: str, alone: Reading) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work, BACK_ENDS[back_end](Path(work)) as (uri, calls):
        # Once small: imports, tables and connections are not what a trial costs.
        warm_up = Shape(trials=2, reports=2, seconds=1.0)
        for name, some in (("warm-up", warm_up), ("measured", shape)):
            (Path(work) / name).mkdir()
            before = calls()
            reading = run_delivered(some, Path(work) / name, uri, name)
            after = calls()
        require_all(shape, uri, "measured")
    return {
        "back_end": back_end,
        "cpu_s_per_trial": (reading.cpu_s - alone.cpu_s) / shape.trials,
        "calls": None if before is None or after is None else after - before,
        **{name: value for name, value in asdict(reading).items() if name != "cpu_s"},
        "longest_event_alone_s": alone.longest_event_s,
    }


def table(rows: list[Mapping[str, Any]], shape: Shape) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| MLflow | CPU-s per trial | calls | calls per trial | longest nudge | longest event "
        "| flush at the end |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        calls = row["calls"]
        counts = ("", "") if calls is None else (str(calls), f"{calls / shape.trials:.1f}")
        lines.append(
            f"| {row['back_end']} | {row['cpu_s_per_trial']:.4f} | {counts[0]} | {counts[1]} "
            f"| {1000 * row['longest_nudge_s']:.2f} ms "
            f"| {1000 * row['longest_event_s']:.0f} ms "
            f"({1000 * row['longest_event_alone_s']:.0f} ms) | {row['flush_s']:.1f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--reports", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--at", nargs="+", choices=BACK_ENDS, default=list(BACK_ENDS))
    args = parser.parse_args()
    shape = Shape(trials=args.trials, reports=args.reports, seconds=args.seconds)
    with tempfile.TemporaryDirectory() as folder:
        alone = run_alone(shape, Path(folder))
    rows = []
    for back_end in args.at:
        rows.append(measure(shape, back_end, alone))
        print(json.dumps(rows[-1]), flush=True)
    python, mlflow = platform.python_version(), importlib.metadata.version("mlflow")
    print(f"{args.trials} trials of {args.reports} reports over {args.seconds:g} s")
    print(f"Python {python}, mlflow {mlflow}, {os.cpu_count()} cores")
    print(table(rows, shape))


if __name__ == "__main__":
    main()
