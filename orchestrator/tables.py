"""What was done with adapters, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.adapters.shrinking import Candidate, Shrunk
from registry import AdapterVersion, AliasMove


def render_moves(moves: Sequence[AliasMove]) -> Table | str:
    """One line for each move of an alias, oldest first."""
    if not moves:
        return "no alias of it was ever moved"
    table = Table(box=None, pad_edge=False)
    for heading in ("when", "alias", "from", "to", "who", "why"):
        table.add_column(heading, overflow="fold")
    for move in moves:
        table.add_row(
            move.at.astimezone().strftime("%Y-%m-%d %H:%M"),
            move.alias,
            _number(move.source),
            _number(move.target),
            Text(move.who),
            Text(("rolled back: " if move.is_rollback else "") + move.why),
        )
    return table


def render_shrunk(version: AdapterVersion, shrunk: Shrunk, measure: str) -> Group:
    """The ranks that were tried, and what became of them."""
    table = Table(box=None, pad_edge=False)
    for heading in ("rank", measure, "size", "energy kept"):
        table.add_column(heading, justify="right")
    for one in (shrunk.whole, *shrunk.candidates):
        table.add_row(*_cells(one))
    if shrunk.version is None:
        said = f"none is as good as {version.ref}: nothing was registered"
    else:
        said = f"registered: {shrunk.version.ref}, rank {shrunk.chosen}"
    return Group(table, said)


def _cells(one: Candidate) -> list[str]:
    size = f"{one.adapter_bytes / 1e6:.2f} MB"
    return [str(one.rank), f"{one.value:.4f}", size, f"{one.energy:.2%}"]


def _number(version: int | None) -> str:
    return "-" if version is None else str(version)
