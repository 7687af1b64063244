"""Pieces of a self-contained HTML page; every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from plotly.offline import get_plotlyjs

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1200px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } .wide + .wide, details { margin-top: .8rem; }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #ddd;
         vertical-align: top; }
th { background: #f5f5f5; white-space: nowrap; }
.dense { font-size: 13px; } .dense th, .dense td { padding: .2rem .45rem; }
td.number { text-align: right; white-space: nowrap; } td.reason { min-width: 18rem; }
tr.best { background: #e6f5ef; } tr.unranked { color: #777; } .note { color: #555; }
summary { cursor: pointer; color: #555; }
"""


def document(title: str, subtitle: str, sections: Iterable[tuple[str, str]]) -> str:
    """A whole HTML page.

    Args:
        title: Title of the page and of the browser's tab; plain text.
        subtitle: One line below the title; plain text.
        sections: Headings in plain text with their content in HTML; sections without content are
            left out.
    """
    body = "\n".join(
        f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>"
        for heading, content in sections
        if content
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<script>{get_plotlyjs()}</script>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"{note(subtitle)}\n{body}\n</body>\n</html>\n"
    )


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    styles: Sequence[str] | None = None,
    *,
    is_dense: bool = False,
) -> str:
    """An HTML table that scrolls sideways; empty text without rows.

    Args:
        heads: Headings in plain text; all empty for a table without a head.
        rows: Cells from `cell` and `number`.
        styles: A CSS class for each row, or an empty string.
        is_dense: Whether to use smaller letters.
    """
    rows = list(rows)
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    lines = [
        f'<tr class="{style}">{"".join(cells)}</tr>' if style else f"<tr>{''.join(cells)}</tr>"
        for cells, style in zip(rows, styles or [""] * len(rows), strict=True)
    ]
    top = f"<thead><tr>{head}</tr></thead>\n" if any(heads) else ""
    kind = "wide dense" if is_dense else "wide"
    return (
        f'<div class="{kind}"><table>\n{top}<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>'
    )


def cell(text: str, style: str = "") -> str:
    """A table cell of plain text."""
    return f'<td class="{style}">{escape(text)}</td>' if style else f"<td>{escape(text)}</td>"


def number(text: str) -> str:
    """A table cell of plain text, aligned to the right."""
    return cell(text, "number")


def note(text: str) -> str:
    """A paragraph of plain text in grey."""
    return f'<p class="note">{escape(text)}</p>'


def folded(summary: str, content: str) -> str:
    """Content shown by a click on a summary in plain text."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>"


def embed(figure: Any, name: str) -> str:
    """A plotly figure as an HTML element with this id."""
    return str(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=name,
            config={"displaylogo": False, "responsive": True},
        )
    )
