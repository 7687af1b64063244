"""Libraries talk to a file, the product to the terminal."""

import io
import logging
import sys
import warnings

import pytest
from rich.console import Console

from orchestrator.quiet import (
    OWN,
    hush_noisy_loggers,
    library_chatter_held,
    library_chatter_to,
)


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    kept = root.handlers[:], root.level
    yield root
    root.handlers[:], level = kept
    root.setLevel(level)


def test_what_libraries_say_goes_to_the_file(tmp_path, capsys, root_logger):
    file = tmp_path / "new" / "sweep.log"
    with library_chatter_to(file):
        print("a print")  # noqa: T201  what Ray does
        print("an error", file=sys.stderr)  # noqa: T201
        logging.getLogger("some.library").warning("a warning of %s", "theirs")
        logging.getLogger("some.library").info("a detail")
        logging.getLogger("orchestrator.search.searcher").info("our detail")
    text = file.read_text()
    assert "a print\n" in text
    assert "an error\n" in text
    assert "WARNING some.library: a warning of theirs" in text
    assert "INFO orchestrator.search.searcher: our detail" in text
    assert "a detail" not in text.replace("our detail", "")
    assert capsys.readouterr() == ("", "")


def test_python_warnings_go_to_the_file(tmp_path, capsys, root_logger):
    with library_chatter_to(tmp_path / "log"), warnings.catch_warnings():
        warnings.simplefilter("always")
        # As outside of a test: pytest's own way of showing is put aside by captureWarnings.
        warnings.warn("mind this", UserWarning, stacklevel=1)
    assert "UserWarning: mind this" in (tmp_path / "log").read_text()
    assert capsys.readouterr().err == ""


def test_a_console_made_before_still_writes_to_its_stream(tmp_path, root_logger):
    stream = io.StringIO()
    console = Console(file=stream)
    with library_chatter_to(tmp_path / "log"):
        console.print("ours")
    assert stream.getvalue() == "ours\n"
    assert (tmp_path / "log").read_text() == ""


def test_what_was_said_before_there_was_a_file_comes_first(tmp_path, capsys, root_logger):
    with library_chatter_held() as said:
        print("early", file=sys.stderr)  # noqa: T201
        logging.getLogger("some.library").warning("a warning")
    with library_chatter_to(tmp_path / "log", said.getvalue()):
        print("late")  # noqa: T201
    lines = (tmp_path / "log").read_text().splitlines()
    assert (lines[0], lines[1][-9:], lines[2]) == ("early", "a warning", "late")
    assert capsys.readouterr() == ("", "")


def test_a_second_run_adds_to_the_file(tmp_path, root_logger):
    for word in ("first", "second"):
        with library_chatter_to(tmp_path / "log"):
            print(word)  # noqa: T201
    assert (tmp_path / "log").read_text() == "first\nsecond\n"


@pytest.mark.parametrize("error", [None, KeyboardInterrupt], ids=["normal", "interrupted"])
def test_everything_is_as_before_afterwards(tmp_path, root_logger, error):
    def state():
        levels = [logging.getLogger(name).level for name in OWN]
        showing = warnings.showwarning
        return root_logger.handlers[:], root_logger.level, levels, showing, sys.stdout, sys.stderr

    before = state()
    if error is None:
        with library_chatter_to(tmp_path / "log"):
            assert state() != before
    else:
        with pytest.raises(error), library_chatter_to(tmp_path / "log"):
            raise error
    assert state() == before


def test_noisy_libraries_write_through_the_root_logger():
    noisy, other = logging.getLogger("ray.testing.noise"), logging.getLogger("rayon")
    for logger in (noisy, other):
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
    hush_noisy_loggers()
    assert (noisy.handlers, noisy.propagate) == ([], True)
    assert (len(other.handlers), other.propagate) == (1, False)
