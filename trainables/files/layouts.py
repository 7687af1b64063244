"""Which columns of a source hold what: recognized by their names, or as `data.columns` says.

Whatever a source calls its columns, `trainables.files.arranging` makes `messages`, `prompt` and
`completion`, or `text` of them.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

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
"""Columns that make `text` beside them look like a prompt."""

_CONTEXTS = ("context", "passage", "document", "article", "choices", "options", "history")
"""Columns that a question is often nothing without."""

_CONVERSATIONS = ("conversations", "conversation")

OPTIONAL = ("system", "tools", "input")
"""What a layout may hold that not every row needs."""


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """How the rows of a source are read.

    Attributes:
        format: What they were recognized as.
        columns: Column by what it holds, such as `{"prompt": "question"}`.
        template: Makes the prompt from columns; `None` where a column is the prompt.
        unused: Columns that nothing is read from.
    """

    format: RowFormat
    columns: Mapping[str, str]
    template: str | None = None
    unused: tuple[str, ...] = ()

    @property
    def kind(self) -> RowKind:
        """The format that rows have once their columns are put in place."""
        return KINDS[self.format]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `layout_from` takes back."""
        return {
            "format": self.format,
            "columns": dict(self.columns),
            "template": self.template,
            "unused": list(self.unused),
        }

    def describe(self) -> str:
        """One sentence on what is read from where."""
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
    """The layout that a spec says, or that the columns of the rows say.

    Args:
        rows: All rows of a source.
        spec: `format`, `columns` and `prompt_template` count.
        field: Dotted field of the source.

    Raises:
        DataError: No layout fits, or more than one does.
    """
    counts = Counter(column for row in rows for column in row.values)
    common = [column for column, count in counts.items() if 2 * count >= len(rows)]
    columns = _Columns(
        all=tuple(counts),
        common=tuple(common),
        filled=frozenset(
            column for row in rows for column, value in row.values.items() if _is_filled(value)
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
    roles |= _optional(format_, columns, roles)
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
    """A layout that was recorded, where the rows have its columns; `None` where they do not."""
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
    """The columns of a source: all, those of at least half of the rows, those with any value."""

    all: tuple[str, ...]
    common: tuple[str, ...]
    filled: frozenset[str]
    place: str
    field: str

    def find(self, names: Sequence[str]) -> list[str]:
        """Columns with one of the names, in whatever case, in the order of the names."""
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


def _optional(format_: RowFormat, columns: _Columns, roles: Mapping[str, str]) -> dict[str, str]:
    """Columns that a format reads where they are there, though not every row need have them."""
    names = {"messages": ("system", "tools"), "prompt-completion": ("tools",), "text": ()}
    wanted = ("input",) if format_ == "alpaca" else names[KINDS[format_]]
    by_name = {column.strip().lower(): column for column in columns.all}
    return {name: by_name[name] for name in wanted if name in by_name and name not in roles}


def _named(spec: DataSpec, columns: _Columns) -> tuple[RowFormat, dict[str, str]]:
    """The layout of `data.columns` and `data.prompt_template`."""
    roles = dict(spec.columns.named) if spec.columns is not None else {}
    template = () if spec.prompt_template is None else template_columns(spec.prompt_template)
    for where, names in (
        ("data.columns", tuple(roles.values())),
        ("data.prompt_template", template),
    ):
        for name in names:
            _require_column(name, where, columns)
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
    """The format that named columns make, which a format that is set must not contradict."""
    made: RowFormat = "prompt-completion"
    if "messages" in roles or "text" in roles:
        made = "messages" if "messages" in roles else "text"
    if spec.format != "auto" and KINDS[spec.format] != made:
        raise DataError(
            f"data.format: got {spec.format!r}, but data.columns and data.prompt_template make "
            f"{made}; allowed: auto, {made}. Leave data.format out."
        )
    return "sharegpt" if spec.format == "sharegpt" else made


def _require_column(name: str, where: str, columns: _Columns) -> None:
    if name in columns.all:
        return
    near = difflib.get_close_matches(name, columns.all, n=1)
    remedy = f"Did you mean {near[0]!r}?" if near else "Name one of these."
    raise DataError(
        f"{where}: got {name!r}, which {columns.field} does not have; allowed: "
        f"{', '.join(map(repr, columns.all))}. {remedy}"
    )


def _of_format(format_: RowFormat, columns: _Columns) -> dict[str, str]:
    """The columns of a format that is set; by its own names where none of their kin is there."""
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
    """The first layout that the columns have; `text` only where nothing else is meant."""
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
    """The one column to ask with and the one to answer with; empty where there is none."""
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
    """Ask what is meant where a column looks as if the prompt were nothing without it."""
    context = [one for one in columns.find(_CONTEXTS) if one in columns.filled]
    if context:
        columns.refuse(
            f", of which {context[0]!r} may belong to the prompt",
            f'Say so: data.prompt_template: "{{{context[0]}}} {{{prompt}}} "; or leave it out: '
            f"data.columns: {{prompt: {prompt}, completion: {answer}}}.",
        )


def _is_filled(value: object) -> bool:
    return not is_missing(value) and value not in ("", [], {})


def is_missing(value: object) -> bool:
    """Whether a cell is empty: null, or the NaN that tables put there."""
    return value is None or (isinstance(value, float) and math.isnan(value))
