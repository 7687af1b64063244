"""Layout of a source: the column of each role, by column names or by `data.columns`.

For every layout `trainables.files.arranging` makes the columns `messages`, `prompt` and
`completion`, or `text`.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from trainables.claims import begin
from trainables.data_spec import DataSpec, template_columns
from trainables.errors import DataError
from trainables.files.readers import RawRow

RowFormat = Literal["messages", "sharegpt", "alpaca", "prompt-completion", "text"]
RowKind = Literal["messages", "prompt-completion", "text"]

KINDS: dict[RowFormat, RowKind] = {
    "messages": "messages",
    "sharegpt": "messages",
    "alpaca": "prompt-completion",
    "prompt-completion": "prompt-completion",
    "text": "text",
}

_PROMPTS = ("prompt", "question", "query", "instruction", "input", "problem")
_ANSWERS = ("completion", "answer", "response", "output", "target", "solution", "chosen")
_LABELS = (*_ANSWERS, "label", "labels", "summary", "category", "class", "reference")
"""Columns that make a `text` column beside them look like a prompt."""

_CONTEXTS = ("context", "passage", "document", "article", "choices", "options", "history")
"""Columns that a question often depends on."""

_CONVERSATIONS = ("conversations", "conversation")

OPTIONAL = ("system", "tools", "input")
"""Roles that not every row needs to fill."""


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """Layout of a source's rows: format, columns and prompt template.

    Attributes:
        format: Recognized format.
        columns: Column name by role, such as `{"prompt": "question"}`.
        template: Template that makes the prompt from columns; `None` if a column is the prompt.
        unused: Columns that are not read.
    """

    format: RowFormat
    columns: Mapping[str, str]
    template: str | None = None
    unused: tuple[str, ...] = ()

    @property
    def kind(self) -> RowKind:
        """The format of rows after their columns are arranged."""
        return KINDS[self.format]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `layout_from`."""
        return {
            "format": self.format,
            "columns": dict(self.columns),
            "template": self.template,
            "unused": list(self.unused),
        }

    def describe(self) -> str:
        """One sentence on the roles and their columns."""
        named = ", ".join(f"{role} from {column!r}" for role, column in self.columns.items())
        parts = [f"Rows are read as {self.format}: {named}"]
        if self.template is not None:
            parts.append(f"the prompt by the template {self.template!r}")
        if self.format == "alpaca" and self.template is None:
            parts.append("the prompt in Alpaca's own words around instruction and input")
        if self.format == "text":
            parts.append("all of the text is learned, as there is no prompt")
        if self.unused:
            parts.append(f"not used: {', '.join(map(repr, self.unused))}")
        return "; ".join(parts) + "."


def find_layout(rows: Sequence[RawRow], spec: DataSpec, field: str) -> RowLayout:
    """The layout given by a spec, or recognized by the columns of the rows.

    Args:
        rows: All rows of a source.
        spec: The spec; only `format`, `columns` and `prompt_template` are used.
        field: Dotted field of the source.

    Raises:
        DataError: No layout fits, or several do.
    """
    counts = Counter(column for row in rows for column in row.values)
    common = [column for column, count in counts.items() if 2 * count >= len(rows)]
    columns = _Columns(
        all=tuple(counts),
        common=tuple(common),
        filled=frozenset(
            column
            for row in rows
            for column, value in row.values.items()
            if not is_missing(value) and value not in ("", [], {})
        ),
        place=rows[0].place,
        field=field,
    )
    if spec.columns is not None or spec.prompt_template is not None:
        format_, roles = _named(spec, columns)
    elif spec.format != "auto":
        format_, roles = spec.format, _of_format(spec.format, columns)
    else:
        format_, roles = _recognize(columns)
    optional = {"messages": ("system", "tools"), "prompt-completion": ("tools",), "text": ()}
    wanted = ("input",) if format_ == "alpaca" else optional[KINDS[format_]]
    by_name = {column.strip().lower(): column for column in counts}
    roles |= {name: by_name[name] for name in wanted if name in by_name and name not in roles}
    template = spec.prompt_template
    used = {spec.group_by, *roles.values()}
    used |= set(() if template is None else template_columns(template))
    return RowLayout(
        format=format_,
        columns=roles,
        template=template,
        unused=tuple(column for column in counts if column not in used),
    )


