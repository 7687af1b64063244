"""Columns of searched settings, the same in the live view, the tables and the report's page.

One column for each setting: a short head, and the whole value in each cell. A table in a terminal
leaves out whole columns, or breaks settings into lines, before it would cut a value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from orchestrator.spec.settings import ALPHA_PER_RANK
from orchestrator.wording import format_setting, one_line

SHORT_HEADS: Mapping[str, str] = {
    "base.model": "base",
    "base.revision": "revision",
    "base.quantization": "quant",
    "base.double_quant": "double",
    "base.compute_dtype": "compute",
    "lora.rank": "r",
    "lora.alpha": "α",
    ALPHA_PER_RANK: "α/r",
    "lora.targets": "targets",
    "optim.learning_rate": "lr",
    "lora.dropout": "drop",
    "optim.schedule": "schedule",
    "optim.warmup_steps": "warmup",
    "optim.batch_size": "batch",
    "optim.micro_batch_size": "micro",
    "optim.weight_decay": "decay",
    "optim.max_grad_norm": "clip",
    "optim.loraplus_ratio": "lora+",
    "data.max_tokens": "tokens",
    "data.train_max_tokens": "cut",
}
"""Short heads by dotted setting, in the order of the columns.

A setting that is not listed has the last part of its name as its head."""

_GAPS = (2, 1)
"""Spaces between two columns: wide where there is room."""

_DIGITS = 3
_PROJECTION = "_proj"


def order_settings(names: Iterable[str]) -> tuple[str, ...]:
    """The settings in the order of `SHORT_HEADS`, the same in every table; others follow."""
    places = {_plain(name): place for place, name in enumerate(SHORT_HEADS)}
    return tuple(sorted(names, key=lambda name: places.get(_plain(name), len(places))))


def short_heads(names: Sequence[str]) -> tuple[str, ...]:
    """A head for each setting, in the same order; a head that two settings share is the full name.

    Args:
        names: Settings as a space names them (`base.quantization`) or as
            `orchestrator.spec.space.searched_names` does (`quantization`).
    """
    heads = [_head(name) for name in names]
    uses = Counter(heads)
    return tuple(name if uses[head] > 1 else head for name, head in zip(names, heads, strict=True))


def setting_cells(names: Sequence[str], settings: Mapping[str, object]) -> tuple[str, ...]:
    """The value of each setting as text, never cut; `-` for a setting that the trial lacks.

    Args:
        names: Settings, as for `short_heads`.
        settings: Values by the same names, such as a trial's knobs.
    """
    return tuple(format_cell(settings[name]) if name in settings else "-" for name in names)


def format_cell(value: object) -> str:
    """A setting's value: `8.93e-4`, `q+v` for `q_proj+v_proj`, else as in sentences.

    A number keeps three digits; the files of the report have all.
    """
    if isinstance(value, float):
        return _format_number(value)
    text = format_setting(value)
    parts = text.split("+")
    if all(part.endswith(_PROJECTION) and part != _PROJECTION for part in parts):
        return "+".join(part.removesuffix(_PROJECTION) for part in parts)
    return text


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table in a terminal.

    Attributes:
        head: Its head.
        cells: A text for each row; a line break is kept.
        side: Side to which its cells are aligned.
        rank: 0 for a column that is always there; the column with the highest rank goes first.
        is_setting: Whether its cells may be broken into lines.
    """

    head: str
    cells: Sequence[str]
    side: Literal["left", "right"] = "right"
    rank: int = 0
    is_setting: bool = False

    @property
    def width(self) -> int:
        """Width of its widest line."""
        lines = (line for cell in self.cells for line in cell.split("\n"))
        return max(map(cell_len, (self.head, *lines)))


@dataclass(frozen=True, kw_only=True)
class FittedTable:
    """A table for `rich` whose columns fit the width at which it is drawn.

    Attributes:
        columns: All columns.
        styles: Style of each row.
    """

    columns: Sequence[Column]
    styles: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns, gap = fit_columns(self.columns, options.max_width)
        table = lay_out(columns, gap)
        for place, style in enumerate(self.styles):
            table.add_row(*(Text(column.cells[place]) for column in columns), style=style)
        yield table


def build_setting_columns(
    names: Sequence[str], rows: Sequence[Mapping[str, object]]
) -> list[Column]:
    """A column for each setting.

    Args:
        names: Settings, as for `short_heads`.
        rows: For each row, values by the same names.
    """
    cells = [setting_cells(names, row) for row in rows]
    return [
        Column(head=head, cells=[row[place] for row in cells], side="left", is_setting=True)
        for place, head in enumerate(short_heads(names))
    ]


def lay_out(columns: Sequence[Column], gap: int) -> Table:
    """A table with these columns and no rows."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
    for column in columns:
        table.add_column(
            column.head, justify=column.side, no_wrap=not column.is_setting, overflow="fold"
        )
    return table


def fit_columns(columns: Sequence[Column], width: int) -> tuple[list[Column], int]:
    """The columns that fit, and the gap between them.

    Columns of higher rank go first; before the last of them goes, settings are broken into lines.
    """
    ranks = sorted({column.rank for column in columns}, reverse=True)
    for rank in ranks:
        kept = [column for column in columns if column.rank <= rank]
        for gap in _GAPS:
            if _total(kept, gap) <= width:
                return kept, gap
        if rank <= 1:
            kept = _break_settings(kept, width)
            if _total(kept, _GAPS[-1]) <= width:
                break
    return kept, _GAPS[-1]


def _total(columns: Sequence[Column], gap: int) -> int:
    return sum(column.width + gap for column in columns) - gap


def _break_settings(columns: list[Column], width: int) -> list[Column]:
    """The columns with the widest settings broken at `+`, as far as it is needed and possible."""
    columns = list(columns)
    for place in sorted(range(len(columns)), key=lambda i: -columns[i].width):
        excess = _total(columns, _GAPS[-1]) - width
        column = columns[place]
        if excess > 0 and column.is_setting:
            most = column.width - excess
            cells = [_break(cell, most) for cell in column.cells]
            columns[place] = replace(column, cells=cells)
    return columns


def _break(cell: str, width: int) -> str:
    """The cell in lines of at most `width`, as far as its parts between `+` allow."""
    lines: list[str] = []
    for part in cell.split("+"):
        if lines and cell_len(f"{lines[-1]}+{part}") < width:
            lines[-1] += f"+{part}"
        else:
            lines.append(part)
    return "+\n".join(lines)


def _plain(name: str) -> str:
    """The name as `orchestrator.spec.space.describe` writes it."""
    return "base" if name == "base.model" else name.removeprefix("base.")


def _head(name: str) -> str:
    known = SHORT_HEADS.get(name) or SHORT_HEADS.get(f"base.{name}")
    return known or one_line(name.rpartition(".")[2])


def _format_number(value: float) -> str:
    text = f"{value:.{_DIGITS}g}"
    if value != 0 and abs(value) < 1e-3:
        text = f"{value:.{_DIGITS - 1}e}"
    digits, is_exponent, power = text.partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}" if is_exponent else text
