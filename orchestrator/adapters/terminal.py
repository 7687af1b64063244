"""Adapter versions, and results of commands on them, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.wording import format_bounds, format_metric, format_size, one_line
from registry import AdapterVersion, AliasMove, Evaluation
from registry.evaluations.significance import interval
from registry.versions.entries import Challenge
from trainables.contract import SERVING_FORMS

if TYPE_CHECKING:  # it imports Ray
    from orchestrator.adapters.shrinking import Shrunk

_HEADINGS = (
    "adapter", "alias", "loss", "accuracy", "split", "base", "form", "rank", "registered",
)  # fmt: skip
_RETIRED = "retired"
_REST_WIDTH = 20
"""Columns of the list besides the name, each broken to its narrowest."""

_TOLD_APART = ("serving.form", "checkpoints")
"""Tags shown in lines of their own."""

_FIRST_MEASURES = ("loss", "accuracy")
_PERPLEXITY = "perplexity"
_MOST_MEASURES = 5


def render_versions(versions: Sequence[AdapterVersion]) -> Table | str:
    """A table of versions with their measures on test rows; retired versions are dim."""
    if not versions:
        return "no adapter is registered yet; `lorchestra run SWEEP.yaml` registers its best"
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in _HEADINGS:
        # The name is there to be copied: a narrow terminal breaks other columns.
        table.add_column(heading, overflow="fold", no_wrap=heading == _HEADINGS[0])
    for version in versions:
        split = "test" if "test_loss" in version.metrics else "eval"
        marks = [*version.aliases, *([_RETIRED] if version.retired else [])]
        table.add_row(
            Text(str(version.ref)),
            ", ".join(marks),
            *(
                f"{version.metrics[name]:.4f}" if name in version.metrics else ""
                for name in (f"{split}_loss", f"{split}_accuracy")
            ),
            split,
            Text(version.tags.get("quantization", "")),
            Text(version.form),
            Text(version.tags.get("lora.rank", "")),
            f"{version.created_at.astimezone():%Y-%m-%d}",
            style="dim" if version.retired else "",
        )
    return table


def list_width(versions: Sequence[AdapterVersion], terminal: int) -> int:
    """Width for `render_versions` that breaks no name: the terminal's, or what names need."""
    longest = max((len(str(version.ref)) for version in versions), default=0)
    return max(terminal, longest + _REST_WIDTH)


def render_version(
    version: AdapterVersion,
    evaluations: Sequence[Evaluation] = (),
    moves: Sequence[AliasMove] = (),
) -> Group:
    """All records of one version.

    Args:
        version: The version.
        evaluations: Its evaluations, the newest first; intervals need the examples in them.
        moves: Moves of all aliases of the adapter, the oldest first.
    """
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value in _facts(version):
        table.add_row(name, Text(one_line(value)))  # as Text: brackets are no markup here
    for line in _alias_lines(version, moves):
        table.add_row("alias history", Text(line))
    for name, number in sorted(version.metrics.items()):
        table.add_row(name, f"{number:.6g}")
    hidden = {f"metric.{name}" for name in version.metrics} | set(version.metrics)
    hidden |= {f"checkpoint.{step}" for step in version.checkpoints} | set(_TOLD_APART)
    if version.retired:
        hidden.add(f"lorchestra.{_RETIRED}")
    for name, text in sorted(version.tags.items()):
        if name not in hidden:
            table.add_row(name, Text(text))
    if not evaluations:
        return Group(table)
    return Group(table, Text(), render_evaluations(evaluations))


def render_evaluations(evaluations: Sequence[Evaluation]) -> RenderableType:
    """A table of a version's newest evaluations, by serving form and rows.

    Args:
        evaluations: All evaluations, the newest first.
    """
    newest: dict[tuple[str, str], Evaluation] = {}
    for one in evaluations:
        newest.setdefault((one.form, one.data.digest), one)
    shown = sorted(newest.values(), key=lambda one: (one.data.name, SERVING_FORMS.index(one.form)))
    names = dict.fromkeys(name for one in shown for name in one.measures)
    first = [name for name in _FIRST_MEASURES if name in names]
    rest = [name for name in names if name not in (*first, _PERPLEXITY)]
    measures = [*first, *rest][:_MOST_MEASURES]
    table = Table(box=None, pad_edge=False)
    for heading in ("form", "rows", *measures):
        table.add_column(Text(heading), overflow="fold")
    for one in shown:
        scores = (Text(_score(one, measure)) for measure in measures)
        table.add_row(one.form, Text(f"{one_line(one.data.name)} ({one.data.rows})"), *scores)
    left = len(evaluations) - len(shown)
    if left == 0:
        return table
    return Group(table, Text(f"and {left} older or with other settings", style="dim"))


