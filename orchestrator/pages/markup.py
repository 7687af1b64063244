"""Pieces of a self-contained HTML page; every text is escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from types import MappingProxyType
from typing import Literal

from orchestrator.report.plots import OUTCOME_COLORS

SERIES_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8a8a00")
"""Colours of the CSS classes `s0` to `s6`, after the palette of Okabe and Ito."""

_OWN_COLORS = {"best": "var(--best)", "front": "var(--accent)", "failed": "var(--ink)"}
"""Colours of classes that follow the page's light or dark scheme."""


def document(
    title: str,
    subtitle: str,
    sections: Iterable[tuple[str, str]],
    *,
    lead: str = "",
    labels: Mapping[int, str] = MappingProxyType({}),
) -> str:
    """A whole HTML page.

    Args:
        title: Title of the page and of the browser's tab; plain text.
        subtitle: One line below the title; plain text.
        sections: Headings in plain text with their content in HTML; sections without content are
            left out.
        lead: HTML between the subtitle and the first section.
        labels: Plain text on hovering over a trial's marks, by trial.
    """
    body = "\n".join(
        f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>"
        for heading, content in sections
        if content
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_read('page.css')}{_colors()}</style>\n"
        f'<script type="application/json" id="labels">{_as_json(labels)}</script>\n'
        f"<script>{_read('page.js')}</script>\n</head>\n<body>\n<header>\n"
        f"<h1>{escape(title)}</h1>\n{note(subtitle)}\n{lead}\n</header>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def table(
    heads: Sequence[str | tuple[str, str]],
    rows: Iterable[Sequence[str]],
    attributes: Sequence[str] | None = None,
    *,
    kind: Literal["", "dense", "dense board", "facts"] = "",
    is_sortable: bool = False,
) -> str:
    """An HTML table that scrolls sideways; empty text without rows.

    Args:
        heads: Headings in plain text, or pairs of a short heading and its meaning; all empty for a
            table without a head.
        rows: Cells from `cell` and `number`.
        attributes: HTML attributes of each row, such as `class="best"`, or an empty string.
        kind: `dense` for smaller letters, `board` for one that scrolls in a window, `facts` for
            names with values.
        is_sortable: Whether a click on a heading sorts the rows.
    """
    rows = list(rows)
    if not rows:
        return ""
    pairs = [(head, "") if isinstance(head, str) else head for head in heads]
    styles = [' class="number"' if 'class="number"' in one else "" for one in rows[0]]
    head = "".join(
        f'<th scope="col"{style}{_title(meaning)}>{escape(name)}</th>'
        for (name, meaning), style in zip(pairs, styles, strict=True)
    )
    lines = [
        f"<tr {more}>{''.join(cells)}</tr>" if more else f"<tr>{''.join(cells)}</tr>"
        for cells, more in zip(rows, attributes or [""] * len(rows), strict=True)
    ]
    top = f"<thead><tr>{head}</tr></thead>\n" if any(name for name, _ in pairs) else ""
    sortable = ' class="sortable"' if is_sortable else ""
    body = "\n".join(lines)
    style = f"wide {kind}".strip()
    return f'<div class="{style}"><table{sortable}>\n{top}<tbody>\n{body}\n</tbody></table></div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A table of names and values in plain text; empty values are left out."""
    rows = [
        [f'<th scope="row">{escape(name)}</th>', cell(value)] for name, value in pairs if value
    ]
    return table(["", ""], rows, kind="facts")


def cell(text: str, style: str = "") -> str:
    """A table cell of plain text."""
    return f'<td class="{style}">{escape(text)}</td>' if style else f"<td>{escape(text)}</td>"


def number(text: str, value: float | None = None) -> str:
    """A table cell of plain text, aligned to the right, that sorts by its value."""
    sorted_by = "" if value is None else f' data-value="{value!r}"'
    return f'<td class="number"{sorted_by}>{escape(text)}</td>'


def note(text: str) -> str:
    """A paragraph of plain text in grey; empty for an empty text."""
    return f'<p class="note">{escape(text)}</p>' if text else ""


def boxed(text: str, style: str) -> str:
    """A paragraph of plain text in a box: `verdict` or `warning`."""
    return f'<p class="{style}">{escape(text)}</p>' if text else ""


def folded(summary: str, content: str) -> str:
    """Content shown by a click on a summary in plain text; empty without content."""
    if not content:
        return ""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>"


def folded_cell(summary: str, text: str) -> str:
    """A table cell that shows plain text by a click on a summary."""
    return f"<td>{folded(summary, escape(text))}</td>"


def preformatted(text: str) -> str:
    """Plain text with its lines and spaces."""
    return f"<pre>{escape(text)}</pre>"


def _as_json(labels: Mapping[int, str]) -> str:
    """JSON in which no text can end the script."""
    return json.dumps(dict(labels)).replace("<", "\\u003c")


def _title(meaning: str) -> str:
    return f' title="{escape(meaning)}"' if meaning else ""


@cache
def _read(name: str) -> str:
    return files("orchestrator.pages").joinpath(name).read_text(encoding="utf-8")


@cache
def _colors() -> str:
    """A CSS class for each outcome and series, brighter in the dark scheme."""
    series = {f"s{place}": color for place, color in enumerate(SERIES_COLORS)}
    known = {**OUTCOME_COLORS, **series}
    light = {name: _OWN_COLORS.get(name, color) for name, color in known.items()}
    light |= _OWN_COLORS
    dark = {name: _brighter(color) for name, color in known.items() if name not in _OWN_COLORS}
    bright = "".join(f".{name}{{--c:{color}}}" for name, color in dark.items())
    usual = "".join(f".{name}{{--c:{color}}}" for name, color in light.items())
    return f"{usual}@media screen and (prefers-color-scheme: dark){{{bright}}}"


def _brighter(color: str) -> str:
    """A colour a third nearer to white."""
    parts = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return "#" + "".join(f"{part + (255 - part) // 3:02x}" for part in parts)
