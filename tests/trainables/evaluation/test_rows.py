"""Rows to measure on: those of training, and others."""

import json
import logging

import pytest

from tests.support.tiny import build_byte_tokenizer
from trainables.chat.templates import Asking, template_digest
from trainables.errors import BaseModelError, DataError
from trainables.evaluation.rows import FIELD, evaluation_rows
from trainables.evaluation_spec import EvaluationSpec
from trainables.rows.data import load_splits, tokenizer_digest
from trainables.spec import DataSpec

TOKENIZER = build_byte_tokenizer()
WRITE = EvaluationSpec(max_new_tokens=4)

PLAIN = tuple({"prompt": f"{i} ->", "completion": f" {i % 3}é"} for i in range(9))
TURNS = (
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "22"},
)


def text_of(ids) -> str:
    return TOKENIZER.decode(list(ids))


def manifest_of(data: DataSpec | None = None, style: str = "plain", max_tokens: int = 64):
    splits = None if data is None else load_splits(data, TOKENIZER)
    return {
        "data": {
            "validation": splits and splits.validation.digest,
            "test": splits and splits.test and splits.test.digest,
            "tokenizer_digest": tokenizer_digest(TOKENIZER),
            "template_digest": template_digest(TOKENIZER, Asking()) if style == "chat" else None,
            "prompt_style": style,
            "max_tokens": max_tokens,
        }
    }


def rows_of(source, how: EvaluationSpec | None = None, **manifest):
    return evaluation_rows(manifest_of(**manifest), TOKENIZER, source, how or EvaluationSpec())


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_holds_the_rows_of_training(split):
    data = DataSpec(train=PLAIN, validation_fraction=0.4, test_fraction=0.3)
    trained = getattr(load_splits(data, TOKENIZER), split)
    found = rows_of((data, split), data=data)
    assert [row.encoded.input_ids.tolist() for row in found.rows] == [
        row.input_ids.tolist() for row in trained.rows
    ]
    assert found.data == {
        "digest": trained.digest,
        "name": split,
        "rows": len(trained.rows),
        "tokenizer_digest": tokenizer_digest(TOKENIZER),
        "template_digest": None,
        "prompt_style": "plain",
        "max_tokens": 64,
    }


def test_a_row_knows_its_prompt_its_reference_and_its_bytes():
    (row,) = rows_of(PLAIN[4:5]).rows
    assert text_of(row.prompt) == "4 ->"
    assert row.reference == " 1é"
    assert row.answer_bytes == 4  # a space, a digit, two bytes of é; the end token is none
    assert text_of(row.encoded.input_ids) == "4 -> 1é<|end|>"


def test_every_row_of_a_file_or_of_a_specs_train_is_measured(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PLAIN))
    from_file = rows_of(path)
    assert (from_file.data["name"], from_file.data["rows"]) == ("own.jsonl", 9)
    from_spec = rows_of(DataSpec(train=str(path)))
    from_memory = rows_of(PLAIN)
    assert from_spec.data == from_file.data
    assert from_memory.data == {**from_file.data, "name": "rows"}


def test_fewer_rows_are_a_sample_that_stays_and_have_a_digest_of_their_own():
    few, again = (rows_of(PLAIN, EvaluationSpec(max_rows=4)) for _ in range(2))
    found = [row.prompt for row in few.rows]
    all_of_them = [row.prompt for row in rows_of(PLAIN).rows]
    assert found == [row.prompt for row in again.rows]
    assert found == [one for one in all_of_them if one in found]  # in their order
    assert found != all_of_them[:4]
    assert few.data["digest"] != rows_of(PLAIN).data["digest"]


def test_a_chat_is_scored_on_all_answers_and_asked_for_the_last():
    (row,) = rows_of(({"messages": TURNS},), style="chat").rows
    asked = "<|user|>one?<|end|><|assistant|>1<|end|><|user|>two?<|end|><|assistant|>"
    assert text_of(row.prompt) == asked
    assert row.reference == "22"
    assert text_of(row.encoded.input_ids[row.encoded.is_answer]) == "1<|end|>22<|end|>"
    assert row.answer_bytes == 3


def test_what_is_cut_is_not_scored_but_asked_whole():
    (row,) = rows_of(({"messages": TURNS},), style="chat", max_tokens=9).rows
    assert text_of(row.encoded.input_ids[row.encoded.is_answer]) == "1<|end|>"
    assert row.encoded.is_cut
    assert row.answer_bytes == 1
    assert text_of(row.prompt).endswith("two?<|end|><|assistant|>")
    assert row.reference == "22"


def test_a_character_cut_in_two_counts_as_three_bytes():
    (row,) = rows_of(({"prompt": "a", "completion": "é"},), max_tokens=2).rows
    assert row.answer_bytes == len("\N{REPLACEMENT CHARACTER}".encode())


