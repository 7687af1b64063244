"""The command `lorchestra`.

Exit codes: 0 done, 1 the command failed, 2 the input cannot work, 3 trained but not all is in
MLflow; interrupted: 130 by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

# Imports that take no time; each subcommand imports the rest.
from orchestrator.adapters.commands import add_adapter_commands, add_runs_option, tracking_uri_of
from orchestrator.errors import SweepError, SweepSpecError, storage_fault
from orchestrator.interrupts import ignore_signals, interrupt_on, raise_swallowed
from orchestrator.sweepfile.changes import add_set_option
from orchestrator.usage import add_completion_command, explain_commands
from orchestrator.wording import format_size, refusal
from registry.errors import RefError, RegistryError, RuleError
from trainables.errors import SpecError, TrialError

if TYPE_CHECKING:
    from orchestrator.journal.history import SweepHistory
    from orchestrator.spec.sweep import SweepSpec

# MLflow opens its pages for agents, which show neither trials nor the model registry.
_TRIALS_PAGE = "/#/experiments?workflowType=machine_learning"
_FOLDER_HELP = "the sweep's folder, such as runs/NAME or s3://bucket/NAME"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    options = _build_parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except (SweepSpecError, SpecError, RefError, RuleError) as error:
        return _complain(error, code=2)
    except (SweepError, TrialError, RegistryError) as error:
        return _complain(error, code=1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of the output, such as `head`, is gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        fault = storage_fault("the command", str(error))
        if fault is None:
            raise
        return _complain(fault, code=1)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint about a mistyped word begins with the word that was meant."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the complaint; exit with 2."""
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            near = difflib.get_close_matches(choice[1], re.findall(r"[\w-]+", choice[2]), n=1)
            if near:
                message = f"did you mean {near[0]}? {message}"
        super().error(message)


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lorchestra",
        description="Finds the best QLoRA adapter for a task and keeps it in a registry.",
        epilog="Example: lorchestra run sweeps/quickstart.yaml. Exit codes: 0 done; 1 it did not "
        "work out; 2 the input cannot work; 3 trained, but not all is in MLflow; 130, 143, 129 "
        "interrupted.",
    )
    version = importlib.metadata.version("lorchestra")
    parser.add_argument("--version", action="version", version=f"lorchestra {version}")
    parser.set_defaults(command=lambda options: print(parser.format_help()) or 0)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    run = commands.add_parser("run", help="start a sweep, or continue it")
    run.add_argument("sweep", metavar="SWEEP.yaml", type=Path)
    run.add_argument("--storage", help=f"{_FOLDER_HELP} (default: runs/NAME)")
    add_set_option(run)
    run.set_defaults(command=_run)

    resume = commands.add_parser("resume", help="continue the sweep in a folder")
    resume.add_argument("storage", metavar="FOLDER", help=_FOLDER_HELP)
    resume.set_defaults(command=_resume)

    stop = commands.add_parser("stop", help="end one trial of a sweep, from another terminal")
    stop.add_argument("storage", metavar="FOLDER", help=_FOLDER_HELP)
    stop.add_argument("trial", metavar="TRIAL", type=int, help="its number")
    stop.set_defaults(command=_leave_request)

    cancel = commands.add_parser("cancel", help="end a sweep, from another terminal")
    cancel.add_argument("storage", metavar="FOLDER", help=_FOLDER_HELP)
    cancel.set_defaults(command=_leave_request, trial=None)

    status = commands.add_parser("status", help="progress and results of a sweep, from its folder")
    status.add_argument("storage", metavar="FOLDER", help=_FOLDER_HELP)
    status.set_defaults(command=_status)

    adapters = commands.add_parser(
        "adapters", help="versions in the registry: list, show, promote, …"
    )
    verbs = adapters.add_subparsers(required=True, metavar="VERB")
    add_adapter_commands(verbs)

    prune = commands.add_parser("prune", help="remove files that an ended sweep no longer needs")
    prune.add_argument("storage", metavar="FOLDER", help=_FOLDER_HELP)
    prune.add_argument(
        "--keep", type=int, default=0, metavar="N", help="also keep the best N trials"
    )
    prune.add_argument("--bundles", action="store_true", help="also remove adapters of losers")
    prune.add_argument("--yes", action="store_true", help="remove; without this, only list")
    prune.set_defaults(command=_prune)

    ui = commands.add_parser("ui", help="serve the MLflow UI for all sweeps in a folder")
    ui.add_argument("--port", type=int, default=5000)
    ui.set_defaults(command=_ui)

    add_runs_option(ui)
    add_completion_command(commands, parser)
    explain_commands(parser)
    return parser


