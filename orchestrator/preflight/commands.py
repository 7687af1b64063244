"""The commands `lorchestra init`, `check`, `plan` and `doctor`."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.adapters.commands import add_runs_option
from orchestrator.capacity.hardware import GPUS
from orchestrator.errors import SweepError
from orchestrator.sweepfile.changes import add_set_option
from registry.errors import RegistryError
from trainables.errors import TrialError

if TYPE_CHECKING:
    from orchestrator.preflight.checking import CheckedSweep


def add_preflight_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add a parser for each command."""
    init = commands.add_parser(
        "init",
        help="write a sweep file for your rows",
        description="Looks at rows, base and machine, and writes a short sweep file with the "
        "reason beside each choice. An existing file is never replaced.",
        epilog="Example: lorchestra init rows.jsonl --base HuggingFaceTB/SmolLM2-135M-Instruct.",
    )
    init.add_argument("rows", metavar="ROWS", help="a file, a folder, a glob or a hub dataset")
    init.add_argument("--base", help="hub id, folder or .gguf file (default: one that fits here)")
    init.add_argument("--out", type=Path, metavar="FILE", help="default: NAME.yaml, after ROWS")
    init.set_defaults(command=_init)

    check = commands.add_parser(
        "check",
        help="check a sweep without starting it, and say what it will do",
        description="Checks all that `run` checks before Ray: file, rows, base, targets, MLflow, "
        "storage, budget. Nothing is trained, downloaded beyond the base's configuration, or "
        "registered.",
        epilog="Example: lorchestra check sweeps/quickstart.yaml. Exit codes: 0 the sweep can "
        "start; 1 something it needs is missing; 2 the file or the rows cannot work.",
    )
    check.add_argument("sweep", metavar="SWEEP.yaml", type=Path)
    check.add_argument("--storage", help="the sweep's folder or s3:// prefix (default: runs/NAME)")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    add_set_option(check)
    check.set_defaults(command=_check)

    plan = commands.add_parser(
        "plan",
        help="say what a sweep needs: memory, seats, hours, money",
        description="Forecasts the memory of a sweep's configurations, what does not fit a GPU "
        "and what would, the seats of a GPU, and the hours. It reads the file, the rows and the "
        "sizes of the bases; it starts nothing, and needs neither a GPU nor MLflow.",
        epilog="Example: lorchestra plan sweeps/quickstart.yaml --gpu rtx4090. Exit codes: 0 some "
        "configuration fits; 1 none does; 2 the file or the rows cannot work.",
    )
    plan.add_argument("sweep", metavar="SWEEP.yaml", type=Path)
    plan.add_argument(
        "--gpu", metavar="GPU", help=f"one of {', '.join(GPUS)} (default: this machine)"
    )
    plan.add_argument("--json", action="store_true", help="print one JSON object")
    plan.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        help="folder of earlier sweeps, for their speeds",
    )
    add_set_option(plan)
    plan.set_defaults(command=_plan)

    doctor = commands.add_parser(
        "doctor",
        help="say what works on this machine, and what to do about the rest",
        description="Looks at versions, CPU, GPU, memory, disk, storage, MLflow, Ray, the model "
        "hub and 4-bit layers. It takes some seconds and changes nothing.",
        epilog="Example: lorchestra doctor. Exit codes: 0 sweeps can run; 1 something they need "
        "fails.",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    add_runs_option(doctor)
    doctor.set_defaults(command=_doctor)


def _init(options: argparse.Namespace) -> int:
    from orchestrator.preflight.starting import start_sweep

    started = start_sweep(options.rows, options.base, options.out)
    print("\n".join(started.lines))
    print(f"Written: {started.file}. Every choice in it has its reason beside it.")
    print(f"Next: {shlex.join(['lorchestra', 'check', str(started.file)])}")
    print(f"Then: {shlex.join(['lorchestra', 'run', str(started.file)])}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from orchestrator.preflight.doctor import as_table, examine, to_values

    findings = examine(options.runs)
    values = to_values(findings)
    if options.json:
        print(json.dumps(values, ensure_ascii=False))
    else:
        print("\n".join(as_table(findings)))
    return 0 if values["ok"] else 1


def _plan(options: argparse.Namespace) -> int:
    from orchestrator.preflight.looking_ahead import plan_ahead
    from orchestrator.spec.sweep import SweepSpec

    try:
        spec = SweepSpec.from_yaml(options.sweep, options.set)
        outlook = plan_ahead(spec, options.gpu, options.runs)
    except (SweepError, TrialError) as error:
        if options.json:
            print(json.dumps({"ok": False, "error": str(error)}))
        raise
    if options.json:
        print(json.dumps({"ok": outlook.fits, **outlook.to_dict()}, ensure_ascii=False))
    else:
        print(*outlook.lines(), sep="\n")
    return 0 if outlook.fits else 1


def _check(options: argparse.Namespace) -> int:
    from orchestrator.preflight.checking import check_sweep
    from orchestrator.spec.sweep import SweepSpec

    try:
        checked = check_sweep(SweepSpec.from_yaml(options.sweep, options.set), options.storage)
    except (SweepError, TrialError, RegistryError) as error:
        if options.json:
            print(json.dumps({"ok": False, "error": str(error)}))
        raise
    if options.json:
        print(json.dumps({"ok": True, **checked.to_dict()}, ensure_ascii=False, default=str))
        return 0
    _show_checked(checked, options)
    return 0


def _show_checked(checked: CheckedSweep, options: argparse.Namespace) -> None:
    for line in checked.lines:
        print(line)
    again = ["lorchestra", "run", str(options.sweep)]
    if options.storage:
        again += ["--storage", str(options.storage)]
    again += [word for change in options.set for word in ("--set", change)]
    print(f"No mistake was found. Start with: {shlex.join(again)}")
