"""Versions side by side, in a terminal and as one self-contained HTML page."""

from __future__ import annotations

import contextlib

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.adapters.comparison_plots import (
    draw_costs,
    draw_differences,
    draw_scores,
    short_names,
)
from orchestrator.pages.markup import cell, document, folded, note, number, table
from orchestrator.wording import (
    format_bounds,
    format_difference,
    format_metric,
    format_size,
    one_line,
)
from registry.evaluations.comparison import TRAINING, Comparison, Cost, Difference, Score

_RECORDED = "recorded"
_PERPLEXITY = "perplexity"
_CHANCE = "could be chance"
_NONE = "no difference"
_SHARED = 12
_NUMBERS = ("lora.", "optim.")
_UNKNOWN = "-"


def render_comparison(comparison: Comparison) -> RenderableType:
    """The comparison as text for `rich.console.Console.print`."""
    parts: list[RenderableType] = []
    for title, content in (
        ("What differs", _terminal_identity(comparison)),
        ("Scores", _terminal_scores(comparison)),
        ("Differences", _terminal_differences(comparison)),
        ("Costs", _terminal_costs(comparison)),
    ):
        if content is not None:
            parts += [Text(title, style="bold"), content, Text()]
    head = Text(one_line(f"Comparing {', '.join(comparison.adapters)}"))
    notes = [*map(one_line, comparison.notes), _about_intervals(comparison)]
    return Group(head, Text(), *parts, *(Text(line) for line in notes))


def build_comparison_page(comparison: Comparison) -> str:
    """The whole page as HTML; text from outside is escaped."""
    rows = []
    for cost in comparison.costs:
        form, data, *amounts = _cost_texts(cost)
        rows.append([cell(cost.adapter), cell(form), cell(data), *map(number, amounts)])
    sections = {
        "To know": "".join(note(one_line(text)) for text in comparison.notes),
        "What differs": _identity(comparison),
        "Scores": _scores(comparison),
        "Differences on the same rows": _differences(comparison),
        "Quality and cost": draw_costs(comparison) + table(["adapter", *_COST_HEADS], rows),
    }
    title = f"{' · '.join(comparison.adapters)} – comparison"
    return document(title, _about_intervals(comparison), sections.items())


def _about_intervals(comparison: Comparison) -> str:
    misses = 1 / (1 - comparison.confidence)
    return (
        f"Intervals at {comparison.confidence:.0%}, by resampling rows (bootstrap), without a "
        f"correction for many comparisons: of {misses:.0f} true differences of zero, about one "
        "looks clear."
    )


# -------------------------------------------------------------------------------------- identity


def _terminal_identity(comparison: Comparison) -> RenderableType:
    # Digests come last, because they tell readers least.
    items = sorted(comparison.shared.items(), key=lambda item: item[1].startswith("sha256:"))
    same = ", ".join(f"{name} {_tag(name, value)}" for name, value in items[:_SHARED])
    left = len(comparison.shared) - _SHARED
    more = f", and {left} more" if left > 0 else ""
    line = Text(one_line(f"The same in all: {same}{more}"), style="dim")
    if not comparison.differing:
        return line
    grid = _terminal_table("", *short_names(comparison.adapters).values())
    for name, values in comparison.differing.items():
        grid.add_row(Text(name), *(Text(_tag(name, value)) for value in values))
    return Group(grid, line)


def _tag(name: str, value: str | None) -> str:
    """A recorded setting as text; a number has at most four digits."""
    if value is None:
        return _UNKNOWN
    if name.startswith(_NUMBERS):
        with contextlib.suppress(ValueError):
            return f"{float(value):.4g}"
    return one_line(value)


def _identity(comparison: Comparison) -> str:
    rows = [
        [cell(name), *(cell(_tag(name, value)) for value in values)]
        for name, values in comparison.differing.items()
    ]
    same = table(
        ["", ""], [[cell(name), cell(value)] for name, value in comparison.shared.items()]
    )
    text = table(["", *comparison.adapters], rows) or note("No recorded setting differs.")
    return text + folded("The same in all", same)


# ---------------------------------------------------------------------------------------- scores

_Row = tuple[str, str, str, str]
"""Form, name and digest of the rows, measure."""


def _score_rows(comparison: Comparison) -> dict[_Row, dict[str, Score]]:
    rows: dict[_Row, dict[str, Score]] = {}
    for score in comparison.scores:
        key = (score.form, score.data, score.digest, score.measure)
        rows.setdefault(key, {})[score.adapter] = score
    return rows


def _terminal_scores(comparison: Comparison) -> RenderableType | None:
    rows = _score_rows(comparison)
    if not rows:
        return None
    short = short_names(comparison.adapters)
    grid = _terminal_table("form", "rows", "measure", *short.values(), right=3)
    for (form, data, digest, measure), scores in rows.items():
        if measure == _PERPLEXITY and (form, data, digest, "loss") in rows:
            continue  # a function of the loss; only the page shows it
        shown = (_score_text(scores.get(adapter)) for adapter in comparison.adapters)
        grid.add_row(form, Text(one_line(data)), Text(measure), *map(Text, shown))
    return grid