def layout_from(recorded: Mapping[str, Any] | None, rows: Sequence[RawRow]) -> RowLayout | None:
    """The recorded layout if the rows have its columns, else `None`."""
    if recorded is None:
        return None
    layout = RowLayout(
        format=recorded["format"],
        columns=dict(recorded["columns"]),
        template=recorded["template"],
        unused=tuple(recorded["unused"]),
    )
    template = () if layout.template is None else template_columns(layout.template)
    needed = {column for role, column in layout.columns.items() if role not in OPTIONAL}
    return layout if needed | set(template) <= rows[0].values.keys() else None


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Columns of a source: all, common (in at least half of the rows), and filled (any value)."""

    all: tuple[str, ...]
    common: tuple[str, ...]
    filled: frozenset[str]
    place: str
    field: str

    def find(self, names: Sequence[str]) -> list[str]:
        """Common columns with a given name, in any case, in the order of `names`."""
        found = {name: [one for one in self.common if one.strip().lower() == name]
                 for name in names}  # fmt: skip
        return [column for columns in found.values() for column in columns]

    def refuse(self, why: str, remedy: str) -> NoReturn:
        shown = ", ".join(map(repr, self.all)) or "(none)"
        allowed = (
            "messages; conversations; instruction and output; prompt and completion, or another "
            "pair such as question and answer; text"
        )
        raise DataError(
            f"{self.field}: {self.place} has columns {shown}{why}; allowed: {allowed}. {remedy}"
        )


def _named(spec: DataSpec, columns: _Columns) -> tuple[RowFormat, dict[str, str]]:
    """Format and columns from `data.columns` and `data.prompt_template`."""
    roles = dict(spec.columns.named) if spec.columns is not None else {}
    template = () if spec.prompt_template is None else template_columns(spec.prompt_template)
    for where, names in (
        ("data.columns", tuple(roles.values())),
        ("data.prompt_template", template),
    ):
        for name in names:
            if name not in columns.all:
                near = difflib.get_close_matches(name, columns.all, n=1)
                raise DataError(
                    f"{begin(where, *near)} {name!r}, which {columns.field} does not have; "
                    f"allowed: {', '.join(map(repr, columns.all))}. Name one of these."
                )
    if not roles:
        free = [one for one in columns.find(_ANSWERS) if one not in template]
        if len(free) != 1:
            found = f"{len(free)} that may hold the answer" if free else "none for the answer"
            columns.refuse(
                f", of which data.prompt_template leaves {found}",
                "Name the answer's column: data.columns: {completion: NAME}.",
            )
        roles = {"completion": free[0]}
    return _format_of(spec, roles), roles


def _format_of(spec: DataSpec, roles: Mapping[str, str]) -> RowFormat:
    """Format of the named columns; a different `data.format` is refused."""
    made: RowFormat = "prompt-completion"
    if "messages" in roles or "text" in roles:
        made = "messages" if "messages" in roles else "text"
    if spec.format != "auto" and KINDS[spec.format] != made:
        raise DataError(
            f"data.format: got {spec.format!r}, but data.columns and data.prompt_template make "
            f"{made}; allowed: auto, {made}. Leave data.format out."
        )
    return "sharegpt" if spec.format == "sharegpt" else made


def _of_format(format_: RowFormat, columns: _Columns) -> dict[str, str]:
    """Columns of a set format; the format's own names where no known synonym exists."""
    if format_ == "sharegpt":
        return {
            "messages": next(iter(columns.find((*_CONVERSATIONS, "messages"))), "conversations")
        }
    if format_ == "alpaca":
        answers = columns.find(("output", "response", "completion"))
        return {"instruction": "instruction", "completion": answers[0] if answers else "output"}
    if format_ == "prompt-completion":
        exact = [name for name in ("prompt", "completion") if name in columns.all]
        return _pair(columns) or {
            "prompt": "prompt" if exact != ["completion"] else exact[0],
            "completion": "completion",
        }
    return {format_: format_}


def _recognize(columns: _Columns) -> tuple[RowFormat, dict[str, str]]:
    """First layout that fits the columns; `text` only if no other layout is possible."""
    chat = columns.find(("messages", *_CONVERSATIONS))
    if chat:
        is_openai = chat[0].lower() == "messages"
        return ("messages" if is_openai else "sharegpt"), {"messages": chat[0]}
    outputs = columns.find(("output", "response"))
    if columns.find(("instruction",)) and len(outputs) == 1 and not columns.find(("prompt",)):
        (instruction,) = columns.find(("instruction",))
        _refuse_context(columns, instruction, outputs[0])
        return "alpaca", {"instruction": instruction, "completion": outputs[0]}
    pair = _pair(columns)
    if pair:
        return "prompt-completion", pair
    if not columns.find(("text",)):
        columns.refuse(
            "",
            "Say which ones are meant: data.columns: {prompt: NAME, completion: NAME}, or "
            "data.prompt_template with several of them.",
        )
    beside = [one for one in columns.common if one.strip().lower() in (*_LABELS, *_PROMPTS)]
    if beside:
        columns.refuse(
            f": 'text' may be the prompt of {beside[0]!r}, or all that is learned",
            f"Say which is meant: data.columns: {{prompt: text, completion: {beside[0]}}}, or "
            "data.format: text.",
        )
    return "text", {"text": columns.find(("text",))[0]}


def _pair(columns: _Columns) -> dict[str, str]:
    """The prompt column and the answer column; empty if there is no such pair."""
    if {"prompt", "completion"} <= set(columns.common):
        return {"prompt": "prompt", "completion": "completion"}
    prompts, answers = columns.find(_PROMPTS), columns.find(_ANSWERS)
    if not prompts or not answers:
        return {}
    if len(prompts) > 1 or len(answers) > 1:
        columns.refuse(
            f", of which {' and '.join(map(repr, prompts if len(prompts) > 1 else answers))} may "
            f"hold the {'prompt' if len(prompts) > 1 else 'answer'}",
            f"Say which is meant: data.columns: {{prompt: {prompts[0]}, completion: "
            f"{answers[0]}}}, or data.prompt_template with several of them.",
        )
    _refuse_context(columns, prompts[0], answers[0])
    return {"prompt": prompts[0], "completion": answers[0]}


def _refuse_context(columns: _Columns, prompt: str, answer: str) -> None:
    """Refuse an ambiguous source: a context column that may belong to the prompt."""
    context = [one for one in columns.find(_CONTEXTS) if one in columns.filled]
    if context:
        columns.refuse(
            f", of which {context[0]!r} may belong to the prompt",
            f'Say so: data.prompt_template: "{{{context[0]}}} {{{prompt}}} "; or leave it out: '
            f"data.columns: {{prompt: {prompt}, completion: {answer}}}.",
        )


def is_missing(value: object) -> bool:
    """Whether a cell is empty: null, or the NaN of tables."""
    return value is None or (isinstance(value, float) and math.isnan(value))
