"""Columns by the names that people give them: recognized, named, or asked about; never guessed."""

import json
import re

import pytest

from trainables.data_spec import ColumnsSpec, DataSpec
from trainables.errors import DataError
from trainables.files.formats import ChatExample, PlainExample, parse_row
from trainables.files.layouts import find_layout, layout_from
from trainables.files.readers import RawRow

TURNS = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]
CHAT = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]


def rows_of(*values: dict) -> tuple[RawRow, ...]:
    return tuple(RawRow(values=one, place=f"row {n}") for n, one in enumerate(values, 1))


def read(*values: dict, **fields):
    """The layout of the rows, and the first of them as an example."""
    rows = rows_of(*values)
    layout = find_layout(rows, DataSpec(train=tuple(values), **fields), "data.train")
    return layout, parse_row(rows[0], layout, "data.train")


def refusal(*values: dict, **fields) -> str:
    with pytest.raises(DataError) as caught:
        read(*values, **fields)
    assert str(caught.value).startswith("data.")
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"question": "a?", "answer": "b", "id": 1}, "a?", "b"),
        ({"Question": "a?", "Answer": "b"}, "a?", "b"),
        ({"prompt": "a?", "response": "b", "text": "a? b"}, "a?", "b"),
        ({"input": "a?", "output": "b"}, "a?", "b"),
        ({"query": "a?", "target": "b", "context": ""}, "a?", "b"),
        ({"prompt": "a?", "completion": "b", "question": "no", "answer": "no"}, "a?", "b"),
    ],
)
def test_pairs_are_known_by_their_names(row, prompt, answer):
    layout, example = read(row)
    assert layout.format == "prompt-completion"
    assert example == PlainExample(prompt=prompt, answer=answer)


def test_alpaca_asks_in_its_own_words_and_text_beside_it_does_not_win():
    row = {"instruction": "Name it.", "input": "b", "output": "x", "text": "Below is … x"}
    layout, example = read({**row, "input": ""}, row)
    assert layout.format == "alpaca"
    assert layout.unused == ("text",)
    assert "not used: 'text'" in layout.describe()
    assert isinstance(example, PlainExample)
    assert example.answer == "x"
    assert example.prompt.endswith("### Instruction:\nName it.\n\n### Response:\n")
    with_input = parse_row(rows_of(row)[0], layout, "data.train")
    assert "### Input:\nb\n\n### Response:\n" in with_input.prompt


def test_input_that_only_some_rows_have_is_read():
    short = {"instruction": "a", "output": "x"}
    layout, _ = read(short, short, short, {**short, "input": "more"})
    assert layout.columns["input"] == "input"


def test_sharegpt_becomes_messages():
    layout, example = read({"id": "s", "conversations": TURNS, "system": "Be brief."})
    assert layout.format == "sharegpt"
    assert isinstance(example, ChatExample)
    assert list(example.turns) == [{"role": "system", "content": "Be brief."}, *CHAT]


def test_sharegpt_calls_of_functions_become_calls_of_tools():
    from trainables.files.arranging import arrange

    turns = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "sky"}}'},
        {"from": "observation", "value": "blue"},
        {"from": "gpt", "value": "Blue."},
    ]
    row = {"conversations": turns, "tools": '[{"name": "look"}]'}
    rows = rows_of(row)
    layout = find_layout(rows, DataSpec(train=(row,)), "data.train")
    values = arrange(rows[0], layout, "data.train").values
    assert [turn["role"] for turn in values["messages"]] == [
        "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    (call,) = values["messages"][1]["tool_calls"]
    assert call["function"] == {"name": "look", "arguments": {"at": "sky"}}
    assert values["tools"] == [{"name": "look"}]
    turns[1] = {"from": "function_call", "value": "look(sky)"}
    with pytest.raises(DataError, match=r"no function call in 'conversations\[1\]'"):
        arrange(rows[0], layout, "data.train")


def test_role_of_no_kind_is_refused_with_those_that_there_are():
    turns = [*TURNS, {"from": "narrator", "value": "…"}]
    assert "the role 'narrator' in 'conversations[2]'; allowed: human" in refusal(
        {"conversations": turns}
    )


@pytest.mark.parametrize("cell", [json.dumps(CHAT), str(CHAT), json.dumps(TURNS)])
def test_messages_in_a_cell_are_parsed(cell):
    layout, example = read({"messages": cell})
    assert layout.format == "messages"
    assert isinstance(example, ChatExample)
    assert list(example.turns) == CHAT


def test_cell_without_messages_is_refused():
    assert "has a str in 'dialog'; allowed: a list of messages, or that list as JSON" in refusal(
        {"dialog": "hi"}, columns={"messages": "dialog"}
    )


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"text": "a", "label": 1}, "'text' may be the prompt of 'label'"),
        ({"question": "a", "answer": "b", "response": "c"}, "'answer' and 'response' may hold"),
        ({"question": "a", "instruction": "b", "answer": "c"}, "'question' and 'instruction' may"),
        ({"question": "a", "context": "b", "answer": "c"}, "'context' may belong to the prompt"),
        (
            {"instruction": "a", "output": "b", "history": [["q", "a"]]},
            "'history' may belong to the prompt",
        ),
        ({"left": "a", "right": "b"}, "has columns 'left', 'right'; allowed: messages;"),
    ],
)
def test_columns_that_may_mean_more_than_one_thing_are_asked_about(row, asked):
    message = refusal(row)
    assert asked in message
    assert re.search(r"data\.(columns|prompt_template|format)", message.partition("allowed")[2])


