"""Options and checks that several commands share."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.errors import SweepSpecError
from orchestrator.wording import refusal

if TYPE_CHECKING:
    from orchestrator.journal.history import SweepHistory

FOLDER_HELP = "the sweep's folder, such as runs/NAME or s3://bucket/NAME"


def add_plain_option(parser: argparse.ArgumentParser) -> None:
    """Add `--plain`."""
    parser.add_argument(
        "--plain",
        action="store_true",
        help="one line for each thing that happens, with its time and without control codes "
        "(default: when the output is no terminal)",
    )


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