def _score_text(score: Score | None) -> str:
    if score is None:
        return _UNKNOWN
    if score.is_recorded:
        return f"{format_metric(score.value)} ({_RECORDED})"
    bounds = format_bounds(score.low, score.high)
    return format_metric(score.value) + (f" ({bounds})" if bounds else "")


def _scores(comparison: Comparison) -> str:
    rows = [
        [cell(form), cell(f"{data} {digest.removeprefix('sha256:')[:8]}" if digest else data),
         cell(measure),
         *(number(_score_text(scores.get(adapter))) for adapter in comparison.adapters)]
        for (form, data, digest, measure), scores in _score_rows(comparison).items()
    ]  # fmt: skip
    if not rows:
        return note("No version has a score.")
    parts = [table(["form", "rows", "measure", *comparison.adapters], rows)]
    digests = dict.fromkeys((one.digest, one.data) for one in comparison.scores)
    for digest, data in digests:
        chosen = [one for one in comparison.scores if (one.digest, one.data) == (digest, data)]
        figures = draw_scores(chosen, comparison.adapters)
        if figures:
            counts = [score.rows for score in chosen if score.rows is not None]
            source = (
                f"{counts[0]} rows" if counts else "recorded when the versions were registered"
            )
            parts.append(note(f"On {data}: {source}.") + figures)
    return "".join(parts)


# ----------------------------------------------------------------------------------- differences


def _terminal_differences(comparison: Comparison) -> RenderableType:
    short = short_names(comparison.adapters)
    grid = _terminal_table("pair", "form", "measure", "difference", "interval", "better")
    refused = []
    for one in comparison.differences:
        pair = Text(f"{short[one.second]} − {short[one.first]}")
        if one.interval is None:
            about = f", {one.measure}" if one.measure else ""
            why = one_line(f"{pair}{about}: not comparable, {one.reason}")
            refused.append(Text(why, style="dim"))
        elif one.measure != _PERPLEXITY:
            measure, change, bounds, better = _difference_texts(one)
            texts = map(Text, (one.form, measure, change, bounds, short.get(better, better)))
            grid.add_row(pair, *texts, style="bold" if one.is_clear else "")
    return Group(*([grid] if grid.rows else []), *refused)


def _difference_texts(one: Difference) -> tuple[str, str, str, str]:
    if one.interval is None:
        return one.measure, "", "", one_line(one.reason)
    return (
        one.measure,
        format_difference(one.interval.estimate),
        format_bounds(one.interval.low, one.interval.high),
        one.better or (_CHANCE if one.interval.low < one.interval.high else _NONE),
    )


def _differences(comparison: Comparison) -> str:
    rows, styles = [], []
    for one in comparison.differences:
        if one.interval is not None:
            measure, change, bounds, better = _difference_texts(one)
            texts = (f"{one.second} − {one.first}", one.form, one.data, measure)
            rows.append([*map(cell, texts), number(change), number(bounds), cell(better)])
            styles.append('class="best"' if one.is_clear else "")
    heads = ["pair", "form", "rows", "measure", "difference", "interval", "better"]
    refused = [
        [cell(f"{one.second} − {one.first}"), cell(one.measure), cell(one_line(one.reason))]
        for one in comparison.differences
        if one.interval is None
    ]
    figures = draw_differences(comparison.differences, comparison.adapters)
    return (
        figures + table(heads, rows, styles) + table(["not comparable", "measure", "why"], refused)
    )


# ----------------------------------------------------------------------------------------- costs

_COST_HEADS = ("form", "rows", "peak memory", "adapter", "base", "tokens/s", "rows/s", "took")


def _terminal_costs(comparison: Comparison) -> RenderableType | None:
    if not comparison.costs:
        return None
    grid = _terminal_table("adapter", *_COST_HEADS, right=3)
    for cost in comparison.costs:
        grid.add_row(Text(cost.adapter), *map(Text, _cost_texts(cost)))
    return grid


def _cost_texts(cost: Cost) -> list[str]:
    """Cells under `_COST_HEADS`; in the row of training, the adapter's size is in weights."""
    memory = _UNKNOWN if cost.peak_memory_gib is None else f"{cost.peak_memory_gib:.2f} GiB"
    size = format_size(cost.adapter_bytes) if cost.adapter_bytes else _UNKNOWN
    if cost.form == TRAINING and cost.trainable_params is not None:
        size = f"{cost.trainable_params:,.0f} weights"
    base = _UNKNOWN if cost.model_bytes is None else format_size(cost.model_bytes)
    speeds = [
        _UNKNOWN if one is None else f"{one:,.1f}" for one in (cost.tokens_per_s, cost.rows_per_s)
    ]
    took = _UNKNOWN if cost.seconds is None else f"{cost.seconds:.1f} s"
    return [cost.form, one_line(cost.data) or _UNKNOWN, memory, size, base, *speeds, took]


def _terminal_table(*heads: str, right: int = 99) -> Table:
    """A table with numbers in the columns from `right` on."""
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for place, head in enumerate(heads):
        grid.add_column(Text(head), justify="right" if place >= right else "left", overflow="fold")
    return grid
