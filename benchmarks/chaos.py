"""Kills parts of short sweeps with SIGKILL at seeded moments, and compares what comes of them.

One sweep runs undisturbed. Every further one is the same sweep in a folder of its own, in which
there are several moments; victims take turns: the driver, its host, a trial's proxy, the MLflow
server. A moment is a number of events in the sweep's log, drawn evenly from those of the
undisturbed run, and up to 300 ms more. A killed driver is started again at once with the same
command; hosts and proxies are the running driver's to replace; the server comes back after a few
seconds.

A moment waits for its victim while there can be one, and takes the driver where there is none
left. The same command is given again while something of the sweep is not delivered, as after a
time without MLflow.

    python benchmarks/chaos.py --moments 20 --seed 1 --out benchmarks/results/chaos.md
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal

import psutil
import yaml
from chaos_checks import Traces, find_differences, find_faults, read_traces

from orchestrator.journal.events import LogEntry, PhaseEnded, StageEnded
from orchestrator.journal.log import read_events
from registry.tracking.server import serve_ui

Victim = Literal["driver", "host", "proxy", "server"]
VICTIMS: tuple[Victim, ...] = ("driver", "host", "proxy", "server")

TITLES = {"host": "ray::RayTrainWorker", "proxy": "ray::ResourceTrainable"}
"""How Ray names the processes of a host's worker and of a trial's proxy."""

EVERY = 8
MAX_DELAY_S = 0.3
SERVER_PAUSE_S = 3.0
RUN_S = 600.0
"""Longest time for one run of the command; a sweep alone takes two minutes on two busy cores."""

PHASES = (
    "starting Ray", "searching", "training the best again", "evaluating", "ending hosts",
    "registering", "recording",
)  # fmt: skip
STAGE_OF = {"searching": "search", "training the best again": "repeats"}


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When something is killed.

    Attributes:
        victim: What is.
        events: Length of the log that is waited for.
        delay_s: Time after that.
    """

    victim: Victim
    events: int
    delay_s: float


@dataclass(kw_only=True)
class Kill:
    """What came of a moment.

    Attributes:
        moment: The moment.
        killed: What was killed.
        events: Length of the log then.
        phase: What the sweep was at.
        at: Monotonic seconds.
    """

    moment: Moment
    killed: str
    events: int
    phase: str
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, kw_only=True)
class Disturbed:
    """One sweep and what was done to it.

    Attributes:
        name: Of its adapter.
        kills: In the order they were done.
        problems: What is not as it should be.
        ended_at: Monotonic seconds.
    """

    name: str
    kills: Sequence[Kill]
    problems: Sequence[str]
    ended_at: float


def draw_moments(
    count: int, seed: int, events: int, per_sweep: int, victims: Sequence[Victim] = VICTIMS
) -> list[list[Moment]]:
    """Moments of one sweep after another, victims in turn, those of a sweep in the log's order."""
    dice = random.Random(seed)
    moments = [
        Moment(
            victim=victims[number % len(victims)],
            events=dice.randint(1, events - 1),
            delay_s=dice.uniform(0.0, MAX_DELAY_S),
        )
        for number in range(count)
    ]
    parts = [moments[i : i + per_sweep] for i in range(0, count, per_sweep)]
    return [sorted(part, key=lambda moment: moment.events) for part in parts]


# ------------------------------------------------------------------------------------ MLflow


class Server:
    """An MLflow server on SQLite that can be killed and comes back; a context manager."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._database = folder / "mlflow.db"
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._port = listener.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.await_up()
        self._serving.__exit__(None, None, None)

    def kill(self) -> str:
        """Kill it with all its processes; it is started again a little later."""
        self.await_up()
        kill_family(psutil.Process(self._process.pid))
        self._serving.__exit__(None, None, None)
        self._return = threading.Timer(SERVER_PAUSE_S, self._start)
        self._return.start()
        return "mlflow server"

    def await_up(self) -> None:
        """Wait until it has come back."""
        if self._return is not None:
            self._return.join()

    _return: threading.Timer | None = None

    def _start(self) -> None:
        self._serving = serve_ui(self._database, self._port)
        self._process = self._serving.__enter__()


def count_events(events: Sequence[LogEntry]) -> int:
    """How many there are, without those that only say that time has passed."""
    return sum(event.kind != "usage" for event in events)


def kill_family(parent: psutil.Process) -> None:
    """Kill a process and all below it at once."""
    family = [parent, *parent.children(recursive=True)]
    for process in family:
        kill(process)
    psutil.wait_procs(family, timeout=10)


def kill(process: psutil.Process) -> None:
    """Kill a process that may have ended by itself."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