def test_the_first_token_of_a_text_counts_neither_as_token_nor_as_byte():
    (row,) = rows_of(({"text": "abc"},)).rows
    assert text_of(row.encoded.input_ids[row.encoded.is_answer]) == "bc<|end|>"
    assert row.answer_bytes == 2


LONG = (*PLAIN, {"prompt": "x" * 70, "completion": "y"})


def test_rows_without_an_answer_left_are_refused_by_name():
    with pytest.raises(DataError, match=rf"{FIELD}: {FIELD} row 10 has no answer within 64 tok"):
        rows_of(LONG)


def test_rows_drop_them_where_that_is_asked_for_and_stay_the_rows_they_are():
    data = DataSpec(train=PLAIN, validation=LONG, test=PLAIN, max_tokens=200)
    manifest = manifest_of(data)
    manifest["data"]["max_tokens"] = 64
    skipping = EvaluationSpec(skip_cut=True)
    found = evaluation_rows(manifest, TOKENIZER, DataSpec(train=LONG), skipping)
    as_split = evaluation_rows(manifest, TOKENIZER, (data, "validation"), skipping)
    assert found.data["digest"] == as_split.data["digest"]
    assert [row.reference for row in found.rows] == [row.reference for row in as_split.rows]


def test_a_split_drops_them_as_training_does(caplog):
    data = DataSpec(train=PLAIN, validation=LONG, test=LONG[-1:], max_tokens=200)
    manifest = manifest_of(data)
    manifest["data"]["max_tokens"] = 64
    with caplog.at_level(logging.WARNING):
        found = evaluation_rows(manifest, TOKENIZER, (data, "validation"), WRITE)
    assert found.data["rows"] == len(found.rows) == 9
    assert found.data["digest"] == manifest["data"]["validation"]
    assert "evaluating 9 of 10 rows" in caplog.text
    with pytest.raises(DataError, match=r"has no answer within 64 tokens \(1 of 1 rows"):
        evaluation_rows(manifest, TOKENIZER, (data, "test"), WRITE)


CHAT = {"messages": TURNS}


@pytest.mark.parametrize(
    ("source", "how", "manifest", "message"),
    [
        ("no.jsonl", {}, {}, rf"{FIELD}: got 'no\.jsonl', which is no file"),
        ((CHAT,), {}, {}, rf"{FIELD}: got chat prompts; allowed: plain prompts.*prompts as text"),
        (PLAIN, {}, {"style": "chat"}, "got plain prompts; allowed: chat prompts"),
        (({"question": "a"},), {}, {}, "has columns 'question'; allowed: messages"),
        (
            ({"prompt": "a", "completion": "b"}, {"prompt": [], "completion": TURNS}),
            {},
            {},
            "row 2 is chat but the first row is plain",
        ),
        (({"text": "abc"},), {"max_new_tokens": 3}, {}, "max_new_tokens: got 3, but rows of"),
        (({"prompt": "", "completion": "b"},), {"max_new_tokens": 3}, {}, "has an empty prompt"),
        (
            PLAIN,
            {"max_new_tokens": 3, "pattern": "[02]"},
            {},
            r"pattern: got '\[02\]', which has no match in the reference of .* row 2: ' 1é'",
        ),
        (PLAIN, {"max_new_tokens": 3, "choices": ("0é", "2é")}, {}, r"choices: got \('0é', '2é'"),
    ],
    ids=[
        "no-file", "chat", "plain", "columns", "mixed", "text", "no-prompt", "pattern", "choices",
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_refused(source, how, manifest, message):
    with pytest.raises(DataError, match=message):
        rows_of(source, EvaluationSpec(**how), **manifest)


def test_other_rows_than_those_of_training_are_no_split_of_it():
    data = DataSpec(train=PLAIN, validation=PLAIN[:3], test=PLAIN[3:5])
    other = DataSpec(train=PLAIN, validation=PLAIN[:3], test=PLAIN[3:6])
    with pytest.raises(
        DataError, match=r"data\.test: got rows of digest sha256:\w+; allowed: sha"
    ):
        rows_of((other, "test"), data=data)
    with pytest.raises(DataError, match="got the split 'train'; allowed: validation, test"):
        rows_of((data, "train"), data=data)
    without = DataSpec(train=PLAIN, validation=PLAIN[:3], test_fraction=0)
    with pytest.raises(DataError, match=r"data\.test: got None"):
        rows_of((without, "test"), data=without)


@pytest.mark.parametrize("name", ["tokenizer_digest", "template_digest"])
def test_another_tokenizer_or_template_is_refused(name):
    manifest = manifest_of(style="chat")
    manifest["data"][name] = "sha256:other"
    with pytest.raises(BaseModelError, match=rf"base\.model: its {name} is sha256:\w+; allowed: "):
        evaluation_rows(manifest, TOKENIZER, (CHAT,), EvaluationSpec())


def test_a_reference_is_decoded_as_a_completion_is():
    (row,) = rows_of(({"prompt": "a", "completion": " b .<|end|>"},)).rows
    assert row.reference == " b ."