def _run(options: argparse.Namespace) -> int:
    from orchestrator.spec.sweep import SweepSpec

    again = ["lorchestra", "run", str(options.sweep)]
    if options.storage:
        again += ["--storage", str(options.storage)]
    again += [word for change in options.set for word in ("--set", change)]
    return _run_to_end(SweepSpec.from_yaml(options.sweep, options.set), options.storage, again)


def _resume(options: argparse.Namespace) -> int:
    from orchestrator.spec.sweep import parse_sweep

    history = _read_history(options, "resume")
    spec = parse_sweep(history.spec or {}, Path.cwd())
    return _run_to_end(spec, options.storage, ["lorchestra", "resume", str(options.storage)])


def _run_to_end(spec: SweepSpec, storage: str | None, again: list[str]) -> int:
    console = Console(file=sys.stdout)
    interrupt_on(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        # Importing Ray, MLflow and Optuna takes seconds: show the first line before, and allow
        # interrupts during the import.
        console.print(
            f"lorchestra: sweep {spec.name}, {spec.budget.trials} trials", highlight=False
        )
        from orchestrator.report.summary import render_summary
        from orchestrator.run import run_sweep

        raise_swallowed()  # a library may have caught the interrupt as a failed import
        report = run_sweep(spec, storage, console=console)
    except KeyboardInterrupt:
        by = ignore_signals()
        with suppress(OSError):  # the terminal may be gone
            print(
                f"\ninterrupted; nothing recorded is lost. Go on with: {shlex.join(again)}",
                flush=True,
            )
        return 128 + by
    ignore_signals()  # all that was asked for is done
    console.print(render_summary(report))
    if report.status == "cancelled":
        print(f"Go on with: {shlex.join(again)}")
        return 1
    if report.undelivered:
        print(f"{report.undelivered}. Finish it with: {shlex.join(again)}")
        return 3
    return 0


def _status(options: argparse.Namespace) -> int:
    from orchestrator.journal.sweep_storage import SweepStorage
    from orchestrator.report.report import build_report
    from orchestrator.report.summary import render_summary
    from orchestrator.spec.sweep import recorded_sweep

    history = _read_history(options, "status")
    spec = recorded_sweep(history.spec or {})
    Console().print(
        render_summary(build_report(spec, history, SweepStorage(options.storage).folder))
    )
    return 0


def _leave_request(options: argparse.Namespace) -> int:
    """Ask the sweep's driver to stop one trial, or to cancel the sweep."""
    from orchestrator.journal.requests import cancel_sweep, stop_trial
    from orchestrator.journal.sweep_storage import SweepStorage

    _read_history(options, "cancel" if options.trial is None else "stop")
    storage = SweepStorage(options.storage)
    answer = cancel_sweep(storage) if options.trial is None else stop_trial(storage, options.trial)
    print(answer)
    return 0


def _read_history(options: argparse.Namespace, command: str) -> SweepHistory:
    from orchestrator.journal.sweep_storage import read_history

    history = read_history(options.storage)
    if history.sweep_id is None:
        raise SweepSpecError(
            refusal(
                command,
                options.storage,
                "a sweep's storage folder such as runs/NAME",
                "Run a sweep first.",
                flaw="which holds no sweep",
            )
        )
    return history


def _prune(options: argparse.Namespace) -> int:
    from orchestrator.journal.sweep_storage import SweepStorage

    history, storage = _read_history(options, "prune"), SweepStorage(options.storage)
    from orchestrator.pruning import plan_pruning, prune, spec_at_end

    spec = spec_at_end(history)
    plan = plan_pruning(storage, history, spec, keep=options.keep, bundles=options.bundles)
    for item in plan.items:
        size = format_size(item.bytes)
        print(f"trial {item.trial:4}  {item.what:6}  {size:>12}  {item.why}")
    total = f"{len(plan.items)} folders, {format_size(plan.bytes)}"
    if options.yes and plan.items:
        prune(plan, storage, spec)
        print(f"removed {total}")
    else:
        note = "; nothing was removed: add --yes to do it" if plan.items else ""
        print(f"{total} can go{note}")
    return 0


def _ui(options: argparse.Namespace) -> int:
    from registry.tracking.server import serve_ui

    uri = tracking_uri_of(options)
    if not uri.startswith("sqlite:///"):
        print(f"the MLflow UI is at {uri}")
        return 0
    print("starting the MLflow UI, which takes half a minute; Ctrl-C ends it", flush=True)
    interrupt_on(signal.SIGTERM)
    try:
        with serve_ui(Path(uri.removeprefix("sqlite:///")), options.port) as server:
            print(f"http://127.0.0.1:{options.port}{_TRIALS_PAGE}", flush=True)
            return server.wait()
    except KeyboardInterrupt:
        return 0


def _complain(error: Exception, code: int) -> int:
    print(f"lorchestra: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
