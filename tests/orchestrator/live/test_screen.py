"""Where a sweep is shown: which screen fits a console, and what a notebook's cell gets."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from orchestrator.live.screen import (
    LogScreen,
    NotebookScreen,
    TerminalScreen,
    loading,
    open_screen,
    picture_as_html,
)


@pytest.mark.parametrize(
    ("options", "screen"),
    [
        ({"force_terminal": True}, TerminalScreen),
        ({"force_terminal": False}, LogScreen),
        ({"force_jupyter": True}, NotebookScreen),
    ],
)
def test_the_console_decides_the_screen(options, screen):
    console = Console(file=io.StringIO(), **options)
    assert type(open_screen(console, lambda width, height: Text())) is screen


def test_a_cell_gets_html_with_styles_inline_and_text_escaped():
    html = picture_as_html([Text("<b>", style="bold"), Text("trial 3")])
    assert '<span style="font-weight: bold">&lt;b&gt;</span>\ntrial 3' in html
    assert html.startswith("<pre style=")


def test_no_color_leaves_no_colour_in_the_picture(monkeypatch):
    def draw():
        console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
        screen = open_screen(console, lambda width, height: Text("failed", style="red"))
        screen.start()
        screen.stop()
        return console.file.getvalue()

    red = "\x1b[31m"
    assert red in draw()
    monkeypatch.setenv("NO_COLOR", "1")
    assert red not in draw()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_is_loaded_is_said_before_it_is(is_terminal):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80)
    with loading(console, "lorchestra: sweep tiny", "loading Ray"):
        said = console.file.getvalue()
    assert said.index("lorchestra: sweep tiny") < said.index("loading Ray")
    assert ("\x1b" in said) == is_terminal
