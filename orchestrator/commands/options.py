"""Options and checks that several commands share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.errors import SweepSpecError
from orchestrator.wording import refusal

if TYPE_CHECKING:
    from orchestrator.cluster.api import Kube
    from orchestrator.journal.history import SweepHistory

FOLDER_HELP = "the sweep's folder, such as runs/NAME or s3://bucket/NAME"
SWEEP_HELP = f"{FOLDER_HELP}; with --namespace its name"


def add_plain_option(parser: argparse.ArgumentParser) -> None:
    """Add `--plain`."""
    parser.add_argument(
        "--plain",
        action="store_true",
        help="one line for each thing that happens, with its time and without control codes "
        "(default: when the output is no terminal)",
    )


def add_cluster_options(parser: argparse.ArgumentParser, *, is_required: bool = False) -> None:
    """Add `--namespace`, `--context` and `--kubeconfig`.

    Args:
        parser: The command's parser.
        is_required: Whether the command is for Kubernetes alone.
    """
    told = "the sweep is a RayJob in this namespace" if not is_required else "of the platform"
    parser.add_argument("--namespace", "-n", metavar="NS", required=is_required, help=told)
    parser.add_argument("--context", help="of the kubeconfig (default: the current one)")
    parser.add_argument(
        "--kubeconfig", metavar="FILE", type=Path, help="default: $KUBECONFIG, ~/.kube/config"
    )


def open_cluster(options: argparse.Namespace) -> Kube | None:
    """The namespace that the options name; `None` for a sweep in a folder.

    Raises:
        SweepSpecError: There is no such context, or the namespace is missing.
        ClusterError: The package kubernetes is not installed.
    """
    if options.namespace is None:
        given = [name for name in ("context", "kubeconfig") if getattr(options, name) is not None]
        if given:
            raise SweepSpecError(
                f"--{given[0]}: given without --namespace; allowed: both, or neither. Name the "
                "namespace of the sweep."
            )
        return None
    from orchestrator.cluster.api import connect

    return connect(options.namespace, options.kubeconfig, options.context)


def open_console(options: argparse.Namespace) -> Console:
    """The console of standard output; with `--plain`, never treated as a terminal."""
    return Console(file=sys.stdout, force_terminal=False if options.plain else None)


def read_sweep(options: argparse.Namespace, command: str) -> SweepHistory:
    """The history of the sweep in the named folder.

    Args:
        options: Options with the folder, `storage`.
        command: Name of the command, for the error.

    Raises:
        SweepSpecError: The folder holds no sweep.
        SweepStorageError: The folder cannot be read.
    """
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


def tell_line(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)