def render_moves(moves: Sequence[AliasMove]) -> Table | str:
    """One line for each move of an alias, oldest first."""
    if not moves:
        return "no alias of this adapter was ever moved"
    table = Table(box=None, pad_edge=False)
    for heading in ("when", "alias", "from", "to", "who", "why"):
        table.add_column(heading, overflow="fold")
    for move in moves:
        table.add_row(
            move.at.astimezone().strftime("%Y-%m-%d %H:%M"),
            move.alias,
            _version_number(move.source),
            _version_number(move.target),
            Text(move.who),
            Text(("rolled back: " if move.is_rollback else "") + move.why),
        )
    return table


def render_challenges(challenges: Sequence[Challenge]) -> Table:
    """One line for each challenge at the gate, oldest first, with a count for the same rows."""
    table = Table(box=None, pad_edge=False)
    for heading in ("when", "challenged", "by", "measure", "rows", "number", "who"):
        table.add_column(heading, overflow="fold")
    for one in challenges:
        table.add_row(
            one.at.astimezone().strftime("%Y-%m-%d %H:%M"),
            str(one.champion),
            str(one.candidate),
            Text(one.metric),
            Text(f"{one.data_name} {one.data.removeprefix('sha256:')[:8]}"),
            str(one.number),
            Text(one.who),
        )
    return table


def render_shrunk(version: AdapterVersion, shrunk: Shrunk, measure: str) -> Group:
    """A table of the evaluated ranks, and the chosen one."""
    table = Table(box=None, pad_edge=False)
    for heading in ("rank", measure, "size", "energy kept"):
        table.add_column(heading, justify="right")
    for one in (shrunk.whole, *shrunk.candidates):
        size, kept = format_size(one.adapter_bytes), f"{one.energy:.2%}"
        table.add_row(str(one.rank), f"{one.value:.4f}", size, kept)
    if shrunk.version is None:
        said = f"none is as good as {version.ref}: nothing was registered"
    else:
        said = f"registered: {shrunk.version.ref}, rank {shrunk.chosen}"
    return Group(table, said)


def _facts(version: AdapterVersion) -> Iterator[tuple[str, str]]:
    yield "adapter", str(version.ref)
    yield "aliases", ", ".join(version.aliases) or "none"
    if version.retired:
        yield _RETIRED, version.retired
    yield "registered", _when(version)
    yield "run", version.run_id or "none"
    yield "serving form", version.form
    if version.checkpoints:
        steps = ", ".join(map(str, version.checkpoints))
        yield "kept steps", f"{steps} (as {version.ref}@step-{version.checkpoints[0]})"


def _alias_lines(version: AdapterVersion, moves: Sequence[AliasMove]) -> Iterator[str]:
    """A line for each move of an alias to or from a version."""
    for move in moves:
        if not move.is_done or version.version not in (move.source, move.target):
            continue
        if move.target == version.version:
            since = "" if move.source is None else f", which was at {move.source}"
            verb = "got back" if move.is_rollback else "got"
            what = f"{verb} {move.alias}{since}"
        else:
            to = "dropped" if move.target is None else f"went to {move.target}"
            what = f"{move.alias} {to}"
        at = move.at.astimezone().strftime("%Y-%m-%d %H:%M")
        why = f": {move.why}" if move.why else ""
        yield one_line(f"{at} {what} (by {move.who}){why}")


def _score(one: Evaluation, measure: str) -> str:
    if measure not in one.measures:
        return ""
    text = format_metric(one.measures[measure].value)
    if not one.examples:
        return text
    found = interval(one, measure)
    return f"{text} ({format_bounds(found.low, found.high)})"


def _when(version: AdapterVersion) -> str:
    at = version.created_at.astimezone()
    return at.strftime("%Y-%m-%d %H:%M")


def _version_number(version: int | None) -> str:
    return "-" if version is None else str(version)
