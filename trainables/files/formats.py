"""Examples of rows: the columns of each format, and the checks of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trainables.claims import kind_of
from trainables.files.arranging import arrange
from trainables.files.arranging import refuse_row as _refuse
from trainables.files.layouts import RowLayout
from trainables.files.messages import read_text, read_tools, read_turn, says_not_to_learn
from trainables.files.readers import RawRow


@dataclass(frozen=True, kw_only=True)
class PlainExample:
    """A text to continue, with its continuation; a `text` row has an empty prompt."""

    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class ChatExample:
    """A conversation that ends with an assistant turn.

    Attributes:
        turns: Messages as `trainables.files.messages` makes them.
        context: Number of leading turns that are not answers, even from the assistant.
        unwanted: Positions of assistant turns that the row says not to learn, with its words.
        tools: JSON schemas of the tools on offer, from the column `tools`.
    """

    turns: tuple[Mapping[str, Any], ...]
    context: int = 0
    unwanted: Mapping[int, str] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def answers(self) -> tuple[int, ...]:
        """Positions in `turns` of the turns to learn."""
        return tuple(
            position
            for position, turn in enumerate(self.turns)
            if position >= self.context
            and turn["role"] == "assistant"
            and position not in self.unwanted
        )


Example = PlainExample | ChatExample


def parse_row(row: RawRow, layout: RowLayout, field: str) -> Example:
    """Example of a row.

    Raises:
        DataError: A column is missing or of the wrong type, a role unknown, or the answer empty.
    """
    row = arrange(row, layout, field)
    columns = layout.columns
    if layout.kind == "messages":
        return _parse_chat(row, "messages", field)
    if layout.kind == "text":
        return PlainExample(prompt="", answer=_answer(row, columns["text"], "text", field))
    if layout.template is not None or isinstance(row.values["prompt"], str):
        return PlainExample(
            prompt=read_text(row, "prompt", row.values["prompt"], field),
            answer=_answer(row, columns["completion"], "completion", field),
        )
    if not isinstance(row.values["prompt"], list | tuple):
        read_text(row, columns.get("prompt", "prompt"), row.values["prompt"], field)
    prompt = _turns(row, "prompt", field)
    return _parse_chat(row, "completion", field, before=prompt)


def _answer(row: RawRow, column: str, role: str, field: str) -> str:
    answer = read_text(row, column, row.values[role], field)
    if not answer.strip():
        wrong = f"has nothing to learn in {column!r}: got {answer!r}"
        _refuse(row, field, wrong, "text that is not blank", "Fill in or remove the row.")
    return answer


def _turns(row: RawRow, column: str, field: str) -> tuple[Mapping[str, Any], ...]:
    values = row.values[column]
    if not isinstance(values, list | tuple):
        allowed = "a list of {role, content}" if column == "messages" else "text or messages"
        wrong = f"has {kind_of(values)} in {column!r}"
        remedy = "Write prompt and completion alike: both text, or both messages."
        _refuse(row, field, wrong, allowed, remedy if column != "messages" else "Write a list.")
    return tuple(
        read_turn(row, f"{column}[{position}]", value, field)
        for position, value in enumerate(values)
    )


def _parse_chat(
    row: RawRow, column: str, field: str, before: Sequence[Mapping[str, Any]] = ()
) -> ChatExample:
    turns = (*before, *_turns(row, column, field))
    unwanted = {
        position: said
        for position, value in enumerate(row.values[column], len(before))
        if (said := says_not_to_learn(row, f"{column}[{position}]", value, field))
        and turns[position]["role"] == "assistant"
    }
    tools = read_tools(row, field)
    chat = ChatExample(turns=turns, context=len(before), unwanted=unwanted, tools=tools)
    if unwanted and not chat.answers:
        said = ", ".join(sorted(set(unwanted.values())))
        wrong = f"says of each answer in {column!r} not to learn it ({said})"
        _refuse(row, field, wrong, "at least one to learn", "Change a mark, or remove the row.")
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
    # Turns after the last answer teach nothing and cost memory.
    return replace(chat, turns=turns[: chat.answers[-1] + 1])
