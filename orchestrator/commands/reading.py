"""`lorchestra status` and `report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.commands.options import (
    FOLDER_HELP,
    SWEEP_HELP,
    add_cluster_options,
    add_plain_option,
    open_cluster,
    open_console,
    read_sweep,
    tell_line,
)


def add_reading_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add a parser for each command."""
    status = commands.add_parser("status", help="progress and results of a sweep, from its folder")
    status.add_argument("storage", metavar="FOLDER", help=SWEEP_HELP)
    status.add_argument("--follow", action="store_true", help="until the sweep ends")
    status.add_argument("--json", action="store_true", help="as one JSON document")
    add_plain_option(status)
    add_cluster_options(status)
    status.set_defaults(command=_status)

    report = commands.add_parser("report", help="write the report of a sweep again")
    report.add_argument("storage", metavar="FOLDER", help=FOLDER_HELP)
    report.add_argument("--out", type=Path, help="folder to write (default: FOLDER/report)")
    report.set_defaults(command=_report)


def _status(options: argparse.Namespace) -> int:
    kube = open_cluster(options)
    if kube is not None:
        from orchestrator.cluster.looking import show_status

        return show_status(
            kube,
            options.storage,
            tell_line,
            is_followed=options.follow,
            is_json=options.json,
        )
    from orchestrator.live.status import follow_sweep, print_status, status_json

    read_sweep(options, "status")
    if options.follow:
        is_completed = follow_sweep(options.storage, open_console(options))
        return 0 if is_completed else 1
    if options.json:
        print(status_json(options.storage))
    else:
        print_status(options.storage, open_console(options))
    return 0


def _report(options: argparse.Namespace) -> int:
    from orchestrator.pages.files import rebuild_report
    from orchestrator.report.summary import render_verdict

    report, files = rebuild_report(read_sweep(options, "report"), options.storage, options.out)
    Console().print(render_verdict(report))
    for file in files:
        print(file)
    return 0
