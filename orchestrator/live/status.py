"""The command `status`: the state of a sweep from its folder, once or until it ends."""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from orchestrator.journal.drivers import has_driver
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.sweep_storage import GrowingHistory, SweepStorage, read_history
from orchestrator.live.diary import Diary
from orchestrator.live.frame import Scene, render_frame
from orchestrator.live.screen import open_screen
from orchestrator.live.state import SweepState, read_state, state_as_json
from orchestrator.outcome import Outcome
from orchestrator.report.report import build_report
from orchestrator.report.summary import render_summary
from orchestrator.search.budget import Budget
from orchestrator.spec.sweep import SweepSpec, recorded_sweep

POLL_S, REMOTE_POLL_S = 1.0, 5.0
"""Seconds between two readings of the log: in a folder, in a bucket."""

_ROWS = 60


@dataclass(frozen=True, kw_only=True)
class _Look:
    """One look at a sweep.

    Attributes:
        storage: Its storage.
        spec: The sweep as recorded.
        history: Its history.
        state: Its state.
    """

    storage: SweepStorage
    spec: SweepSpec
    history: SweepHistory
    state: SweepState

    @classmethod
    def at(cls, location: str, history: SweepHistory) -> _Look:
        storage = SweepStorage(location)
        return cls(
            storage=storage,
            spec=recorded_sweep(history.spec or {}),
            history=history,
            state=read_state(history, location, has_driver(storage, history)),
        )

    def render(self, width: int, height: int) -> RenderableType:
        """The summary of an ended sweep; the counts and the table of one that goes on."""
        now, is_running = time.time(), self.state.condition == "running"
        if self.state.condition == "ended":
            lines = [Text(line) for line in self.state.describe(now)]
            report = build_report(self.spec, self.history, self.storage.folder)
            return Group(render_summary(report), *lines)
        budget = Budget(self.spec.budget, self.history)
        scene = Scene(
            spec=self.spec,
            history=self.history,
            elapsed_s=self.history.meter.wall_clock_s(now if is_running else None),
            activities=self.state.describe(now),
            budget_left=budget.describe_left(),
            search_wall_left_s=budget.search_wall_left_s(),
            is_running=is_running,
        )
        return render_frame(scene, width, height)


def print_status(location: str, console: Console) -> None:
    """Print the state of a sweep.

    Raises:
        SweepStorageError: The log cannot be read.
    """
    look = _Look.at(location, read_history(location))
    console.print(look.render(console.width, _ROWS))


def status_json(location: str) -> str:
    """The state of a sweep as one JSON document; values that are not finite are null.

    Raises:
        SweepStorageError: The log cannot be read.
    """
    look = _Look.at(location, read_history(location))
    facts = state_as_json(look.spec, look.history, look.state, location)
    return json.dumps(_finite(facts), indent=2)


def follow_sweep(location: str, console: Console, pause_s: float | None = None) -> bool:
    """Show a sweep until no driver runs it, then its state.

    Args:
        location: The sweep's folder.
        console: Where to show it.
        pause_s: Seconds between two readings; `None` for those that fit the storage.

    Returns:
        Whether the sweep ended with a result.

    Raises:
        SweepStorageError: The log cannot be read.
    """
    growing, guard = GrowingHistory(location), threading.Lock()
    growing.read_on()
    look = _Look.at(location, growing.history)
    if pause_s is None:
        pause_s = REMOTE_POLL_S if look.storage.is_remote else POLL_S

    def render(width: int, height: int) -> RenderableType:
        with guard:  # the screen draws in a thread of its own
            return look.render(width, height)

    diary, screen = Diary(look.spec), open_screen(console, render)
    screen.start()
    try:
        while True:
            if not screen.is_redrawn:
                for line in diary.read_on(look.history):
                    screen.print(line)
            if look.state.condition != "running":
                break
            time.sleep(pause_s)
            with guard:
                growing.read_on()
                look = _Look.at(location, growing.history)
    except KeyboardInterrupt:
        screen.stop()
        raise
    screen.stop(is_kept=False)
    console.print(look.render(console.width, _ROWS))
    return look.state.condition == "ended" and look.history.status == Outcome.COMPLETED


def _finite(value: Any) -> Any:
    """The same values, with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
