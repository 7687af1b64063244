"""Messages of a chat in the form of templates: contents are text, calls are of functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trainables.claims import kind_of
from trainables.files.arranging import describe_value
from trainables.files.arranging import refuse_row as _refuse
from trainables.files.readers import RawRow

ROLES = ("system", "developer", "user", "assistant", "tool")

LEARNING_MARKS = ("weight", "train", "training", "trainable", "loss")
"""Keys of a message that say whether it is learned: OpenAI's, Axolotl's, ms-swift's."""


def read_text(row: RawRow, where: str, value: object, field: str) -> str:
    """Text of a cell.

    Raises:
        DataError: The value is not text, or cannot be encoded in UTF-8.
    """
    if not isinstance(value, str):
        wrong = f"has {describe_value(value)} in {where!r}"
        _refuse(row, field, wrong, "text", "Write it as a string.")
    try:
        value.encode()
    except UnicodeEncodeError:
        wrong = f"has half of a surrogate pair in {where!r}"
        _refuse(row, field, wrong, "text that UTF-8 can hold", "Remove the broken character.")
    return value


def read_turn(row: RawRow, where: str, value: object, field: str) -> Mapping[str, Any]:
    """Message of a turn, with its content as text.

    Raises:
        DataError: The value is not a message, its role is unknown, or a part cannot be used.
    """
    is_turn = isinstance(value, dict) and "role" in value
    if not isinstance(value, dict) or not is_turn or not {"content", "tool_calls"} & value.keys():
        wrong = f"has no role and content in {where!r}"
        _refuse(row, field, wrong, "{role, content}", "Give every message both.")
    if value["role"] not in ROLES:
        wrong = f"has the role {value['role']!r} in {where!r}"
        _refuse(row, field, wrong, ", ".join(ROLES), "Rename the role.")
    # Parquet gives every struct every key; templates test for the presence of a key.
    turn = {
        key: entry
        for key, entry in value.items()
        if entry is not None and key not in LEARNING_MARKS
    }
    calls, place = _from_json(turn.pop("tool_calls", None) or []), f"{where}.tool_calls"
    if not isinstance(calls, list | tuple):
        wrong = f"has {kind_of(calls)} in {place!r}"
        _refuse(row, field, wrong, "a list of calls", "Write a list.")
    if calls:
        turn["tool_calls"] = [
            _call(row, f"{place}[{n}]", call, field) for n, call in enumerate(calls)
        ]
    turn["content"] = _content(row, f"{where}.content", turn.get("content"), field, bool(calls))
    return turn


def says_not_to_learn(row: RawRow, where: str, value: object, field: str) -> str:
    """Mark of a message against learning, such as `weight: 0`; empty if the message is learned.

    Raises:
        DataError: The mark is neither on nor off: an answer is learned whole or not at all.
    """
    for key in LEARNING_MARKS:
        mark = value.get(key) if isinstance(value, dict) else None
        if mark is None or (key == "loss" and not isinstance(mark, bool)):
            continue  # a number would be a measured loss
        if mark not in (0, 1):
            wrong = f"has {mark!r} in '{where}.{key}'"
            _refuse(row, field, wrong, "0 or 1, false or true", "Choose one of them.")
        if not mark:
            return f"{key}: {json.dumps(mark)}"
    return ""


def _content(row: RawRow, where: str, value: object, field: str, has_calls: bool) -> str:
    """Text of a message; text parts are joined by newlines, as in servers."""
    if value is None and has_calls:
        return ""
    if not isinstance(value, list | tuple):
        return read_text(row, where, value, field)
    texts = []
    for position, part in enumerate(value):
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str) or (isinstance(part, dict) and part.get("type") != "text"):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            wrong = f"has a part of type {kind!r} in '{where}[{position}]'"
            _refuse(row, field, wrong, "parts of type 'text'", "Remove the part or the row.")
        texts.append(read_text(row, f"{where}[{position}].text", text, field))
    return "\n".join(texts)


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
        _refuse(row, field, wrong, allowed, "Correct the arguments.")
    kept = {key: entry for key, entry in call.items() if entry is not None}
    # Templates may write the keys as they come, so the row's order is kept.
    return {
        **({} if "type" in kept else {"type": "function"}),
        **kept,
        "function": {"name": name, "arguments": _without_none(arguments)},
    }


def read_tools(row: RawRow, field: str) -> tuple[Mapping[str, Any], ...]:
    """JSON schemas of the column `tools`; empty without the column.

    Raises:
        DataError: The column holds another value.
    """
    tools = _from_json(row.values.get("tools") or [])
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, dict) for tool in tools):
        wrong = f"has {kind_of(tools)} in 'tools'"
        allowed = "a list of JSON schemas of functions, or its JSON text"
        _refuse(row, field, wrong, allowed, "Correct the column or remove it.")
    return tuple(_without_none(tool) for tool in tools)


def _from_json(value: object) -> Any:
    """Value of a JSON text; any other value unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _without_none(value: Any) -> Any:
    """Mappings without keys whose value is `None`: Parquet gives every struct every key."""
    if isinstance(value, dict):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return [_without_none(one) for one in value] if isinstance(value, list | tuple) else value
