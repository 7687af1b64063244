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
from orchestrator.interrupts import ignore_signals, interrupt_on, leave_at_once, raise_swallowed
from orchestrator.live.screen import CHECKING, loading
from orchestrator.preflight.commands import add_preflight_commands
from orchestrator.sweepfile.changes import add_set_option
from orchestrator.usage import add_completion_command, explain_commands
from orchestrator.wording import format_size, refusal
from registry.errors import RefError, RegistryError, RuleError
from trainables.errors import SpecError, TrialError

if TYPE_CHECKING:
    from orchestrator.journal.history import SweepHistory
    from orchestrator.preflight.prepared import PreparedSweep
    from orchestrator.spec.sweep import SweepSpec

# Without `workflowType`, MLflow opens its pages for agents, which show neither trials nor models.
_EXPERIMENTS_PAGE = "/#/experiments?workflowType=machine_learning"
_MODELS_PAGE = "/#/models?workflowType=machine_learning"
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
    _add_plain_option(run)
    add_set_option(run)
    run.set_defaults(command=_run)

    resume = commands.add_parser("resume", help="continue the sweep in a folder")
    resume.add_argument("storage", metavar="FOLDER", help=_FOLDER_HELP)
    _add_plain_option(resume)
    resume.set_defaults(command=_resume)

    add_preflight_commands(commands)

    stop = commands.add_parser("stop", help="end one trial of a sweep, from another terminal")
    stop.add_argument("storage", metavar="FOLDER", help=_FOLDER_HELP)
    stop.add_argument("trial", metavar="TRIAL", type=int, help="its number")
    stop.set_defaults(command=_leave_request)

    cancel = commands.add_parser("cancel", help="end a sweep, from another terminal")
    cancel.add_argument("storage", metavar="FOLDER", help=_FOLDER_HELP)
    cancel.set_defaults(command=_leave_request, trial=None)

    status = commands.add_parser("status", help="progress and results of a sweep, from its folder")
    status.add_argument("storage", metavar="FOLDER", help=_FOLDER_HELP)
    status.add_argument("--follow", action="store_true", help="until the sweep ends")
    status.add_argument("--json", action="store_true", help="as one JSON document")
    _add_plain_option(status)
    status.set_defaults(command=_status)

    report = commands.add_parser("report", help="write the report of a sweep again")
    report.add_argument("storage", metavar="FOLDER", help=_FOLDER_HELP)
    report.add_argument("--out", type=Path, help="folder to write (default: FOLDER/report)")
    report.set_defaults(command=_report)

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


def _add_plain_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plain",
        action="store_true",
        help="one line for each thing that happens, with its time and without control codes "
        "(default: when the output is no terminal)",
    )


def _open_console(options: argparse.Namespace) -> Console:
    return Console(file=sys.stdout, force_terminal=False if options.plain else None)


def _run(options: argparse.Namespace) -> int:
    from orchestrator.spec.sweep import SweepSpec

    again = ["lorchestra", "run", str(options.sweep)]
    if options.storage:
        again += ["--storage", str(options.storage)]
    again += [word for change in options.set for word in ("--set", change)]
    return _run_to_end(SweepSpec.from_yaml(options.sweep, options.set), options, again)


def _resume(options: argparse.Namespace) -> int:
    from orchestrator.spec.sweep import parse_sweep

    history = _read_history(options, "resume")
    spec = parse_sweep(history.spec or {}, Path.cwd())
    return _run_to_end(spec, options, ["lorchestra", "resume", str(options.storage)])


def _run_to_end(spec: SweepSpec, options: argparse.Namespace, again: list[str]) -> int:
    console = _open_console(options)
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


def _status(options: argparse.Namespace) -> int:
    from orchestrator.live.status import follow_sweep, print_status, status_json

    _read_history(options, "status")
    if options.follow:
        is_completed = follow_sweep(options.storage, _open_console(options))
        return 0 if is_completed else 1
    if options.json:
        print(status_json(options.storage))
    else:
        print_status(options.storage, _open_console(options))
    return 0


def _report(options: argparse.Namespace) -> int:
    from orchestrator.pages.files import rebuild_report
    from orchestrator.report.summary import render_verdict

    report, files = rebuild_report(_read_history(options, "report"), options.storage, options.out)
    Console().print(render_verdict(report))
    for file in files:
        print(file)
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
    from registry.tracking.server import pages_address, serve_ui

    uri = tracking_uri_of(options)
    if not uri.startswith("sqlite:///"):
        print(f"the MLflow UI is at {uri}")
        _print_pages(uri, uri, may_save=False)
        return 0
    print("starting the MLflow UI, which takes half a minute; Ctrl-C ends it", flush=True)
    interrupt_on(signal.SIGTERM)
    try:
        with serve_ui(Path(uri.removeprefix("sqlite:///")), options.port) as server:
            _print_pages(uri, pages_address(options.port), may_save=True)
            print(f"If your browser does not know that host: http://127.0.0.1:{options.port}",
                  flush=True)  # fmt: skip
            return server.wait()
    except KeyboardInterrupt:
        return 0


def _print_pages(uri: str, address: str, *, may_save: bool) -> None:
    """Print the addresses of the newest sweeps' trials, of all experiments and of the adapters."""
    from orchestrator.metrics import TRIAL_METRICS
    from registry.tracking.connection import connect, without_secrets
    from registry.tracking.experiments import SWEEPS_EXPERIMENT
    from registry.tracking.views import newest_links

    modes = {str(name): metric.mode for name, metric in TRIAL_METRICS.items()}
    for links in newest_links(connect(uri), SWEEPS_EXPERIMENT, address, modes, may_save=may_save):
        print(*links.lines, sep="\n")
    address = without_secrets(address).rstrip("/")
    print(f"  all experiments: {address}{_EXPERIMENTS_PAGE}")
    print(f"  adapters and their versions: {address}{_MODELS_PAGE}", flush=True)


def _complain(error: Exception, code: int) -> int:
    print(f"lorchestra: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
