"""Markdown for cards and notes, in which foreign text cannot act as markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# MLflow shows the columns of a table without a gap, and strips real spaces.
_GAP = "&ensp;"
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# Characters that begin HTML become entities: some renderers ignore a backslash before them.
_SPECIAL = re.compile(r"[\\`*_\[\]#|~]")


def one_line(text: object) -> str:
    """The text without line breaks and other unprintable characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def plain(text: object) -> str:
    """Text escaped for use within a line; `-` or `1.` at the start still makes a list."""
    marked = "".join(_ENTITIES.get(c, c) for c in one_line(text))
    return _SPECIAL.sub(r"\\\g<0>", marked)


def code(text: object, *, in_table: bool = False) -> str:
    """Text as a code span, backticks included."""
    content = one_line(text) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", content)), default=0))
    if content.startswith("`") or content.endswith("`"):
        content = f" {content} "
    span = f"{fence}{content}{fence}"
    return span.replace("|", r"\|") if in_table else span


def code_block(language: str, lines: Iterable[str]) -> str:
    """A fenced block of code lines, backticks included; no line may hold a line break."""
    text = "\n".join(lines)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, 1 + longest)
    return f"{fence}{language}\n{text}\n{fence}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are Markdown already; an empty text without rows."""
    lines = [_row(cells, _GAP) for cells in rows]
    if not lines:
        return ""
    return "\n".join([_row(heads, _GAP), _row(["---"] * len(heads)), *lines])


def _row(cells: Sequence[str], gap: str = "") -> str:
    return f"| {f'{gap} | '.join(cells)} |"
