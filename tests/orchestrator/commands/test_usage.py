"""What the command line says of itself is whole and true."""

import shlex
import subprocess

import pytest

from orchestrator.cli import _build_parser, main
from orchestrator.commands.usage import EXAMPLES, _commands, completion_script


def test_each_command_has_an_example_that_it_takes() -> None:
    parser = _build_parser()
    commands = dict(_commands(parser))
    assert len(commands) > 15
    assert [path for path in commands if path not in EXAMPLES] == []
    for path, example in EXAMPLES.items():
        words = shlex.split(example.removeprefix('eval "$(').removesuffix(')"'))
        assert " ".join(words[1:]).startswith(path)
        assert parser.parse_args(words[1:]).command
        assert "Example: lorchestra" in commands[path].format_help() or path == "completion"


def test_help_says_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["adapters", "promote", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "level of the interval of the difference (default: 0.95)" in said
    assert "required improvement over the champion (default: 0.0)" in said
    assert said.count("default: loss") == 1


def completions(line: str) -> set[str]:
    """What bash completes at the end of a line."""
    words = line.split(" ")
    array = " ".join(map(shlex.quote, words))
    script = completion_script(_build_parser(), "bash")
    ask = (
        f'COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _lorchestra; echo "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def test_the_shell_completes_commands_and_options() -> None:
    assert {"run", "resume"} <= completions("lorchestra r")
    assert completions("lorchestra adapters comp") == {"compare"}
    assert completions("lorchestra adapters compare NAME/1 --h") == {"--help", "--html"}
    assert completions("lorchestra run sweep.yaml --set seed=1 --st") == {"--storage"}
    assert completions("lorchestra completion z") == {"zsh"}
    assert completion_script(_build_parser(), "zsh").startswith("autoload")
