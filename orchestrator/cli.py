"""The command `lorchestra`.

Exit codes: 0 done, 1 the command failed, 2 the input cannot work, 3 trained but not all is in
MLflow; interrupted: 130 by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import importlib.metadata
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

# Imports that take no time; each command imports the rest.
from orchestrator.adapters.commands import add_adapter_commands
from orchestrator.commands.browsing import add_browsing_command
from orchestrator.commands.reading import add_reading_commands
from orchestrator.commands.running import add_running_commands
from orchestrator.commands.steering import add_steering_commands
from orchestrator.commands.submitting import add_cluster_commands
from orchestrator.commands.usage import add_completion_command, explain_commands
from orchestrator.errors import SweepError, SweepSpecError, storage_fault
from orchestrator.preflight.commands import add_preflight_commands
from registry.errors import RefError, RegistryError, RuleError
from trainables.errors import SpecError, TrialError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    # Imports make many objects that stay: looking for garbage among them takes a fifth of a
    # short command's time.
    gc.set_threshold(50_000)
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

    add_running_commands(commands)
    add_preflight_commands(commands)

    add_reading_commands(commands)
    add_steering_commands(commands)
    add_cluster_commands(commands)
    adapters = commands.add_parser(
        "adapters", help="versions in the registry: list, show, promote, …"
    )
    verbs = adapters.add_subparsers(required=True, metavar="VERB")
    add_adapter_commands(verbs)

    add_browsing_command(commands)
    add_completion_command(commands, parser)
    explain_commands(parser)
    return parser


def _complain(error: Exception, code: int) -> int:
    print(f"lorchestra: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
