"""What is done to a sweep, when, and how the sweep is brought to its end after it."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from chaos_checks import Traces, find_differences, find_faults
from chaos_sweeps import EVERY, KINDS, Server, Sweep, kill, kill_family

from orchestrator.journal.events import LogEntry, PhaseEnded, StageEnded

TITLES = {
    "host": r"ray::.*RayTrainWorker",
    "proxy": r"ray::(ResourceTrainable|TrialProxy)",
    "broker": r"ray::Broker",
    "controller": r"ray::TrainController",
    "evaluator": r"ray::_Evaluator",
}
"""How Ray names the processes of a sweep."""

DEEDS = (
    "kill driver", "kill host", "kill proxy", "kill broker", "kill controller", "kill server",
    "end driver", "fill disk", "damage state", "second driver", "fail server", "stop host",
    "kill evaluator", "stop driver", "stop broker",
)  # fmt: skip
STOP_S = 90.0
"""How long a stopped process stays stopped, unless it is ended meanwhile."""

MAX_DELAY_S = 0.3
RUN_S = 600.0
"""Longest time for one run of the command; a sweep alone takes two minutes on two busy cores."""
NOTICE_S = 180.0
"""Longest time in which a driver must notice that its broker died or its disk is full."""

EXIT_CODES = {"kill driver": -signal.SIGKILL, "end driver": 128 + signal.SIGTERM}
ENDS_THE_RUN = ("kill broker", "fill disk")
"""Deeds that end the driver's run in a sentence, as long as it trains or writes."""

PHASES = (
    "starting Ray", "searching", "training the best again", "evaluating", "ending hosts",
    "evaluating serving forms", "registering", "recording",
)  # fmt: skip
STAGE_OF = {"searching": "search", "training the best again": "repeats"}
_LAST_PHASE = {
    "proxy": "training the best again",
    "host": "evaluating",
    "controller": "evaluating",
    "broker": "evaluating",
    "evaluator": "evaluating serving forms",
}


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When something is done to a sweep.

    Attributes:
        deed: What is done, one of `DEEDS`.
        events: Length of the log that is waited for.
        phase: Phase that is waited for, too; empty for none.
        delay_s: Time after that.
    """

    deed: str
    events: int
    phase: str = ""
    delay_s: float = 0.0

    @property
    def victim(self) -> str:
        """What it is done to."""
        return self.deed.partition(" ")[2]


@dataclass(kw_only=True)
class Blow:
    """What came of a moment.

    Attributes:
        moment: The moment.
        done: What was done.
        events: Length of the log then.
        phase: What the sweep was at.
        at: Monotonic seconds.
    """

    moment: Moment
    done: str
    events: int
    phase: str
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, kw_only=True)
class Disturbed:
    """One sweep and what was done to it.

    Attributes:
        name: Of its adapter.
        world: Kind of sweep, and of Ray.
        blows: In the order they were done.
        problems: What is not as it should be.
        ended_at: Monotonic seconds.
    """

    name: str
    world: str
    blows: Sequence[Blow]
    problems: Sequence[str]
    ended_at: float


def phase_starts(events: Sequence[LogEntry]) -> dict[str, int]:
    """Length of an undisturbed log when each phase begins."""
    starts = {PHASES[0]: 0}
    counted = [each for each in events if each.kind != "usage"]
    for length, each in enumerate(counted, 1):
        if isinstance(each.event, PhaseEnded) and each.event.name in PHASES[:-1]:
            starts[PHASES[PHASES.index(each.event.name) + 1]] = length
    return starts


def draw_moments(
    count: int,
    seed: int,
    starts: Mapping[str, int],
    per_sweep: int,
    deeds: Sequence[str] = DEEDS,
) -> list[list[Moment]]:
    """Moments of one sweep after another, deeds in turn, those of a sweep in the log's order.

    Every fourth moment waits for a phase after the search, which few events tell of; the others
    come before the sweep registers, as after it there is nothing left to wait for.

    Args:
        count: Number of moments.
        seed: Seed.
        starts: Length of an undisturbed log when each phase begins.
        per_sweep: Number of moments of a sweep.
        deeds: What is done, in turn.
    """
    dice = random.Random(seed)
    late = PHASES[3:-1]
    moments = []
    for number in range(count):
        deed = deeds[number % len(deeds)]
        victim = deed.partition(" ")[2]
        last = _LAST_PHASE.get(victim)
        is_late = victim == "evaluator" or (number % 4 == 3 and last is None)
        phase = (last or dice.choice(late)) if is_late else ""
        anywhere = dice.randint(1, starts[last or "registering"] - 1)
        moments.append(
            Moment(
                deed=deed,
                events=starts[phase] if is_late else anywhere,
                phase=phase,
                delay_s=dice.uniform(0.0, MAX_DELAY_S),
            )
        )
    parts = [moments[i : i + per_sweep] for i in range(0, count, per_sweep)]
    return [sorted(part, key=lambda one: one.events) for part in parts]


# --------------------------------------------------------------------------------- watching


def count_events(events: Sequence[LogEntry]) -> int:
    """How many there are, without those that only say that time has passed."""
    return sum(event.kind != "usage" for event in events)


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


def has_begun(phase: str, output: str) -> bool:
    """Whether a driver's plain lines tell that a phase has begun."""
    return re.search(rf"^\S+ \S+  {re.escape(phase)}$", output, re.MULTILINE) is not None


