"""`lorchestra run` and `resume`."""

from __future__ import annotations

import argparse
import shlex
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.commands.options import (
    FOLDER_HELP,
    SWEEP_HELP,
    add_cluster_options,
    add_plain_option,
    open_cluster,
    open_console,
    read_sweep,
)
from orchestrator.interrupts import ignore_signals, interrupt_on, leave_at_once, raise_swallowed
from orchestrator.live.screen import CHECKING, loading
from orchestrator.sweepfile.changes import add_set_option

if TYPE_CHECKING:
    from orchestrator.preflight.prepared import PreparedSweep
    from orchestrator.spec.sweep import SweepSpec


def add_running_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add a parser for each command."""
    run = commands.add_parser("run", help="start a sweep, or continue it")
    run.add_argument("sweep", metavar="SWEEP.yaml", type=Path)
    run.add_argument("--storage", help=f"{FOLDER_HELP} (default: runs/NAME)")
    add_plain_option(run)
    add_set_option(run)
    run.set_defaults(command=_run)

    resume = commands.add_parser("resume", help="continue the sweep in a folder")
    resume.add_argument("storage", metavar="FOLDER", help=SWEEP_HELP)
    add_plain_option(resume)
    add_cluster_options(resume)
    resume.set_defaults(command=_resume)


def _run(options: argparse.Namespace) -> int:
    from orchestrator.spec.sweep import SweepSpec

    again = ["lorchestra", "run", str(options.sweep)]
    if options.storage:
        again += ["--storage", str(options.storage)]
    again += [word for change in options.set for word in ("--set", change)]
    return _run_to_end(SweepSpec.from_yaml(options.sweep, options.set), options, again)


def _resume(options: argparse.Namespace) -> int:
    kube = open_cluster(options)
    if kube is not None:
        from orchestrator.cluster.steering import resume_job

        print(resume_job(kube, options.storage))
        return 0
    from orchestrator.spec.sweep import parse_sweep

    history = read_sweep(options, "resume")
    spec = parse_sweep(history.spec or {}, Path.cwd())
    return _run_to_end(spec, options, ["lorchestra", "resume", str(options.storage)])


def _run_to_end(spec: SweepSpec, options: argparse.Namespace, again: list[str]) -> int:
    console = open_console(options)
    go_on = f"Go on with: {shlex.join(again)}"
    interrupt_on(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, hint=go_on)
    try:
        # Importing Ray, MLflow and Optuna takes seconds: show the first line before, and allow
        # interrupts during the import.
        first_line = f"lorchestra: sweep {spec.name}, {spec.budget.trials} trials"
        with loading(console, first_line, CHECKING):
            prepared = _prepare(spec, options.storage)
            from orchestrator.report.summary import explain_unregistered, render_summary
            from orchestrator.run import run_prepared

        raise_swallowed()  # a library may have caught the interrupt as a failed import
        report = run_prepared(prepared, console)
    except KeyboardInterrupt:
        by = ignore_signals()
        with suppress(OSError):  # the terminal may be gone
            print(f"\ninterrupted; nothing recorded is lost. {go_on}", flush=True)
        leave_at_once(128 + by)
    ignore_signals()  # all that was asked for is done
    console.print(render_summary(report))
    if report.links is not None:
        print("In MLflow's pages, which `lorchestra ui` serves unless you have a server:")
        print(*report.links.lines, sep="\n")
    if report.status == "cancelled":
        print(go_on)
        return 1
    if report.undelivered:
        print(f"{report.undelivered}. Finish it with: {shlex.join(again)}")
        return 3
    if spec.register is None:
        print(explain_unregistered(spec.name, again))
    return 0


def _prepare(spec: SweepSpec, storage: str | None) -> PreparedSweep:
    """Check a sweep before Ray is imported."""

    def check_cluster() -> bool:
        from orchestrator.run import check_new_ray

        return check_new_ray()

    try:
        from orchestrator.preflight.prepared import prepare_sweep

        return prepare_sweep(spec, storage, check_cluster=check_cluster, may_stay_offline=True)
    finally:
        raise_swallowed()  # a library may have caught the interrupt