def test_remedies_of_the_questions_work():
    row = {"text": "a", "label": "b"}
    assert read(row, format="text")[1] == PlainExample(prompt="", answer="a")
    columns = ColumnsSpec(prompt="text", completion="label")
    assert read(row, columns=columns)[1] == PlainExample(prompt="a", answer="b")
    row = {"question": "a?", "context": "c", "answer": "b"}
    layout, example = read(row, prompt_template="{context} {question} ")
    assert example == PlainExample(prompt="c a? ", answer="b")
    assert layout.unused == ()
    both = {"question": "a?", "answer": "b", "response": "c"}
    layout, example = read(both, columns={"completion": "response"}, prompt_template="{question}")
    assert example == PlainExample(prompt="a?", answer="c")


def test_text_alone_is_said_to_be_learned_whole():
    layout, example = read({"text": "abc", "url": "http://…"})
    assert example == PlainExample(prompt="", answer="abc")
    assert "all of the text is learned" in layout.describe()
    assert layout.unused == ("url",)
    assert read({"text": "abc", "url": "http://…"}, group_by="url")[0].unused == ()


def test_column_that_is_not_there_is_named_with_the_nearest():
    message = refusal(
        {"question": "a", "answer": "b"}, columns={"prompt": "questoin", "completion": "answer"}
    )
    assert message.startswith("data.columns: did you mean question? Got 'questoin'")
    message = refusal({"question": "a", "answer": "b"}, prompt_template="{qestion}")
    assert message.startswith("data.prompt_template: did you mean question? Got 'qestion'")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "a", "answer": None}, "has no value in 'answer'"),
        ({"question": "a", "answer": float("nan")}, "has no value in 'answer'"),
        ({"question": float("nan"), "answer": "b"}, "has no value in 'question'"),
        ({"question": "a", "answer": 3}, "has an int in 'answer'"),
        ({"question": ["a"], "answer": "b"}, "has no role and content"),
        ({"answer": "b"}, "has no column 'question' but 'answer'"),
    ],
)
def test_unusable_cell_is_named_as_its_column_is(row, problem):
    good = {"question": "a", "answer": "b"}
    layout = find_layout(rows_of(good), DataSpec(train=(good,)), "data.train")
    with pytest.raises(DataError, match=re.escape(problem)):
        parse_row(rows_of(row)[0], layout, "data.train")


def test_template_takes_numbers_and_braces_but_no_empty_cell():
    fields = {"prompt_template": "{{{n}}} {q}: "}
    assert read({"n": 3, "q": "a", "answer": "b"}, **fields)[1] == PlainExample(
        prompt="{3} a: ", answer="b"
    )
    assert "has no value in 'n'" in refusal({"n": None, "q": "a", "answer": "b"}, **fields)


def test_format_that_contradicts_the_columns_is_refused():
    message = refusal(
        {"a": "x", "b": "y"}, format="text", columns={"prompt": "a", "completion": "b"}
    )
    assert message.startswith("data.format: got 'text'")


def test_recorded_layout_reads_rows_that_have_its_columns_and_no_others():
    row = {"question": "a?", "context": "c", "answer": "b"}
    layout, _ = read(row, prompt_template="{context} {question} ")
    again = layout_from(layout.to_dict(), rows_of(row))
    assert again == layout
    assert layout_from(layout.to_dict(), rows_of({"prompt": "a", "completion": "b"})) is None
    assert layout_from(None, rows_of(row)) is None
