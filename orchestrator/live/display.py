"""Shows a sweep while it runs: a picture that redraws itself, or the lines of a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from rich.console import Console, RenderableType

from orchestrator.hosts.members import HostActivity
from orchestrator.interrupts import answered_by
from orchestrator.journal.history import SweepHistory
from orchestrator.live.activity import Activities
from orchestrator.live.diary import Diary
from orchestrator.live.frame import Scene, describe_progress, render_frame
from orchestrator.live.screen import open_screen
from orchestrator.search.budget import Budget
from orchestrator.spec.sweep import SweepSpec
from orchestrator.wording import one_line

PROGRESS_EVERY_S = 60.0
"""Least time between two lines with the counts and estimates in a log."""


class ProgressDisplay:
    """Shows a sweep while the context is open; its end restores the terminal, also after an error.

    Thread-safe: events come from several threads.

    Attributes:
        budget: The budget of the sweep; `None` until it is known.
    """

    def __init__(self, spec: SweepSpec, console: Console) -> None:
        self._spec = spec
        self._guard = threading.RLock()
        self._began = self._progress_at = time.monotonic()
        self._activities = Activities()
        self._seated: frozenset[int] = frozenset()
        self._note = ""
        self._stopping = ""  # set by a signal handler
        self._history = SweepHistory()
        self._diary = Diary(spec)
        self._stack = ExitStack()
        self.budget: Budget | None = None
        self._screen = open_screen(console, self._render)  # draws at once: needs all the others

    def __enter__(self) -> ProgressDisplay:
        self._began = self._progress_at = time.monotonic()
        with ExitStack() as stack:  # closes after an error in `start`
            if self._screen.is_redrawn:
                stack.enter_context(answered_by(self._note_stop))
            self._screen.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The message of a refused sweep stands alone.
        is_kept = error is None or bool(self._history.trials or self._stopping)
        with self._stack:
            self._screen.stop(is_kept=is_kept)

    def phase(self, name: str) -> None:
        """Show the present activity of the sweep, such as `searching`."""
        with self._guard:
            if self._activities.enter(name):
                left = "" if self.budget is None else self.budget.describe_left()
                self._say(one_line(name) + (f"; budget: {left}" if left else ""))

    def step(self, text: str, done: int = 0, total: int = 0) -> None:
        """Show the present piece of work of the phase.

        Args:
            text: Such as `form 3 of 8: merged, trial 0`.
            done: Pieces done.
            total: All pieces, if the time left may be estimated from them.
        """
        with self._guard:
            if self._activities.step(text, done, total):
                self._say(one_line(text))

    def show_hosts(self, hosts: Sequence[HostActivity]) -> None:
        """Show what the hosts do."""
        with self._guard:
            self._seated = frozenset(trial for host in hosts for trial in host.trials)
            for line in self._activities.take_hosts(hosts):
                self._say(line)

    def show_wait(self, waiting: str) -> None:
        """Show what the sweep waits for, beside what goes on; empty for nothing."""
        with self._guard:
            if self._activities.wait(waiting) and waiting:
                self._say(one_line(waiting))

    def print(self, line: str) -> None:
        """Show a line that stays in view or in the log."""
        with self._guard:
            self._screen.print(one_line(line))

    def update(self, history: SweepHistory, note: str | None = None) -> None:
        """Show changes of the history since the last call.

        Args:
            history: History of the sweep; another thread may add to the history meanwhile.
            note: A sentence, shown until the next note.
        """
        with self._guard:
            self._history = history  # the next picture reads it
            if not self._screen.is_redrawn:
                for line in self._diary.read_on(history):
                    self._say(line)
                self._say_progress()
            if note is not None and note != self._note:
                self._note = note
                self._say(one_line(note))

    def _say(self, line: str) -> None:
        if not self._screen.is_redrawn:
            self._screen.print(line)

    def _say_progress(self) -> None:
        now = time.monotonic()
        if self._history.trials and now - self._progress_at >= PROGRESS_EVERY_S:
            self._progress_at = now
            self._say("; ".join(describe_progress(self._scene())))

    def _note_stop(self, answer: str) -> None:
        """Show that the sweep stops; called in a signal handler, so it takes no lock."""
        self._stopping = answer

    def _scene(self) -> Scene:
        budget = self.budget
        return Scene(
            spec=self._spec,
            history=self._history,
            elapsed_s=time.monotonic() - self._began,
            activities=self._activities.lines(),
            notes=[self._stopping or self._note],
            budget_left="" if budget is None else budget.describe_left(),
            search_wall_left_s=None if budget is None else budget.search_wall_left_s(),
            seated=self._seated,
        )

    def _render(self, width: int, height: int) -> RenderableType:
        with self._guard:
            return render_frame(self._scene(), width, height)
