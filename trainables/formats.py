"""What a row means: which columns a format has, and what makes a row unusable."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

from trainables.errors import DataError
from trainables.sources import RawRow
from trainables.spec import DataFormat

RowFormat = Literal["messages", "prompt-completion", "text"]

COLUMNS: dict[RowFormat, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}
"""Columns each format needs; `auto` takes the first format whose columns are all there."""

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True)
class PlainExample:
    """Text to continue and its continuation; a `text` row has an empty prompt."""

    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class ChatExample:
    """A conversation that ends with an assistant turn.

    Attributes:
        turns: Messages as a chat template takes them: every content is text, every call of a tool
            has a function with a name and arguments.
        context: Count of leading turns that are no answers even when the assistant says them.
        tools: JSON schemas of the tools on offer: the column `tools`.
    """

    turns: tuple[Mapping[str, Any], ...]
    context: int = 0
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def answers(self) -> tuple[int, ...]:
        """Positions in `turns` of the turns to learn."""
        return tuple(
            position
            for position, turn in enumerate(self.turns)
            if position >= self.context and turn["role"] == "assistant"
        )


Example = PlainExample | ChatExample


def detect_format(row: RawRow, wanted: DataFormat, field: str) -> RowFormat:
    """The format to read rows with: the one wanted, or read off the columns of one row.

    Raises:
        DataError: `auto` finds no format that fits the columns.
    """
    if wanted != "auto":
        return wanted
    for name, columns in COLUMNS.items():
        if all(column in row.values for column in columns):
            return name
    allowed = "; ".join(" and ".join(columns) for columns in COLUMNS.values())
    raise DataError(
        f"{field}: {row.place} has columns {_columns(row)}; allowed: {allowed}. Rename them."
    )


def parse_row(row: RawRow, row_format: RowFormat, field: str) -> Example:
    """The example a row holds.

    Raises:
        DataError: A column is missing or of the wrong type, a role unknown, or the answer empty.
    """
    for column in COLUMNS[row_format]:
        if column not in row.values:
            _refuse(
                row,
                field,
                f"has no column {column!r} but {_columns(row)}",
                f"the columns of format {row_format}: {', '.join(COLUMNS[row_format])}",
                "Rename the columns or set data.format.",
            )
    if row_format == "messages":
        return _parse_chat(row, "messages", field)
    if row_format == "text":
        return PlainExample(prompt="", answer=_answer(row, "text", field))
    if isinstance(row.values["prompt"], str):
        return PlainExample(
            prompt=_text(row, "prompt", row.values["prompt"], field),
            answer=_answer(row, "completion", field),
        )
    prompt = _turns(row, "prompt", field)
    return _parse_chat(row, "completion", field, before=prompt)


def _columns(row: RawRow) -> str:
    return ", ".join(repr(column) for column in row.values) or "(none)"


def _refuse(row: RawRow, field: str, wrong: str, allowed: str, remedy: str) -> NoReturn:
    raise DataError(f"{field}: {row.place} {wrong}; allowed: {allowed}. {remedy}")


def _text(row: RawRow, where: str, value: object, field: str) -> str:
    if not isinstance(value, str):
        wrong = f"has a {type(value).__name__} in {where!r}"
        _refuse(row, field, wrong, "text", "Write it as a string.")
    try:
        value.encode()
    except UnicodeEncodeError:
        wrong = f"has half of a surrogate pair in {where!r}"
        _refuse(row, field, wrong, "text that UTF-8 can hold", "Remove the broken character.")
    return value


def _answer(row: RawRow, column: str, field: str) -> str:
    answer = _text(row, column, row.values[column], field)
    if not answer.strip():
        wrong = f"has nothing to learn in {column!r}: got {answer!r}"
        _refuse(row, field, wrong, "text that is not blank", "Fill in or remove the row.")
    return answer


def _turns(row: RawRow, column: str, field: str) -> tuple[Mapping[str, Any], ...]:
    values = row.values[column]
    if not isinstance(values, list | tuple):
        allowed = "a list of {role, content}" if column == "messages" else "text or messages"
        wrong = f"has a {type(values).__name__} in {column!r}"
        remedy = "Write prompt and completion alike: both text, or both messages."
        _refuse(row, field, wrong, allowed, remedy if column != "messages" else "Write a list.")
    return tuple(
        _turn(row, f"{column}[{position}]", value, field) for position, value in enumerate(values)
    )


def _turn(row: RawRow, where: str, value: object, field: str) -> Mapping[str, Any]:
    is_turn = isinstance(value, dict) and "role" in value
    if not isinstance(value, dict) or not is_turn or not {"content", "tool_calls"} & value.keys():
        wrong = f"has no role and content in {where!r}"
        _refuse(row, field, wrong, "{role, content}", "Give every message both.")
    if value["role"] not in ROLES:
        wrong = f"has the role {value['role']!r} in {where!r}"
        _refuse(row, field, wrong, ", ".join(ROLES), "Rename the role.")
    # Parquet gives every struct every key; templates ask whether a key is there.
    turn = {key: entry for key, entry in value.items() if entry is not None}
    calls = _calls(row, f"{where}.tool_calls", turn.pop("tool_calls", None) or [], field)
    if calls:
        turn["tool_calls"] = calls
    turn["content"] = _content(row, f"{where}.content", turn.get("content"), field, bool(calls))
    return turn


def _content(row: RawRow, where: str, value: object, field: str, has_calls: bool) -> str:
    """The text of a message; its parts of text joined by newlines, as servers do."""
    if value is None and has_calls:
        return ""
    if not isinstance(value, list | tuple):
        return _text(row, where, value, field)
    texts = []
    for position, part in enumerate(value):
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str) or (isinstance(part, dict) and part.get("type") != "text"):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            wrong = f"has a part of type {kind!r} in '{where}[{position}]'"
            _refuse(row, field, wrong, "parts of type 'text'", "Remove the part or the row.")
        texts.append(_text(row, f"{where}[{position}].text", text, field))
    return "\n".join(texts)


def _calls(row: RawRow, where: str, values: object, field: str) -> list[dict[str, Any]]:
    values = _from_json(values)
    if not isinstance(values, list | tuple):
        wrong = f"has a {type(values).__name__} in {where!r}"
        _refuse(row, field, wrong, "a list of calls", "Write a list.")
    return [_call(row, f"{where}[{n}]", value, field) for n, value in enumerate(values)]


def _call(row: RawRow, where: str, value: object, field: str) -> dict[str, Any]:
    call = dict(value) if isinstance(value, dict) else {}
    function = call.pop("function", None) or {
        key: call.pop(key) for key in ("name", "arguments") if key in call
    }
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        wrong = f"has no name of a function in {where!r}"
        allowed = "{function: {name, arguments}}"
        _refuse(row, field, wrong, allowed, "Name the function that is called.")
    arguments = function.get("arguments") or {}
    if not isinstance(_from_json(arguments), dict):
        wrong = f"has arguments that are no JSON object in {where!r}: {arguments!r}"
        allowed = "an object, or its JSON text"
        _refuse(row, field, wrong, allowed, "Mend the arguments.")
    kept = {key: entry for key, entry in call.items() if entry is not None}
    return {
        "type": "function",
        **kept,
        "function": {"name": name, "arguments": _without_none(arguments)},
    }


def _tools(row: RawRow, field: str) -> tuple[Mapping[str, Any], ...]:
    tools = _from_json(row.values.get("tools") or [])
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, dict) for tool in tools):
        wrong = f"has a {type(tools).__name__} in 'tools'"
        allowed = "a list of JSON schemas of functions, or its JSON text"
        _refuse(row, field, wrong, allowed, "Mend the column or remove it.")
    return tuple(_without_none(tool) for tool in tools)


def _from_json(value: object) -> Any:
    """What a JSON text holds; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _without_none(value: Any) -> Any:
    """Mappings without the keys that hold nothing: Parquet gives every struct every key."""
    if isinstance(value, dict):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return [_without_none(one) for one in value] if isinstance(value, list | tuple) else value


def _parse_chat(
    row: RawRow, column: str, field: str, before: Sequence[Mapping[str, Any]] = ()
) -> ChatExample:
    turns = (*before, *_turns(row, column, field))
    chat = ChatExample(turns=turns, context=len(before), tools=_tools(row, field))
    if not chat.answers:
        wrong = f"has no assistant turn in {column!r}"
        _refuse(row, field, wrong, "at least one", "Add the answer or remove the row.")
    if chat.answers[0] == 0:
        wrong = f"starts with the assistant in {column!r}"
        _refuse(row, field, wrong, "a system or user turn first", "Add what is answered.")
    for position in chat.answers:
        if not (turns[position]["content"].strip() or turns[position].get("tool_calls")):
            wrong = f"has an empty assistant turn, number {position + 1}"
            _refuse(row, field, wrong, "text that is not blank", "Fill in or remove the row.")
    # What follows the last answer teaches nothing and costs memory.
    return replace(chat, turns=turns[: chat.answers[-1] + 1])
