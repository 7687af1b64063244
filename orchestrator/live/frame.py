"""One picture of a sweep for a terminal, complete in 80 columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.journal.history import SweepHistory, describe_lost_state
from orchestrator.live.activity import whole_seconds
from orchestrator.live.leader import find_leader
from orchestrator.live.outlook import estimate_outlook
from orchestrator.live.trials import read_trials, render_trials
from orchestrator.report.leaderboard import UNFINISHED
from orchestrator.spec.sweep import SweepSpec
from orchestrator.wording import one_line

_TABLE_LINES = 6
"""Lines of the table besides its rows: head, rule, count of the rest, reasons; and the cursor."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that a picture shows.

    Attributes:
        spec: The sweep.
        history: Its history; another thread may add to it.
        elapsed_s: Seconds since the start of this session.
        activities: What is going on, one line each, with durations.
        notes: Sentences for the user.
        budget_left: What is left of each limit, as text.
        search_wall_left_s: Wall-clock time that the search may still spend, if limited.
        seated: Trials that have a seat; `None` if it is not known.
        is_running: A driver runs the sweep: trials without an end train, and time is left.
    """

    spec: SweepSpec
    history: SweepHistory
    elapsed_s: float
    activities: Sequence[str] = ()
    notes: Sequence[str] = ()
    budget_left: str = ""
    search_wall_left_s: float | None = None
    seated: Collection[int] | None = None
    is_running: bool = True


def render_frame(scene: Scene, width: int, height: int) -> RenderableType:
    """The picture, at most `height` lines high where no line is broken."""
    spec, history = scene.spec, scene.history
    parts = [Text.assemble((spec.name, "bold"), f"  {whole_seconds(scene.elapsed_s)}")]
    parts += [Text(f"  {line}") for line in scene.activities]
    lines = read_trials(history, spec, scene.seated or ())
    if not scene.is_running:
        lines = [line if line.is_ended else line._replace(state=UNFINISHED) for line in lines]
    parts += [Text(line) for line in describe_progress(scene)]
    lost = [describe_lost_state(event) for _, event in history.states_lost[-1:]]
    parts += [Text(one_line(note), style="dim") for note in (*scene.notes, *lost) if note]
    if not lines:
        return Group(*parts)
    leader = find_leader(spec, history)
    parts.append(Text("no trial leads yet" if leader is None else leader.text, style="bold"))
    rows = height - _TABLE_LINES - sum(1 + len(part) // width for part in parts)
    number = None if leader is None else leader.number
    return Group(*parts, Text(), render_trials(lines, number, spec, width, rows))


def describe_progress(scene: Scene) -> list[str]:
    """Counts, estimates and what is left of the budget, one line each."""
    outlook = estimate_outlook(scene.spec, scene.history, scene.search_wall_left_s, scene.seated)
    if not scene.is_running:
        return [f"trials: {outlook.counts(UNFINISHED)}"]
    lines = [f"trials: {outlook.counts()}", outlook.times]
    if scene.budget_left:
        lines.append(f"budget: {scene.budget_left}")
    return [line for line in lines if line]
