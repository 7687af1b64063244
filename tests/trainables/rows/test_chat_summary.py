"""What is said of chats before anything is trained."""

import json
from pathlib import Path

import pytest

from tests.support.chats import MARKS, TOOLS, assistant, byte_tokenizer, call, result, user
from tests.trainables.chat import test_turns
from trainables.base.stops import load_tokenizer_only, stop_tokens, tokens_of
from trainables.data_spec import DataSpec
from trainables.errors import DataError
from trainables.rows.chat_summary import chats_of
from trainables.rows.data import load_splits
from trainables.rows.data_summary import summarize
from trainables.rows.splits import read_raw_splits
from trainables.spec import BaseSpec

CHATML = byte_tokenizer(test_turns.CHATML, "<|endoftext|>")


def summary_of(tokenizer, *rows, **fields):
    spec = DataSpec(train=rows, validation=rows, test_fraction=0, **fields)
    return chats_of(load_splits(spec, tokenizer), tokenizer)


def row(*turns, **more):
    return {"messages": list(turns), **more}


def test_another_end_than_the_tokenizers_is_told_and_recorded():
    found = summary_of(CHATML, row(*test_turns.TWO))
    assert found.lines()[0] == (
        "Answers end with <|im_end|>, as the chat template ends turns, and not with the "
        "tokenizer's <|endoftext|>; completions stop at both."
    )
    end = CHATML.convert_tokens_to_ids("<|im_end|>")
    assert found.to_dict()["end_tokens"] == {"<|im_end|>": end}
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


def test_what_the_template_renders_and_what_is_learned_is_told():
    tokenizer = byte_tokenizer(test_turns.AS_MAPPING, "<|end|>", MARKS)
    turns = (user("warm?"), call({"city": "Paris"}), result("yes"), assistant("It is."))
    found = summary_of(tokenizer, row(*turns, tools=list(TOOLS)))
    assert found.supports == {"system": True, "tools": True, "calls": True, "thoughts": False}
    assert (found.learned["train"].answers, found.learned["train"].tools) == (2, 1)
    assert found.sequences == "joined"
    assert "The chat template renders no thoughts; it renders system, tools, calls." in (
        found.lines()
    )


def test_what_a_template_renders_with_tools_alone_is_told():
    tokenizer = byte_tokenizer(test_turns.NEEDS_TOOLS, "<|end|>", MARKS)
    found = summary_of(tokenizer, row(user("warm?"), call({}), tools=list(TOOLS)))
    assert found.supports == {"system": True, "tools": True, "calls": True, "thoughts": False}


def test_answers_that_became_context_are_counted_by_their_reason():
    thought = assistant("two", reasoning_content="look")
    found = summary_of(CHATML, row(user("one?"), thought, *test_turns.TWO))
    assert found.learned["train"].unlearned == {
        "the chat template does not render its thought, so it would not be learned; allowed: "
        "what the template renders. Write the thought as text into content, or remove it.": 1
    }
    assert any("data.train: 1 earlier answers are context only" in one for one in found.lines())


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"train": False}, {"training": False}, {"loss": False}]
)
def test_answers_that_a_row_says_not_to_learn_are_context(mark):
    bad = {**test_turns.TWO[1], **mark}
    found = summary_of(CHATML, row(test_turns.TWO[0], bad, *test_turns.TWO[2:]))
    (said,) = mark.items()
    text = f"the row says not to learn it ({said[0]}: {json.dumps(said[1])})."
    assert found.learned["train"].unlearned == {text: 1}
    assert found.learned["train"].answers == 1
    assert f"data.train: 1 earlier answers are context only: {text}" in found.lines()


def test_a_last_answer_that_is_not_to_be_learned_ends_the_row_before():
    turns = (*test_turns.TWO[:3], {**test_turns.TWO[3], "weight": 0})
    found = summary_of(CHATML, row(*turns))
    assert (found.learned["train"].answers, found.learned["train"].unlearned) == (1, {})


@pytest.mark.parametrize(
    ("mark", "problem"),
    [
        ({"weight": 0}, r"says of each answer in 'messages' not to learn it \(weight: 0\)"),
        ({"weight": 0.5}, r"has 0.5 in 'messages\[1\].weight'; allowed: 0 or 1, false or true"),
    ],
)
def test_marks_that_leave_nothing_to_learn_or_are_neither_are_refused(mark, problem):
    turns = (test_turns.TWO[0], {**test_turns.TWO[1], **mark})
    with pytest.raises(DataError, match=problem):
        summary_of(CHATML, row(*turns))


def test_a_measured_loss_is_no_mark():
    turns = (test_turns.TWO[0], {**test_turns.TWO[1], "loss": 0.25, "weight": 1})
    assert summary_of(CHATML, row(*turns)).learned["train"].answers == 1


def test_rows_that_the_template_refuses_are_not_counted_as_rows():
    lost = row(user("one?"), assistant("two", reasoning_content="look"))
    spec = DataSpec(
        train=[row(*test_turns.TWO), lost], test_fraction=0, on_bad_row="skip",
        validation=[row(*test_turns.TWO)],
    )  # fmt: skip
    raw = read_raw_splits(spec)
    found = summarize(raw, load_splits(spec, CHATML))
    assert "Rows: 1 training, 1 validation." in found.lines()
    assert found.to_dict()["rows"]["train"]["skipped"] == 1
    assert any(line.startswith("data.train: skipped 1 row that cannot") for line in found.lines())


def test_settings_of_the_template_are_told_and_recorded():
    tokenizer = byte_tokenizer(test_turns.R1, controls=MARKS)
    found = summary_of(tokenizer, row(*test_turns.TWO))
    assert found.to_dict()["prefill_cut"] == "<think>\n"
    assert any('Prompts end before "<think>\\n"' in one for one in found.lines())
    dated = byte_tokenizer(test_turns.DATED, "<|end|>", MARKS)
    found = summary_of(dated, row(*test_turns.TWO), template_args={"strftime_now": "2026-01-31"})
    assert found.to_dict()["template_args"] == {"strftime_now": "2026-01-31"}
    assert any("today's date: 2026-01-31 is written instead" in one for one in found.lines())


def test_stops_read_off_the_files_are_those_of_the_loaded_base(tiny_base: Path):
    from transformers import AutoModelForCausalLM

    base = BaseSpec(model=str(tiny_base))
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    assert stop_tokens(base) == tokens_of(model.generation_config) != ()
    assert load_tokenizer_only(base).eos_token == "<|end|>"