def can_come(victim: str, events: Sequence[LogEntry]) -> bool:
    """Whether a victim that is not there yet may still be started."""
    phase, last = phase_of(events), _LAST_PHASE.get(victim)
    return last is not None and phase in PHASES[: PHASES.index(last) + 1]


def find_process(roots: Sequence[psutil.Process], victim: str) -> psutil.Process | None:
    """The youngest process of a kind below the driver, or below a Ray that was there before."""
    found = []
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            for process in root.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if re.match(TITLES[victim], (process.cmdline() or [""])[0]):
                        found.append((process.create_time(), process.pid, process))
    return max(found)[2] if found else None


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


# ------------------------------------------------------------------------------- disturbing


class Chaos:
    """Runs a sweep to its end and does things to it on the way.

    Args:
        sweep: The sweep.
        server: Its MLflow.
        moments: When and what.
        cluster: Process of a Ray that drivers join; `None` for an embedded one.
    """

    def __init__(
        self,
        sweep: Sweep,
        server: Server,
        moments: Sequence[Moment],
        cluster: psutil.Process | None = None,
    ) -> None:
        self._sweep, self._server, self._cluster = sweep, server, cluster
        self._waiting = list(moments)
        self._lost: list[psutil.Process] = []
        self._ends: tuple[int, ...] = ()
        self._asides: list[threading.Thread] = []
        self._said = 0
        self.damaged: set[str] = set()
        self.blows: list[Blow] = []
        self.problems: list[str] = []

    def run(self) -> None:
        """Give the command until there is nothing left to do."""
        for _ in range(len(self._waiting) + 4):
            self._ends = ()
            code = self._run_once()
            if code == 0 and not self._waiting and self._sweep.is_told():
                break
            if code not in (0, 3, *self._ends):
                self.problems.append(f"exit code {code}: {self._last_line()}")
                break
            self._clear_disk()
            self._server.await_up()
            if code == 0 and self._sweep.is_told():
                break
        for aside in self._asides:
            aside.join()
        events = self._sweep.events()
        self.blows += [
            Blow(moment=moment, done="none: the sweep had ended", events=count_events(events),
                 phase="ended")
            for moment in self._waiting
        ]  # fmt: skip
        _, alive = psutil.wait_procs(self._lost, timeout=10)
        self.problems += [f"{process} outlived its driver" for process in alive]
        said = self._sweep.output().read_text(errors="replace")
        if "Traceback (most recent call last)" in said:
            self.problems.append("a traceback in the output")

    def _run_once(self) -> int:
        """The exit code of one run of the command."""
        output = self._sweep.output()
        self._said = output.stat().st_size if output.exists() else 0
        driver = self._sweep.start()
        deadline = time.monotonic() + RUN_S
        while driver.poll() is None:
            if time.monotonic() > deadline:
                kill_family(driver)
                self.problems.append(f"not done after {RUN_S:.0f} s")
                return -1
            if self._is_due():
                self._strike(driver)
            time.sleep(0.05)
        return int(driver.wait())

    def _last_line(self) -> str:
        lines = self._sweep.output().read_text(errors="replace").splitlines()
        return lines[-1][:300] if lines else ""

    def _is_due(self) -> bool:
        if not self._waiting:
            return False
        moment = self._waiting[0]
        if moment.phase and not has_begun(moment.phase, self._output_of_run()):
            return False
        return count_events(self._sweep.events()) >= moment.events

    def _output_of_run(self) -> str:
        with self._sweep.output().open(errors="replace") as stream:
            stream.seek(self._said)
            return stream.read()

    def _strike(self, driver: psutil.Popen) -> None:
        """Do the next deed when its victim is there."""
        moment = self._waiting[0]
        deed, process = moment.deed, None
        if moment.victim in TITLES:
            process = find_process([driver, *([self._cluster] if self._cluster else [])],
                                   moment.victim)  # fmt: skip
            if process is None and can_come(moment.victim, self._sweep.events()):
                return
            if process is None:
                deed = "kill driver"
        del self._waiting[0]
        time.sleep(moment.delay_s)
        events = self._sweep.events()
        blow = Blow(moment=moment, done=deed, events=count_events(events), phase=phase_of(events))
        self.blows.append(blow)
        if driver.poll() is not None:
            blow.done = "none: the driver had ended"
        elif deed.startswith("stop"):
            self._stop(process or driver)
        elif process is not None:
            if deed in ENDS_THE_RUN:
                self._ends += (1,)
            kill(process)
        else:
            getattr(self, f"_{deed.replace(' ', '_')}")(driver, blow)

    def _stop(self, process: psutil.Process) -> None:
        """Stop a process for a while; it may be ended meanwhile."""
        process.suspend()

        def wake() -> None:
            time.sleep(STOP_S)
            with suppress(psutil.NoSuchProcess):
                process.resume()

        self._asides.append(threading.Thread(target=wake))
        self._asides[-1].start()

    def _kill_driver(self, driver: psutil.Popen, blow: Blow) -> None:
        self._lost += driver.children(recursive=True)
        self._ends += (EXIT_CODES["kill driver"],)
        kill(driver)

    def _end_driver(self, driver: psutil.Popen, blow: Blow) -> None:
        self._lost += driver.children(recursive=True)
        self._ends += (EXIT_CODES["end driver"],)
        driver.terminate()
        with suppress(psutil.TimeoutExpired):
            driver.wait(30)

    def _kill_server(self, driver: psutil.Popen, blow: Blow) -> None:
        self._server.kill()

    def _fail_server(self, driver: psutil.Popen, blow: Blow) -> None:
        self._server.fail()

    def _second_driver(self, driver: psutil.Popen, blow: Blow) -> None:
        """A second driver is refused and changes nothing, unless the first ends meanwhile."""
        second = self._sweep.start("second.txt")
        code = second.wait(120)
        if code != 1 and driver.poll() is None:
            self.problems.append(f"a second driver ended with {code}")

    def _damage_state(self, driver: psutil.Popen, blow: Blow) -> None:
        """Cut the newest state of the trial in work, and kill the driver, which would go on."""
        states = sorted(
            self._sweep.storage.glob("trials/*/state/step-*/state.safetensors"),
            key=lambda path: path.stat().st_mtime_ns,
        )
        self._kill_driver(driver, blow)
        driver.wait(30)
        if states:
            with suppress(FileNotFoundError):
                os.truncate(states[-1], states[-1].stat().st_size // 2)
                trial, step = states[-1].parts[-4], states[-1].parts[-2]
                self.damaged.add(trial)
                blow.done = f"{step} of {trial} cut, driver killed"

    def _fill_disk(self, driver: psutil.Popen, blow: Blow) -> None:
        """Fill the sweep's own disk and wait until the driver has noticed."""
        if not self._filler.parent.is_mount():
            blow.done = "none: only root can mount a disk"
            return
        self._ends += (1,)
        with self._filler.open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(65536))
        with suppress(psutil.TimeoutExpired):
            driver.wait(NOTICE_S)

    @property
    def _filler(self) -> Path:
        return self._sweep.folder / "filler"

    def _clear_disk(self) -> None:
        self._filler.unlink(missing_ok=True)


def disturb(
    sweep: Sweep,
    server: Server,
    moments: Sequence[Moment],
    reference: Traces,
    cluster: psutil.Process | None = None,
) -> Disturbed:
    """Run a sweep with all its moments and compare it with the undisturbed one."""
    chaos = Chaos(sweep, server, moments, cluster)
    with watch_states(sweep.storage) as saves:
        chaos.run()
    ended_at = time.monotonic()
    server.await_up()
    traces = sweep.traces()
    kind = KINDS[sweep.kind]
    # A trial that goes back to an older state writes the states after it once more.
    once = {key: count for key, count in saves.items() if key[0] not in chaos.damaged}
    found = find_faults(traces, once if kind.is_exact else {}, EVERY)
    return Disturbed(
        name=sweep.model,
        world=f"{sweep.kind}, {'three nodes' if cluster else 'embedded'}",
        blows=chaos.blows,
        problems=[*chaos.problems, *found, *find_differences(traces, reference, kind.is_exact)],
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
