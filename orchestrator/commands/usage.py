"""What the command line says of itself: examples, defaults, shell completion."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from typing import Any

EXAMPLES = {
    "init": "lorchestra init rows.jsonl --base HuggingFaceTB/SmolLM2-135M-Instruct",
    "check": "lorchestra check sweep.yaml --set optim.steps=80",
    "plan": "lorchestra plan sweep.yaml --gpu rtx4090",
    "doctor": "lorchestra doctor",
    "run": "lorchestra run sweep.yaml --set optim.steps=80",
    "resume": "lorchestra resume runs/NAME",
    "stop": "lorchestra stop runs/NAME 5",
    "cancel": "lorchestra cancel runs/NAME",
    "submit": "lorchestra submit sweep.yaml --namespace lorchestra --watch",
    "logs": "lorchestra logs NAME --namespace lorchestra --follow",
    "status": "lorchestra status runs/NAME",
    "report": "lorchestra report runs/NAME --out report",
    "prune": "lorchestra prune runs/NAME --bundles --keep 3 --yes",
    "ui": "lorchestra ui --port 5000",
    "completion": 'eval "$(lorchestra completion bash)"',
    "adapters": "lorchestra adapters list",
    "adapters list": "lorchestra adapters list NAME --json",
    "adapters show": "lorchestra adapters show NAME@champion",
    "adapters pull": "lorchestra adapters pull NAME/3 --to ./adapter",
    "adapters compare": "lorchestra adapters compare NAME/2 NAME/3 --html page.html",
    "adapters evaluate": "lorchestra adapters evaluate NAME/3 --data rows.jsonl",
    "adapters shrink": "lorchestra adapters shrink NAME/3 --ranks 4,8 --data rows.jsonl",
    "adapters promote": "lorchestra adapters promote NAME/3 --metric accuracy",
    "adapters retire": 'lorchestra adapters retire NAME/2 --why "trained on wrong rows"',
    "adapters unretire": "lorchestra adapters unretire NAME/2",
    "adapters rollback": 'lorchestra adapters rollback NAME --why "users complained"',
    "adapters history": "lorchestra adapters history NAME",
    "adapters clean": "lorchestra adapters clean --yes",
}
"""An example for each command, without `lorchestra`."""

SHELLS = ("bash", "zsh")

_BASH = """\
_lorchestra() {{
  local words="" before="${{COMP_WORDS[*]:1:COMP_CWORD-1}}" word
  local path="" current="${{COMP_WORDS[COMP_CWORD]}}"
  for word in $before; do
    case "$path $word" in
{paths}
    esac
  done
  case "$path" in
{words}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current") $(compgen -f -- "$current"))
}}
complete -o filenames -F _lorchestra lorchestra
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def explain_commands(parser: argparse.ArgumentParser) -> None:
    """Add to each command's help its example, and to each option its default."""
    for path, command in _commands(parser):
        example = EXAMPLES.get(path)
        if example and not command.epilog:
            command.epilog = f"Example: {example}"
        for action in command._actions:
            _say_default(action)


def _say_default(action: argparse.Action) -> None:
    """Append the default to the help of an option that has one and does not say it."""
    takes_value = action.option_strings and action.nargs != 0
    if not takes_value or action.required or action.default in (None, "", (), []):
        return
    said = action.help or ""
    if "default" not in said:
        default = str(action.default).replace("%", "%%")
        action.help = f"{said} (default: {default})".strip()


def _commands(
    parser: argparse.ArgumentParser, path: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each command below a parser, by its words."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                below = f"{path} {name}".strip()
                yield below, command
                yield from _commands(command, below)


def add_completion_command(
    commands: argparse._SubParsersAction[Any], root: argparse.ArgumentParser
) -> None:
    """Add `completion`, which prints a script for a shell."""
    completion = commands.add_parser("completion", help="print a completion script for a shell")
    completion.add_argument("shell", choices=SHELLS)

    def write(options: argparse.Namespace) -> int:
        print(completion_script(root, options.shell), end="")
        return 0

    completion.set_defaults(command=write)


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """A script that completes commands, options and files in a shell."""
    found = [("", parser), *_commands(parser)]
    paths = "\n".join(
        f'      "{_joined(path)}") path="{_joined(path)}";;' for path, _ in found[1:]
    )
    words = "\n".join(
        f'    "{_joined(path)}") words={shlex.quote(" ".join(_words_of(command)))};;'
        for path, command in found
    )
    return (_ZSH if shell == "zsh" else "") + _BASH.format(paths=paths, words=words)


def _joined(path: str) -> str:
    return f" {path}" if path else ""


def _words_of(command: argparse.ArgumentParser) -> Iterator[str]:
    """Words that may follow a command: its commands or choices, and its options."""
    for action in command._actions:
        yield from action.option_strings
        if not action.option_strings and action.choices is not None:
            yield from map(str, action.choices)