# ----------------------------------------------------------------------------------- a sweep


class Sweep:
    """A sweep's folder and the command that runs it.

    Args:
        folder: Holds the sweep file and `runs/`.
        inputs: Folder of `build_inputs`.
        model: Name of the registered adapter.
        tracking_uri: MLflow.
    """

    def __init__(self, folder: Path, inputs: Path, model: str, tracking_uri: str) -> None:
        folder.mkdir(parents=True)
        self.folder, self.model, self.tracking_uri = folder, model, tracking_uri
        self.storage = folder / "runs" / "chaos"
        (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep_values(inputs, model)))
        self._environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith("RAY_")},
            "MLFLOW_TRACKING_URI": tracking_uri,
            "LORCHESTRA_CACHE": str(inputs / "cache"),
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> psutil.Popen:
        """Give the command; what it says is added to `output.txt`."""
        with (self.folder / "output.txt").open("ab") as out:
            return psutil.Popen(
                [sys.executable, "-m", "orchestrator.cli", "run", "sweep.yaml"],
                cwd=self.folder, env=self._environment, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def events(self) -> list[LogEntry]:
        """The log so far."""
        return list(read_events(self.storage / "events.jsonl"))

    def is_told(self) -> bool:
        """Whether all is registered, and MLflow knows everything."""
        events = self.events()
        cursor = self.storage / "delivered.json"
        delivered = json.loads(cursor.read_text())["events"] if cursor.is_file() else 0
        return delivered == len(events) and any(event.kind == "promoted" for event in events)

    def traces(self) -> Traces:
        """What it left."""
        return read_traces(self.storage, self.tracking_uri, self.model)


def sweep_values(inputs: Path, model: str) -> dict[str, object]:
    """The sweep as plain values: 5 trials on one seat, two of them repeated, one registered."""
    return {
        "name": "chaos",
        "seed": 3,
        "base": {
            "model": str(inputs / "base"), "quantization": "none", "compute_dtype": "float32",
        },
        "data": {
            "train": str(inputs / "rows.jsonl"), "validation_fraction": 0.2,
            "test_fraction": 0.2, "max_tokens": 32,
        },
        "optim": {"steps": 5 * EVERY, "batch_size": 4},
        "eval": {"every": EVERY},
        "space": {
            "lora.rank": {"choice": [2, 4, 8]},
            "optim.learning_rate": {"log_uniform": [2e-3, 2e-2]},
        },
        "search": {"algorithm": "random"},
        "schedule": {"algorithm": "asha", "grace_steps": 2 * EVERY},
        "budget": {"trials": 5},
        "hosts": {"seats": 1},
        "finals": {"top": 2, "seeds": 1, "forms": ["trained"]},
        "register": {"name": model, "top": 1},
    }  # fmt: skip


def build_inputs(folder: Path) -> Path:
    """A folder with the tests' tiny base and rows that it can learn."""
    tiny = _load_module(Path(__file__).parents[1] / "tests" / "support" / "tiny.py")
    tiny.build_tiny_llama().save_pretrained(folder / "base")
    tiny.build_byte_tokenizer().save_pretrained(folder / "base")
    rows = [
        {"prompt": f"{'abcdefgh'[i % 8] * (3 + i % 5)} ->", "completion": f" {'xyzw'[i % 4]}"}
        for i in range(64)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"chaos_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --------------------------------------------------------------------------------- watching


@contextmanager
def watch_states(storage: Path) -> Iterator[Mapping[tuple[str, int], int]]:
    """How often each state of each trial is written while the block runs."""
    seen: dict[tuple[str, int], set[int]] = defaultdict(set)
    counts: dict[tuple[str, int], int] = {}
    is_over = threading.Event()

    def look() -> None:
        for path in storage.glob("trials/*/state/step-*/reports.json"):
            key = path.parts[-4], int(path.parts[-2].removeprefix("step-"))
            try:
                seen[key].add(path.stat().st_mtime_ns)
            except FileNotFoundError:  # replaced by a newer one
                continue
            counts[key] = len(seen[key])

    def run() -> None:
        while not is_over.wait(0.02):
            look()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield counts
    finally:
        is_over.set()
        thread.join()
        look()


def phase_of(events: Sequence[LogEntry]) -> str:
    """What a driver is at that has logged these events."""
    ended = {each.event.stage for each in events if isinstance(each.event, StageEnded)}
    place = 0
    for each in events:
        if each.kind in ("sweep_started", "sweep_resumed"):
            place = 0
        elif isinstance(each.event, PhaseEnded) and each.event.name in PHASES:
            place = PHASES.index(each.event.name) + 1
    while place < len(PHASES) and STAGE_OF.get(PHASES[place]) in ended:
        place += 1
    return PHASES[place] if place < len(PHASES) else "ended"


_LAST_PHASE: Mapping[Victim, str] = {"proxy": "training the best again", "host": "evaluating"}


def can_come(victim: Victim, events: Sequence[LogEntry]) -> bool:
    """Whether a victim that is not there yet may still be started."""
    phase, last = phase_of(events), _LAST_PHASE.get(victim)
    return last is not None and phase in PHASES[: PHASES.index(last) + 1]


def find_process(driver: psutil.Process, victim: Victim) -> psutil.Process | None:
    """The youngest process of a kind below the driver."""
    found = []
    for process in driver.children(recursive=True):
        try:
            if (process.cmdline() or [""])[0].startswith(TITLES[victim]):
                found.append((process.create_time(), process.pid, process))
        except psutil.NoSuchProcess:
            continue
    return max(found)[2] if found else None


# ------------------------------------------------------------------------------- disturbing


class Chaos:
    """Runs a sweep to its end and kills on the way."""

    def __init__(self, sweep: Sweep, server: Server, moments: Sequence[Moment]) -> None:
        self._sweep, self._server = sweep, server
        self._waiting = list(moments)
        self._lost: list[psutil.Process] = []
        self.kills: list[Kill] = []
        self.problems: list[str] = []

    def run(self) -> None:
        """Give the command until there is nothing left to do."""
        for _ in range(len(self._waiting) + 3):
            code = self._run_once()
            if code not in (0, None):
                self.problems.append(f"exit code {code}")
                break
            if code == 0 and self._sweep.is_told():
                break
            if code == 0:
                self._server.await_up()
        self.problems += [f"no moment came for {moment}" for moment in self._waiting]
        _, alive = psutil.wait_procs(self._lost, timeout=30)
        self.problems += [f"{process} outlived its driver" for process in alive]

    def _run_once(self) -> int | None:
        """The exit code of one run of the command, `None` for one that was killed."""
        driver = self._sweep.start()
        deadline = time.monotonic() + RUN_S
        while driver.poll() is None:
            if time.monotonic() > deadline:
                kill_family(driver)
                self.problems.append(f"not done after {RUN_S:.0f} s")
                return -1
            if self._is_due() and self._strike(driver):
                driver.wait(30)
                return None
            time.sleep(0.05)
        return int(driver.wait())

    def _is_due(self) -> bool:
        if not self._waiting:
            return False
        return count_events(self._sweep.events()) >= self._waiting[0].events

    def _strike(self, driver: psutil.Process) -> bool:
        """Kill the next victim when it is there; whether that was the driver."""
        moment = self._waiting[0]
        victim = self._find(driver, moment.victim)
        if victim is None:
            return False
        del self._waiting[0]
        time.sleep(moment.delay_s)
        is_alive = driver.poll() is None
        events = self._sweep.events()
        kill_ = Kill(
            moment=moment, killed=victim, events=count_events(events), phase=phase_of(events)
        )
        self.kills.append(kill_)
        if not is_alive:
            kill_.killed = "none: it had ended"
            return False
        return self._kill(driver, kill_)

    def _find(self, driver: psutil.Process, victim: Victim) -> Victim | None:
        """Who is killed: the victim, the driver in its place, or nobody yet."""
        if victim in ("driver", "server") or find_process(driver, victim) is not None:
            return victim
        return None if can_come(victim, self._sweep.events()) else "driver"

    def _kill(self, driver: psutil.Process, kill_: Kill) -> bool:
        if kill_.killed == "server":
            kill_.killed = self._server.kill()
            return False
        if kill_.killed == "driver":
            self._lost += driver.children(recursive=True)
            kill(driver)
            return True
        process = find_process(driver, kill_.killed)  # type: ignore[arg-type]
        if process is None:
            kill_.killed += ", gone a moment before"
            return False
        kill(process)
        return False


def disturb(
    sweep: Sweep, server: Server, moments: Sequence[Moment], reference: Traces
) -> Disturbed:
    """Run a sweep with all its moments and compare it with the undisturbed one."""
    chaos = Chaos(sweep, server, moments)
    with watch_states(sweep.storage) as saves:
        chaos.run()
    ended_at = time.monotonic()
    server.await_up()
    traces = sweep.traces()
    found = [*find_faults(traces, saves, EVERY), *find_differences(traces, reference)]
    return Disturbed(
        name=sweep.model,
        kills=chaos.kills,
        problems=[*chaos.problems, *found],
        ended_at=ended_at,
    )


def run_undisturbed(sweep: Sweep, server: Server) -> Traces:
    """What the sweep comes to when nothing happens to it.

    Raises:
        RuntimeError: It is not what a sweep should be even then.
    """
    chaos = Chaos(sweep, server, [])
    with watch_states(sweep.storage) as saves:
        chaos.run()
    traces = sweep.traces()
    problems = [*chaos.problems, *find_faults(traces, saves, EVERY)]
    if problems:
        raise RuntimeError(f"{sweep.folder}: undisturbed, and yet: {'; '.join(problems)}")
    return traces


# -------------------------------------------------------------------------------- the script


def describe(results: Sequence[Disturbed], command: str, events: int) -> str:
    """The results as a Markdown page."""
    kills = [kill_ for result in results for kill_ in result.kills]
    bad = [result for result in results if result.problems]
    versions = [
        f"{name} {importlib.metadata.version(name)}" for name in ("ray", "mlflow", "torch")
    ]
    lines = [
        "# Kills at seeded moments",
        "",
        f"`{command}`",
        "",
        f"Python {platform.python_version()}, {', '.join(versions)}; {os.cpu_count()} CPU cores "
        f"({_processor()}), {time.strftime('%Y-%m-%d')}, other work running beside it.",
        "",
        f"{len(kills)} kills in {len(results)} sweeps of {events} events each when undisturbed; "
        f"{len(results) - len(bad)} sweeps ended as the undisturbed one did: the same trials, "
        "reports, adapters (bit for bit), test metrics, version and champion, each once in the "
        "log and in MLflow, and no state seen to be written twice.",
        "",
        "| sweep | moment | victim | killed | at event | phase | seconds to the end | verdict |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(result, kill_) for result in results for kill_ in result.kills),
        "",
        *(f"- {result.name}: {problem}" for result in bad for problem in result.problems),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(result: Disturbed, kill_: Kill) -> str:
    moment = kill_.moment
    cells = (
        result.name,
        f"{moment.events} + {1000 * moment.delay_s:.0f} ms",
        moment.victim,
        kill_.killed,
        str(kill_.events),
        kill_.phase,
        f"{result.ended_at - kill_.at:.0f}",
        f"{len(result.problems)} problems" if result.problems else "the same",
    )
    return f"| {' | '.join(cells)} |"


def _processor() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-sweep", type=int, default=5, help="moments in one sweep")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/chaos.md"))
    parser.add_argument("--work", type=Path, help="keep the sweeps in this new folder")
    return parser.parse_args()


def main() -> int:
    """Run all moments; the exit code says whether every sweep came out the same."""
    arguments = _parse_arguments()
    command = f"python {shlex.join(sys.argv)}"
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        work = (arguments.work or Path(temporary) / "work").absolute()
        work.mkdir(parents=True)
        inputs = build_inputs(work)
        results: list[Disturbed] = []
        with Server(work / "mlflow") as server:
            first = Sweep(work / "undisturbed", inputs, "undisturbed", server.uri)
            reference = run_undisturbed(first, server)
            events = count_events(reference.events)
            print(f"undisturbed: {events} events", flush=True)
            parts = draw_moments(arguments.moments, arguments.seed, events, arguments.per_sweep)
            for number, moments in enumerate(parts, 1):
                sweep = Sweep(work / f"s{number:02d}", inputs, f"s{number:02d}", server.uri)
                results.append(disturb(sweep, server, moments, reference))
                print(*(_row(results[-1], k) for k in results[-1].kills), sep="\n", flush=True)
                print(*results[-1].problems, sep="\n", flush=True)
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(describe(results, command, events))
    return int(any(result.problems for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
