"""Places in a YAML text: the line of a mistake with a caret, and the line of a dotted field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from rich.cells import cell_len

_WIDTH = 72
"""Most characters of a shown line, so that the excerpt fits into 80 columns."""


@dataclass(frozen=True)
class Place:
    """A line and column of a text, both counted from 0."""

    line: int
    column: int

    @classmethod
    def of(cls, mark: Any) -> Place:
        """The place of a mark of PyYAML, which has two classes of marks."""
        return cls(mark.line, mark.column)

    def __str__(self) -> str:
        return f"line {self.line + 1}, column {self.column + 1}"


def excerpt(text: str, place: Place) -> str:
    """The line of a place, with a caret below the column; a long line is cut around it."""
    lines = text.splitlines() or [""]
    line = lines[place.line] if place.line < len(lines) else ""
    start = max(0, place.column - _WIDTH // 2) if len(line) > _WIDTH else 0
    shown = "".join(c if c.isprintable() else " " for c in line[start : start + _WIDTH])
    caret = " " * cell_len(shown[: place.column - start])
    number = f"{place.line + 1:>5} | "
    return f"{number}{shown}".rstrip() + f"\n{'| ':>{len(number)}}{caret}^"


def find_field(root: yaml.Node | None, field: str, *, is_key: bool = False) -> Place | None:
    """The place of a dotted field such as `space.lora.rank` or `forbid[0].seed`.

    Args:
        root: The composed text.
        field: The dotted name; a key may itself have dots.
        is_key: The place of the key is wanted, not that of its value.

    Returns:
        The place of the field, or of the innermost part that the text has; `None` without any.
    """
    found: Place | None = None
    node = root
    while node is not None and field:
        step = next(_steps(node, field), None)
        if step is None:
            break
        key, node, field = step
        is_beside = key is None or key.start_mark.line == node.start_mark.line
        mark = node.start_mark if key is None or (is_beside and not is_key) else key.start_mark
        found = Place.of(mark)
    return found


def _steps(node: yaml.Node, field: str) -> Iterator[tuple[yaml.Node | None, yaml.Node, str]]:
    """Entries of a node that a dotted name begins with, the longest first, and what is left."""
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            if field.startswith(f"[{i}]"):
                yield None, item, field[len(f"[{i}]") :].removeprefix(".")
    if isinstance(node, yaml.MappingNode):
        for key, value in sorted(node.value, key=lambda pair: -len(str(pair[0].value))):
            name = str(key.value)
            rest = field[len(name) :]
            if field.startswith(name) and rest[:1] in ("", ".", "["):
                yield key, value, rest.removeprefix(".")
