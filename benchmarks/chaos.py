"""Disturbs short sweeps at seeded moments, and compares what comes of them.

For each kind of sweep one runs undisturbed. Every further one is the same sweep in a folder and on
a disk of its own, in which there are several moments; deeds take turns. A moment is a number of
events in the sweep's log, drawn evenly from those of the undisturbed run, or a phase after the
search, and up to 300 ms more.

    kill    SIGKILL to the driver, its host, a trial's proxy, the broker, the controller of a host,
            a worker that evaluates serving forms, the MLflow server
    end     SIGTERM to the driver
    stop    SIGSTOP to a host, the driver or the broker, for 90 s or until it is ended
    others  the disk is filled; the newest state is cut in half and the driver killed; a second
            driver is started; the MLflow server answers 500

A driver that was killed, or that ended in a sentence because its broker died or its disk is
full, is started again at once with the same command; hosts and proxies are the running driver's
to replace; the server comes back after a few seconds. A moment waits for its victim while there
can be one, and takes the driver where there is none left.

    python benchmarks/chaos.py --moments 60 --seed 1 --out benchmarks/results/chaos.md
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from chaos_checks import Traces
from chaos_moments import (
    Blow,
    Disturbed,
    count_events,
    disturb,
    draw_moments,
    phase_starts,
    run_undisturbed,
)
from chaos_sweeps import KINDS, Server, Sweep, build_inputs, shared_ray, small_disk

SHARED_EVERY = 4
"""Of so many sweeps, one runs on a Ray of three nodes that was there before."""


def describe(results: Sequence[Disturbed], command: str) -> str:
    """The results as a Markdown page."""
    blows = [blow for result in results for blow in result.blows]
    bad = [result for result in results if result.problems]
    versions = [
        f"{name} {importlib.metadata.version(name)}" for name in ("ray", "mlflow", "torch")
    ]
    deeds = Counter(blow.moment.deed for blow in blows)
    lines = [
        "# Sweeps disturbed at seeded moments",
        "",
        f"`{command}`",
        "",
        f"Commit {_commit()}, Python {platform.python_version()}, {', '.join(versions)}; "
        f"{os.cpu_count()} CPU cores ({_processor()}), {time.strftime('%Y-%m-%d')}.",
        "",
        f"{sum(not blow.done.startswith('none') for blow in blows)} of {len(blows)} moments came, "
        f"in {len(results)} sweeps "
        f"({', '.join(f'{deed} {count}' for deed, count in sorted(deeds.items()))}). "
        f"{len(results) - len(bad)} sweeps came to what they come to undisturbed. With one seat: "
        "the same trials, reports, adapters (bit for bit), test metrics, version and champion. "
        "With several seats, where the order of reports is a matter of time: the same set of "
        "finished trials, and one version that is champion. Always: each of them once in the log "
        "and in MLflow, no process that outlives its driver by ten seconds, no traceback; with "
        "one seat no state seen to be written twice, but after a damaged one.",
        "",
        "| sweep | kind | moment | deed | done | event | phase | seconds to the end | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(result, blow) for result in results for blow in result.blows),
        "",
        *(f"- {result.name}: {problem}" for result in bad for problem in result.problems),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(result: Disturbed, blow: Blow) -> str:
    moment = blow.moment
    cells = (
        result.name,
        result.world,
        f"{moment.phase or moment.events} + {1000 * moment.delay_s:.0f} ms",
        moment.deed,
        blow.done if blow.done != moment.deed else "",
        str(blow.events),
        blow.phase,
        f"{result.ended_at - blow.at:.0f}",
        f"{len(result.problems)} problems" if result.problems else "the same",
    )
    return f"| {' | '.join(cells)} |"


def _commit() -> str:
    folder = Path(__file__).parent
    asked = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def _processor() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--moments", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-sweep", type=int, default=4, help="moments in one sweep")
    parser.add_argument("--deeds", help="separated by commas; default: all")
    kinds = ",".join(name for name in KINDS if name != "short")
    parser.add_argument("--kinds", default=kinds, help="kinds of sweeps, in turn")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/chaos.md"))
    parser.add_argument("--work", type=Path, help="keep the sweeps in this new folder")
    return parser.parse_args()


def _run_all(arguments: argparse.Namespace, work: Path) -> list[Disturbed]:
    inputs = build_inputs(work)
    kinds = arguments.kinds.split(",")
    references: dict[str, Traces] = {}
    results: list[Disturbed] = []
    deeds = {"deeds": arguments.deeds.split(",")} if arguments.deeds else {}
    with Server(work / "mlflow") as server:
        for kind in kinds:
            name = f"undisturbed-{kind}"
            references[kind] = run_undisturbed(
                Sweep(work / name, inputs, name, server.uri, kind), server
            )
            print(f"{name}: {count_events(references[kind].events)} events", flush=True)
        starts = phase_starts(references[kinds[0]].events)
        parts = draw_moments(
            arguments.moments, arguments.seed, starts, arguments.per_sweep, **deeds
        )
        for number, moments in enumerate(parts):
            name, kind = f"s{number + 1:02d}", kinds[number % len(kinds)]
            with ExitStack() as stack:
                cluster, where = None, {}
                if number % SHARED_EVERY == SHARED_EVERY - 1:
                    cluster, where = stack.enter_context(shared_ray())
                folder = stack.enter_context(small_disk(work / name))
                sweep = Sweep(folder, inputs, name, server.uri, kind, where)
                results.append(disturb(sweep, server, moments, references[kind], cluster))
            print(*(_row(results[-1], k) for k in results[-1].blows), sep="\n", flush=True)
            print(*results[-1].problems, sep="\n", flush=True)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(describe(results, f"python {shlex.join(sys.argv)}"))
    return results


def main() -> int:
    """Run all moments; the exit code says whether every sweep came out the same."""
    arguments = _parse_arguments()
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        work = (arguments.work or Path(temporary) / "work").absolute()
        work.mkdir(parents=True)
        results = _run_all(arguments, work)
    return int(any(result.problems for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
