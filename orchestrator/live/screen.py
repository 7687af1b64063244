"""Where a sweep is shown: a terminal that is redrawn, a notebook's cell, or the lines of a log."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

CHECKING = "checking the base, the rows and MLflow; loading Ray and Optuna"
"""What is shown between the first line of a sweep and its first phase."""

_REFRESH_PER_S = 2
_CELL_REFRESH_S = 1.0
_CELL_WIDTH = 120
_CELL_HEIGHT = 48


class Screen(Protocol):
    """Shows pictures, lines, or both.

    Attributes:
        is_redrawn: Whether pictures are shown; without them, every event needs a line.
    """

    is_redrawn: bool

    def start(self) -> None:
        """Begin to show pictures."""

    def stop(self, *, is_kept: bool = True) -> None:
        """End, with the last picture or with none in view; restores the terminal."""

    def print(self, line: str) -> None:
        """Show a line that stays."""


def open_screen(console: Console, render: Callable[[int, int], RenderableType]) -> Screen:
    """The screen that fits a console.

    Args:
        console: The console.
        render: Draws the picture for a width and a height.
    """
    if console.is_jupyter:
        return NotebookScreen(render)
    if console.is_terminal and not console.is_dumb_terminal:
        return TerminalScreen(console, render)
    return LogScreen(console)


@contextmanager
def loading(console: Console, first_line: str, activity: str) -> Iterator[None]:
    """Show a first line, then an activity and for how long, while the block runs."""
    if console.is_terminal and not (console.is_jupyter or console.is_dumb_terminal):
        console.print(Text(first_line))
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            progress.add_task(activity, total=None)
            yield
    else:
        screen = LogScreen(console)
        screen.print(first_line)
        screen.print(activity)
        yield


class LogScreen:
    """Lines with the time of day, without control codes."""

    is_redrawn = False

    def __init__(self, console: Console) -> None:
        self._console = console

    def start(self) -> None:
        """Do nothing: there are no pictures."""

    def stop(self, *, is_kept: bool = True) -> None:
        """Do nothing: lines stay."""

    def print(self, line: str) -> None:
        """Write a line; the reader's viewer can wrap it."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self._console.print(Text(f"{stamp}  {line}"), soft_wrap=True)


class TerminalScreen:
    """A picture that redraws itself below the lines printed so far."""

    is_redrawn = True

    def __init__(self, console: Console, render: Callable[[int, int], RenderableType]) -> None:
        self._console = console
        self._live = Live(
            console=console,
            get_renderable=lambda: render(console.width, console.height),
            refresh_per_second=_REFRESH_PER_S,
            # `orchestrator.quiet` sends other output to a file.
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def start(self) -> None:
        """Begin to redraw."""
        try:
            self._live.start()
        except BaseException:
            self._live.stop()
            raise

    def stop(self, *, is_kept: bool = True) -> None:
        """Draw the last picture, or remove it, and show the cursor again."""
        self._live.transient = not is_kept
        self._live.stop()

    def print(self, line: str) -> None:
        """Print a line above the picture."""
        self._console.print(Text(line))


class NotebookScreen:
    """A picture in the cell's output, replaced once a second; needs IPython alone."""

    is_redrawn = True

    def __init__(self, render: Callable[[int, int], RenderableType]) -> None:
        self._render = render
        self._lines: list[str] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notebook-view", daemon=True)
        self._handle: Any = None

    def start(self) -> None:
        """Begin to replace the picture."""
        from IPython.display import display  # notebooks have it; other users need not

        self._handle = display(self._picture(), display_id=True)
        self._thread.start()

    def stop(self, *, is_kept: bool = True) -> None:
        """Show the last picture, which stays."""
        self._closing.set()
        with suppress(RuntimeError):  # never started
            self._thread.join(timeout=5.0)
        self._show()

    def print(self, line: str) -> None:
        """Show a line above the picture."""
        self._lines.append(line)

    def _run(self) -> None:
        while not self._closing.wait(_CELL_REFRESH_S):
            self._show()

    def _show(self) -> None:
        if self._handle is not None:
            self._handle.update(self._picture())

    def _picture(self) -> Any:
        from IPython.display import HTML

        return HTML(
            picture_as_html([*map(Text, self._lines), self._render(_CELL_WIDTH, _CELL_HEIGHT)])
        )


def picture_as_html(parts: list[RenderableType]) -> str:
    """Renderables as HTML with their styles inline."""
    page = Console(
        width=_CELL_WIDTH,
        height=_CELL_HEIGHT,
        record=True,
        file=io.StringIO(),
        force_jupyter=False,
    )
    for part in parts:
        page.print(part)
    style = "font-family:monospace;line-height:normal;white-space:pre;overflow-x:auto"
    return page.export_html(inline_styles=True, code_format=f'<pre style="{style}">{{code}}</pre>')
