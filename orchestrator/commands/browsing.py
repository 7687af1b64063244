"""`lorchestra ui`: MLflow's pages, with links to the trials of each sweep."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import Any

from orchestrator.adapters.commands import add_runs_option, tracking_uri_of
from orchestrator.interrupts import interrupt_on

# Without `workflowType`, MLflow opens its pages for agents, which show neither trials nor models.
_EXPERIMENTS_PAGE = "/#/experiments?workflowType=machine_learning"
_MODELS_PAGE = "/#/models?workflowType=machine_learning"


def add_browsing_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add a parser for the command."""
    ui = commands.add_parser("ui", help="serve the MLflow UI for all sweeps in a folder")
    ui.add_argument("--port", type=int, default=5000)
    add_runs_option(ui)
    ui.set_defaults(command=_ui)


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
