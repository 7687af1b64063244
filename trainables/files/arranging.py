"""Row values moved to the columns that `files.formats` reads, with JSON in cells parsed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from trainables.claims import kind_of
from trainables.data_spec import template_columns
from trainables.errors import DataError
from trainables.files.layouts import OPTIONAL, RowLayout, is_missing
from trainables.files.readers import JsonError, RawRow, parse_json, parse_list

ROLE_NAMES = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "model": "assistant", "bing": "assistant", "bard": "assistant", "ai": "assistant",
    "system": "system", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
    "function": "tool", "ipython": "tool",
}  # fmt: skip
"""Message roles by ShareGPT's `from` value, for the names found in data sets."""

_CALLS = ("function_call", "tool_call")

# Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca, train.py: PROMPT_DICT.
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)


def arrange(row: RawRow, layout: RowLayout, field: str) -> RawRow:
    """The row in the columns of `layout.kind`, with JSON text parsed.

    Raises:
        DataError: A column is missing, or a value cannot be used in its column.
    """
    for role, column in layout.columns.items():
        if column not in row.values and role not in OPTIONAL:
            shown = ", ".join(map(repr, row.values)) or "(none)"
            refuse_row(
                row, field, f"has no column {column!r} but {shown}",
                f"the columns of format {layout.format}: {', '.join(layout.columns.values())}",
                "Rename the columns, or set data.columns.",
            )  # fmt: skip
    values = {
        role: None if is_missing(value := row.values.get(column)) else value
        for role, column in layout.columns.items()
    }
    if layout.kind == "messages":
        arranged = _arrange_messages(row, layout, values, field)
    elif layout.kind == "prompt-completion":
        arranged = _arrange_pair(row, layout, values, field)
    else:
        arranged = {"text": values["text"]}
    return RawRow(values=arranged, place=row.place)


def refuse_row(row: RawRow, field: str, wrong: str, allowed: str, remedy: str) -> NoReturn:
    """Raise the error for a row that cannot be used.

    Raises:
        DataError: Always.
    """
    raise DataError(f"{field}: {row.place} {wrong}; allowed: {allowed}. {remedy}")


def _arrange_pair(
    row: RawRow, layout: RowLayout, values: Mapping[str, Any], field: str
) -> dict[str, Any]:
    if layout.template is not None:
        columns = {name: name for name in template_columns(layout.template)}
        prompt: Any = _fill(row, layout.template, columns, field)
    elif layout.format == "alpaca":
        given = values.get("input")
        has_input = given is not None and str(given).strip() != ""
        names = ("instruction", "input") if has_input else ("instruction",)
        columns = {name: layout.columns[name] for name in names}
        prompt = _fill(row, _ALPACA_INPUT if has_input else _ALPACA, columns, field)
    else:
        prompt = values["prompt"]
    arranged = {"prompt": prompt, "completion": values["completion"]}
    return arranged if isinstance(prompt, str) else arranged | _tools(row, layout, values, field)


def _fill(row: RawRow, template: str, columns: Mapping[str, str], field: str) -> str:
    """A template filled with a row's values; each value must be text or a number."""
    filled = {}
    for name, column in columns.items():
        value = row.values.get(column)
        if (
            isinstance(value, bool)
            or not isinstance(value, str | int | float)
            or is_missing(value)
        ):
            wrong = f"has {describe_value(value)} in {column!r}"
            refuse_row(
                row, field, wrong, "text or a number where a template puts it",
                "Fill it in, with empty text where there is none.",
            )  # fmt: skip
        filled[name] = value
    return template.format_map(filled)


def describe_value(value: object) -> str:
    """Description of a cell for messages, such as `no value` or `a list`."""
    return "no value" if is_missing(value) else kind_of(value)


def _arrange_messages(
    row: RawRow, layout: RowLayout, values: Mapping[str, Any], field: str
) -> dict[str, Any]:
    column, turns = layout.columns["messages"], values["messages"]
    if isinstance(turns, str):
        parsed = parse_list(turns)
        turns = turns if parsed is None else parsed
    if not isinstance(turns, list | tuple):
        wrong = f"has {describe_value(turns)} in {column!r}"
        refuse_row(
            row, field, wrong, "a list of messages, or that list as JSON text",
            "Write a list of {role, content}.",
        )  # fmt: skip
    turns = [_message(row, f"{column}[{i}]", turn, field) for i, turn in enumerate(turns)]
    system = values.get("system")
    first = turns[0] if turns else None
    has_system = isinstance(first, dict) and first.get("role") == "system"
    if isinstance(system, str) and system.strip() and not has_system:
        turns = [{"role": "system", "content": system}, *turns]
    return {"messages": turns, **_tools(row, layout, values, field)}


def _message(row: RawRow, where: str, turn: Any, field: str) -> Any:
    """A ShareGPT turn as a message; any other value unchanged."""
    if not isinstance(turn, dict) or "role" in turn or not {"from", "value"} <= turn.keys():
        return turn
    name = turn["from"]
    role = ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        wrong = f"has the role {name!r} in {where!r}"
        refuse_row(row, field, wrong, ", ".join(ROLE_NAMES), "Rename the role.")
    others = {key: entry for key, entry in turn.items() if key not in ("from", "value")}
    if name.strip().lower() in _CALLS:
        calls = _calls(row, where, turn["value"], field)
        return {**others, "role": role, "content": "", "tool_calls": calls}
    return {**others, "role": role, "content": turn["value"]}


def _calls(row: RawRow, where: str, value: Any, field: str) -> list[dict[str, Any]]:
    """Calls of a ShareGPT turn, parsed from a call or a list of calls as JSON text."""
    try:
        calls = parse_json(value) if isinstance(value, str) else value
    except JsonError:
        calls = None
    calls = [calls] if isinstance(calls, dict) else calls
    is_named = isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls
    )
    if not calls or not is_named:
        wrong = f"has no function call in {where!r}"
        refuse_row(
            row, field, wrong, '{"name": …, "arguments": …} as JSON text, or a list of such calls',
            "Write the call as JSON.",
        )  # fmt: skip
    return [
        {
            "type": "function",
            "function": {"name": call["name"], "arguments": call.get("arguments", {})},
        }
        for call in calls or ()
    ]


def _tools(
    row: RawRow, layout: RowLayout, values: Mapping[str, Any], field: str
) -> dict[str, Any]:
    """Tools of a row in a mapping of their own; empty where the row has none."""
    value = values.get("tools")
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}
    try:
        return {"tools": parse_json(value) if isinstance(value, str) else value}
    except JsonError as error:
        wrong = f"has text in {layout.columns['tools']!r} that {error}"
        refuse_row(row, field, wrong, "a list of tools, or that list as JSON", "Correct the text.")
