"""`lorchestra stop`, `cancel` and `prune`: what is done to a sweep in a folder."""

from __future__ import annotations

import argparse
from typing import Any

from orchestrator.commands.options import (
    FOLDER_HELP,
    SWEEP_HELP,
    add_cluster_options,
    open_cluster,
    read_sweep,
)
from orchestrator.wording import format_size


def add_steering_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add a parser for each command."""
    stop = commands.add_parser("stop", help="end one trial of a sweep, from another terminal")
    stop.add_argument("storage", metavar="FOLDER", help=SWEEP_HELP)
    stop.add_argument("trial", metavar="TRIAL", type=int, help="its number")
    add_cluster_options(stop)
    stop.set_defaults(command=_leave_request)

    cancel = commands.add_parser("cancel", help="end a sweep, from another terminal")
    cancel.add_argument("storage", metavar="FOLDER", help=SWEEP_HELP)
    add_cluster_options(cancel)
    cancel.set_defaults(command=_leave_request, trial=None)

    prune = commands.add_parser("prune", help="remove files that an ended sweep no longer needs")
    prune.add_argument("storage", metavar="FOLDER", help=FOLDER_HELP)
    prune.add_argument(
        "--keep", type=int, default=0, metavar="N", help="also keep the best N trials"
    )
    prune.add_argument("--bundles", action="store_true", help="also remove adapters of losers")
    prune.add_argument("--yes", action="store_true", help="remove; without this, only list")
    prune.set_defaults(command=_prune)


def _leave_request(options: argparse.Namespace) -> int:
    """Ask the sweep's driver to stop one trial, or to cancel the sweep."""
    kube = open_cluster(options)
    if kube is not None:
        from orchestrator.cluster.steering import cancel_job, stop_in_job

        name, trial = options.storage, options.trial
        print(cancel_job(kube, name) if trial is None else stop_in_job(kube, name, trial))
        return 0
    from orchestrator.journal.requests import cancel_sweep, stop_trial
    from orchestrator.journal.sweep_storage import SweepStorage

    read_sweep(options, "cancel" if options.trial is None else "stop")
    storage = SweepStorage(options.storage)
    answer = cancel_sweep(storage) if options.trial is None else stop_trial(storage, options.trial)
    print(answer)
    return 0


def _prune(options: argparse.Namespace) -> int:
    from orchestrator.journal.sweep_storage import SweepStorage

    history, storage = read_sweep(options, "prune"), SweepStorage(options.storage)
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
