"""Data from a file to a batch: what is read, how it is split, which tokens count."""

import json
import logging
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trainables.errors import DataError
from trainables.rows.data import (
    IGNORED_TARGET,
    EncodedRow,
    Split,
    collate,
    cut_train,
    load_splits,
    tokenizer_digest,
)
from trainables.rows.epochs import batch_rows
from trainables.rows.splits import read_raw_splits
from trainables.spec import DataSpec

PAIRS = tuple({"prompt": f"{n} plus one is", "completion": f" {n + 1}"} for n in range(200))
CHAT = (
    {"role": "system", "content": "Count."},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "five"},
    {"role": "assistant", "content": "six"},
    {"role": "user", "content": "unanswered"},
)
# As reasoning models have it: the last answer is opened by an empty thought, earlier ones are not.
THINKING_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['role'] == 'assistant' and loop.last %}(no thought) {% endif %}"
    "{{ m['content'] }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SILENT_TEMPLATE = (
    "{% for m in messages if m['role'] != 'assistant' %}{{ m['content'] }}<|end|>{% endfor %}"
)
REFUSING_TEMPLATE = "{{ raise_exception('System role not supported') }}"


@pytest.fixture
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_base)


def write_jsonl(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answers(split: Split, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [tokenizer.decode(row.input_ids[row.is_answer]) for row in split.rows]


def contexts(split: Split, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [tokenizer.decode(row.input_ids[~row.is_answer]) for row in split.rows]


def given(train, **fields) -> DataSpec:
    """A spec whose splits are all `train`, so that every row can be looked at in order."""
    return DataSpec(train=train, validation=train, test_fraction=0.0, **fields)


# Which tokens count


def test_completion_and_end_token_are_the_answer(tokenizer):
    train = load_splits(given(PAIRS[:3]), tokenizer).train
    assert answers(train, tokenizer) == [" 1<|end|>", " 2<|end|>", " 3<|end|>"]
    assert contexts(train, tokenizer) == [row["prompt"] for row in PAIRS[:3]]


def test_prompt_tokens_are_those_of_the_prompt_alone(tokenizer):
    rows = ({"prompt": "a lynx ", "completion": "écu 🐈"}, {"prompt": "日本", "completion": "語"})
    for encoded, row in zip(load_splits(given(rows), tokenizer).train.rows, rows, strict=True):
        alone = tokenizer.encode(row["prompt"], add_special_tokens=False)
        assert encoded.input_ids[~encoded.is_answer].tolist() == alone


def small_tokenizer(vocab: list[str], merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a space before every text, as Llama 2 does."""
    ids = {token: i for i, token in enumerate(["</s>", *vocab])}
    backend = Tokenizer(models.BPE(vocab=ids, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def tokens(row: EncodedRow, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return tokenizer.convert_ids_to_tokens(row.input_ids.tolist())


def test_answer_gets_no_space_that_the_text_does_not_have():
    spacing = small_tokenizer(["▁", "a", "b"], [])
    (row,) = load_splits(given(({"prompt": "a", "completion": "b"},)), spacing).train.rows
    assert tokens(row, spacing) == ["▁", "a", "b", "</s>"]
    assert row.is_answer.tolist() == [False, False, True, True]


def test_token_that_would_span_prompt_and_answer_is_split():
    merging = small_tokenizer(["▁", "a", "b", "ab"], [("a", "b")])
    (row,) = load_splits(given(({"prompt": "a", "completion": "b"},)), merging).train.rows
    assert tokens(row, merging) == ["▁", "a", "b", "</s>"]
    assert row.is_answer.tolist() == [False, False, True, True]


def test_completion_that_ends_itself_gets_no_second_end_token(tokenizer):
    rows = ({"prompt": "a", "completion": "b<|end|>"},)
    assert answers(load_splits(given(rows), tokenizer).train, tokenizer) == ["b<|end|>"]


def test_begin_token_comes_first_where_the_tokenizer_adds_one(tokenizer):
    tokenizer.add_special_tokens({"bos_token": "<|system|>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", bos)]
    )
    (row,) = load_splits(given(PAIRS[:1]), tokenizer).train.rows
    assert row.input_ids[0] == bos
    assert (row.input_ids == bos).sum() == 1
    assert not row.is_answer[0]


def test_text_counts_every_token_but_the_first(tokenizer):
    train = load_splits(given(({"text": "hello"},)), tokenizer).train
    assert answers(train, tokenizer) == ["ello<|end|>"]
    assert contexts(train, tokenizer) == ["h"]


def test_every_assistant_turn_counts_and_nothing_else(tokenizer):
    (row,) = load_splits(given(({"messages": CHAT},)), tokenizer).train.rows
    assert tokenizer.decode(row.input_ids[row.is_answer]) == "two<|end|>six<|end|>"
    assert tokenizer.decode(row.input_ids) == (
        "<|system|>Count.<|end|><|user|>one<|end|><|assistant|>two<|end|>"
        "<|user|>five<|end|><|assistant|>six<|end|>"
    )


def test_chat_tokens_are_those_of_the_template(tokenizer):
    (row,) = load_splits(given(({"messages": CHAT[:5]},)), tokenizer).train.rows
    whole = tokenizer.apply_chat_template(list(CHAT[:5]), tokenize=True, return_dict=False)
    assert row.input_ids.tolist() == whole


def test_message_lists_in_prompt_and_completion_are_a_chat(tokenizer):
    rows = ({"prompt": CHAT[:4], "completion": CHAT[4:5]},)
    splits = load_splits(given(rows), tokenizer)
    assert splits.prompt_style == "chat"
    assert answers(splits.train, tokenizer) == ["six<|end|>"]


def test_template_that_renders_the_last_turn_differently_gives_a_sequence_for_each_answer(
    tokenizer,
):
    tokenizer.chat_template = THINKING_TEMPLATE
    train = load_splits(given(({"messages": CHAT[:5]},)), tokenizer).train
    assert answers(train, tokenizer) == ["(no thought) two<|end|>", "(no thought) six<|end|>"]
    assert contexts(train, tokenizer)[1].endswith("two<|end|>\n<|user|>five<|end|>\n<|assistant|>")
    assert (train.learned.answers, train.learned.split_rows) == (2, 1)


def test_template_digest_follows_the_template(tokenizer):
    spec = given(({"messages": CHAT},))
    before = load_splits(spec, tokenizer).template_digest
    tokenizer.chat_template = THINKING_TEMPLATE
    assert before != load_splits(spec, tokenizer).template_digest
    assert load_splits(given(PAIRS[:1]), tokenizer).template_digest is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        pytest.param(SILENT_TEMPLATE, "message 5: .* does not render its words", id="silent"),
        pytest.param(REFUSING_TEMPLATE, "System role not supported", id="refuses"),
        pytest.param(None, "no chat template", id="none"),
    ],
)
def test_template_that_cannot_mark_answers_is_refused(tokenizer, template, message):
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=message):
        load_splits(given(({"messages": CHAT},)), tokenizer)


def test_tokenizer_without_end_token_is_refused(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end token"):
        load_splits(given(PAIRS[:1]), tokenizer)


# Cutting


def test_long_rows_are_cut_at_the_end_and_unanswered_ones_dropped(tokenizer, caplog):
    rows = (
        {"prompt": "ab", "completion": "cd"},
        {"prompt": "ab", "completion": "cdef"},
        {"prompt": "abcdefgh", "completion": "i"},
    )
    with caplog.at_level(logging.WARNING):
        train = load_splits(given(rows, max_tokens=5), tokenizer).train
    assert answers(train, tokenizer) == ["cd<|end|>", "cde"]
    assert [row.is_cut for row in train.rows] == [False, True]
    assert train.examples == rows[:2]
    warning = caplog.messages[0]
    assert warning == (
        "data.train: 2 of 3 rows are longer than data.max_tokens=5 and cut: 2 lose the end of an "
        "answer, and 1 are dropped, as no answer is left; data.max_tokens: 10 leaves all rows "
        "whole"
    )
    assert len(caplog.messages) == 2  # one for each split


def test_row_that_loses_only_its_end_token_is_cut(tokenizer):
    rows = ({"messages": CHAT},)
    whole = load_splits(given(rows), tokenizer).train.rows[0]
    end = len(whole.input_ids)
    found = [
        load_splits(given(rows, max_tokens=end - less), tokenizer).train.rows[0].is_cut
        for less in (0, 1)
    ]
    assert found == [False, True]


def test_limit_that_leaves_no_answer_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"none of 9 rows of data.train has an answer within 8"):
        load_splits(given(PAIRS[:9], max_tokens=8), tokenizer)


# Sources


def write_as(suffix: str, folder: Path) -> str:
    from datasets import Dataset

    path = folder / f"rows{suffix}"
    rows = Dataset.from_list(list(PAIRS))
    if suffix == ".json":
        path.write_text(json.dumps(PAIRS))
    else:
        {".jsonl": rows.to_json, ".csv": rows.to_csv, ".parquet": rows.to_parquet}[suffix](path)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_file_type_gives_the_rows_that_memory_gives(tmp_path, suffix):
    from_file = read_raw_splits(DataSpec(train=write_as(suffix, tmp_path)))
    in_memory = read_raw_splits(DataSpec(train=PAIRS))
    assert from_file.train.digest == in_memory.train.digest
    assert from_file.validation.digest == in_memory.validation.digest


def test_parquet_messages_are_a_chat(tmp_path, tokenizer):
    from datasets import Dataset

    path = tmp_path / "chat.parquet"
    turns = [dict(turn) for turn in CHAT]
    turns[0]["name"] = "clerk"  # the other turns get name=None in Parquet
    Dataset.from_list([{"messages": turns}]).to_parquet(path)
    raw = read_raw_splits(given(str(path)))
    assert (raw.layout.format, raw.prompt_style) == ("messages", "chat")
    assert answers(load_splits(given(str(path)), tokenizer).train, tokenizer) == [
        "two<|end|>six<|end|>"
    ]


def test_folder_is_loaded_like_a_hub_dataset(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "numbers"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", PAIRS[:50])
    write_jsonl(folder / "validation.jsonl", PAIRS[50:60])
    raw = read_raw_splits(DataSpec(train=str(folder), validation=str(folder), test_fraction=0))
    assert [dict(row.values) for row in raw.validation.rows] == list(PAIRS[50:60])
    with pytest.raises(DataError, match=r"data.test: cannot load split 'test'"):
        read_raw_splits(DataSpec(train=str(folder), test=str(folder)))


@pytest.mark.parametrize(
    "source", ["./rows", "~/no-such-rows", "gone/rows.jsonl", "rows.csv", "/no/such/rows"]
)
def test_missing_file_is_never_looked_for_on_the_hub(source):
    with pytest.raises(DataError, match=r"data.train: no file .*Correct the path"):
        read_raw_splits(DataSpec(train=source))


def test_name_that_is_neither_file_nor_hub_id_is_refused():
    with pytest.raises(DataError, match="no existing file and no hub id"):
        read_raw_splits(DataSpec(train="my rows/of/data"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        pytest.param("rows.jsonl", "", "holds no rows", id="empty-jsonl"),
        pytest.param("rows.json", "[]", "holds no rows", id="empty-json"),
        pytest.param("rows.csv", "prompt,completion\n", "holds no rows", id="empty-csv"),
        pytest.param("rows.jsonl", '{"text": "a"}\n\n{"text"\n', "line 3 is not JSON", id="jsonl"),
        pytest.param("rows.jsonl", "[1]\n", "line 1 is a list", id="list-in-jsonl"),
        pytest.param("rows.json", '[{"text": "a"},\n', "line 2 is not JSON", id="json"),
        pytest.param("rows.json", '{"text": "a"}', "holds a dict", id="object-in-json"),
        pytest.param("rows.json", '[{"text": "a"}, 2]', "row 2 is an int", id="number-in-json"),
        pytest.param("rows.csv", "text\na\nb,c\n", "line 3 has more cells", id="wide-csv"),
        pytest.param("rows.csv", 'text\n"a\n', "line 2 is not CSV", id="open-quote-csv"),
        pytest.param("rows.parquet", "text", "cannot read", id="parquet"),
        pytest.param("rows.txt", "text", "cannot read", id="suffix"),
    ],
)
def test_broken_file_is_refused_with_its_place(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_raw_splits(DataSpec(train=str(path)))
    assert str(caught.value).startswith("data.train: ")
    assert str(path) in str(caught.value)


def test_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"text": "né"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"cannot read .* UTF-8"):
        read_raw_splits(DataSpec(train=str(path)))


# Rows

GOOD = {"prompt": "a", "completion": "b"}
GOOD_CHAT = {"messages": CHAT}


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        pytest.param(GOOD, {"prompt": "a"}, "no column 'completion'", id="missing-column"),
        pytest.param(GOOD, {**GOOD, "completion": 3}, "an int in 'completion'", id="wrong-type"),
        pytest.param(GOOD, {**GOOD, "prompt": None}, "no value in 'prompt'", id="null-prompt"),
        pytest.param(GOOD, {**GOOD, "completion": " \n"}, "nothing to learn", id="blank-answer"),
        pytest.param(GOOD, {**GOOD, "completion": "\ud800"}, "surrogate", id="broken-unicode"),
        pytest.param({"text": "a"}, {"text": ""}, "nothing to learn in 'text'", id="empty-text"),
        pytest.param(
            GOOD, {"prompt": CHAT[:2], "completion": CHAT[2:3]}, "is chat but", id="mixed-styles"
        ),
        pytest.param(GOOD_CHAT, {"messages": "hi"}, "a str in 'messages'", id="text-as-messages"),
        pytest.param(GOOD_CHAT, {"messages": ["hi"]}, "no role and content", id="text-as-turn"),
        pytest.param(GOOD_CHAT, {"messages": CHAT[:2]}, "no assistant turn", id="no-answer"),
        pytest.param(GOOD_CHAT, {"messages": CHAT[2:]}, "starts with the assistant", id="first"),
        pytest.param(
            GOOD_CHAT,
            {"messages": [CHAT[1], {"role": "bot", "content": "two"}]},
            r"the role 'bot' in 'messages\[1\]'; allowed: system, developer, user, assistant, ",
            id="unknown-role",
        ),
        pytest.param(
            GOOD_CHAT,
            {"messages": [CHAT[1], {"role": "assistant", "content": ""}]},
            "empty assistant turn, number 2",
            id="empty-turn",
        ),
    ],
)
def test_bad_row_is_refused_with_field_file_and_line(tmp_path, good, bad, message):
    train = write_jsonl(tmp_path / "train.jsonl", [good] * 4)
    path = write_jsonl(tmp_path / "validation.jsonl", [good, good, bad])
    with pytest.raises(DataError) as caught:
        read_raw_splits(DataSpec(train=train, validation=path, test_fraction=0))
    text = str(caught.value)
    assert text.startswith(f"data.validation: {path} line 3 ")
    assert re.search(message, text)
    assert "; allowed: " in text


def test_bad_row_in_memory_is_refused_with_its_number():
    with pytest.raises(
        DataError, match=r"data.train: data.train row 2 has no column 'completion'"
    ):
        read_raw_splits(DataSpec(train=(GOOD, {"prompt": "a"})))


def test_columns_of_no_format_are_refused():
    with pytest.raises(DataError, match="has columns 'left', 'right'; allowed: messages;"):
        read_raw_splits(DataSpec(train=({"left": "a", "right": "b"},)))


def test_format_that_is_set_wins_over_the_columns(tokenizer):
    rows = ({**GOOD, "text": "zzz"},)
    assert read_raw_splits(given(rows)).layout.format == "prompt-completion"
    train = load_splits(given(rows, format="text"), tokenizer).train
    assert answers(train, tokenizer) == ["zz<|end|>"]


# Splits


def prompts_by_split(spec: DataSpec) -> dict[str, set[str]]:
    raw = read_raw_splits(spec)
    splits = {"train": raw.train, "validation": raw.validation, "test": raw.test}
    return {
        name: {row.values["prompt"] for row in split.rows}
        for name, split in splits.items()
        if split is not None
    }


def test_split_holds_every_row_once_in_the_sizes_of_the_fractions():
    parts = prompts_by_split(DataSpec(train=PAIRS, validation_fraction=0.2, test_fraction=0.3))
    assert set.union(*parts.values()) == {row["prompt"] for row in PAIRS}
    sizes = {name: len(prompts) for name, prompts in parts.items()}
    assert sizes == {"train": 100, "validation": 40, "test": 60}


def test_few_rows_change_their_split_when_others_come_go_or_move():
    rows = list(PAIRS)
    before = prompts_by_split(DataSpec(train=rows))
    random.Random(0).shuffle(rows)
    more = ({"prompt": f"new {n}", "completion": "x"} for n in range(60))
    after = prompts_by_split(DataSpec(train=[*rows[:150], *more]))
    kept = {row["prompt"] for row in rows[:150]}
    moved = {name: prompts & kept - after[name] for name, prompts in before.items()}
    # A split grows and shrinks at its edge: a held-out row never becomes one of the other kind.
    assert sum(map(len, moved.values())) <= 12
    assert not moved["validation"] & after["test"]
    assert not moved["test"] & after["validation"]


def test_order_of_columns_does_not_move_a_row():
    turned = tuple(dict(reversed(row.items())) for row in PAIRS)
    assert prompts_by_split(DataSpec(train=PAIRS)) == prompts_by_split(DataSpec(train=turned))


def test_split_seed_changes_the_split():
    first, second = (prompts_by_split(DataSpec(train=PAIRS, split_seed=n)) for n in (0, 1))
    assert first != second


@pytest.mark.parametrize("groups", [20, 60])
def test_equal_group_values_stay_in_one_split(groups):
    rows = tuple({**row, "author": n % groups} for n, row in enumerate(PAIRS))
    raw = read_raw_splits(
        DataSpec(train=rows, group_by="author", validation_fraction=0.3, test_fraction=0.3)
    )
    assert raw.test is not None
    homes = [
        (row.values["author"], home)
        for home, split in enumerate((raw.train, raw.validation, raw.test))
        for row in split.rows
    ]
    assert len(homes) == 200
    assert len(set(homes)) == groups


def test_group_column_that_a_row_lacks_is_refused():
    with pytest.raises(DataError, match=r"data.group_by: data.train row 1 .* 'author'; allowed"):
        read_raw_splits(DataSpec(train=PAIRS, group_by="author"))


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        pytest.param(2, {"validation_fraction": 0.01}, "left none for data.train", id="few-rows"),
        pytest.param(1, {"test_fraction": 0.5}, "left none for data.test", id="one-row"),
        pytest.param(
            9,
            {"validation_fraction": 0.9999, "test_fraction": 0},
            "left none for data.train",
            id="nothing-to-train-on",
        ),
    ],
)
def test_split_without_rows_is_refused(rows, fields, message):
    with pytest.raises(DataError, match=message):
        read_raw_splits(DataSpec(train=PAIRS[:rows], **fields))


def test_given_splits_are_used_as_they_are():
    spec = DataSpec(train=PAIRS[:80], validation=PAIRS[80:90], test=PAIRS[90:95])
    sizes = {name: len(prompts) for name, prompts in prompts_by_split(spec).items()}
    assert sizes == {"train": 80, "validation": 10, "test": 5}


def test_zero_test_fraction_gives_no_test_split(tokenizer):
    assert load_splits(DataSpec(train=PAIRS, test_fraction=0), tokenizer).test is None


def test_loading_twice_gives_equal_splits(tokenizer):
    first, second = (load_splits(DataSpec(train=PAIRS), tokenizer) for _ in range(2))
    assert first.train.digest == second.train.digest
    for one, other in zip(first.train.rows, second.train.rows, strict=True):
        np.testing.assert_array_equal(one.input_ids, other.input_ids)
        np.testing.assert_array_equal(one.is_answer, other.is_answer)


def test_digest_follows_content_and_order():
    def digest(rows):
        return read_raw_splits(given(rows)).train.digest

    assert digest(PAIRS[:5]) == digest([dict(reversed(row.items())) for row in PAIRS[:5]])
    assert len({digest(PAIRS[:5]), digest(PAIRS[:4]), digest(PAIRS[4::-1])}) == 3
    assert digest(PAIRS[:1]).startswith("sha256:")


# Batches


def lengths_of(rows: int) -> tuple[int, ...]:
    return tuple(random.Random(1).choices(range(5, 200), k=rows))


@pytest.mark.parametrize(("rows", "batch_size"), [(96, 8), (1000, 7), (5, 5), (33, 32), (9, 1)])
def test_epoch_shows_each_row_once_save_the_remainder(rows, batch_size):
    steps = rows // batch_size
    for epoch in range(3):
        seen = Counter(
            row
            for step in range(epoch * steps, (epoch + 1) * steps)
            for row in batch_rows(lengths_of(rows), batch_size, 0, step)
        )
        assert set(seen.values()) == {1}
        assert len(seen) == steps * batch_size
        assert set(seen) <= set(range(rows))


def test_remainder_differs_between_epochs():
    seen = {row for step in range(20) for row in batch_rows([1] * 10, 8, 0, step)}
    assert seen == set(range(10))


def test_batches_depend_on_nothing_but_the_arguments():
    order = list(range(300))
    forward = {step: batch_rows(lengths_of(200), 8, 3, step) for step in order}
    random.Random(0).shuffle(order)
    assert {step: batch_rows(list(lengths_of(200)), 8, 3, step) for step in order} == forward


def test_batches_are_the_same_ones_in_every_release():
    batches = [batch_rows([1, 2, 3, 4, 5, 6], 2, 0, step) for step in range(6)]
    assert batches == [[2, 3], [4, 5], [0, 1], [0, 3], [2, 5], [1, 4]]


def test_seed_and_epoch_change_the_order():
    first = [batch_rows(lengths_of(200), 8, 0, step) for step in range(25)]
    assert first != [batch_rows(lengths_of(200), 8, 1, step) for step in range(25)]
    assert first != [batch_rows(lengths_of(200), 8, 0, step) for step in range(25, 50)]
    assert batch_rows(lengths_of(200), 8, -1, 0)


def test_rows_of_similar_length_share_a_batch():
    lengths = lengths_of(1024)
    padded = sum(
        8 * max(lengths[row] for row in batch_rows(lengths, 8, 0, step)) for step in range(128)
    )
    assert padded < 1.15 * sum(lengths)


def test_batches_do_not_come_in_order_of_length():
    lengths = lengths_of(1024)
    longest = [max(lengths[row] for row in batch_rows(lengths, 8, 0, n)) for n in range(128)]
    assert abs(np.corrcoef(longest, range(128))[0, 1]) < 0.3


def test_small_data_meet_other_rows_in_each_epoch():
    lengths = lengths_of(64)
    first, second = (
        {frozenset(batch_rows(lengths, 8, 0, epoch * 8 + n)) for n in range(8)} for epoch in (0, 1)
    )
    assert not first & second


@pytest.mark.parametrize("step", [0, 1, 7])
def test_few_rows_are_repeated_to_fill_a_batch(step):
    counts = Counter(batch_rows([4, 5, 6], 8, 0, step))
    assert sorted(counts.values()) == [2, 3, 3]


def test_no_rows_cannot_be_batched():
    with pytest.raises(DataError, match="no rows to batch"):
        batch_rows([], 8, 0, 0)


def test_collated_targets_are_unshifted_answer_tokens():
    rows = [
        EncodedRow(input_ids=np.array([7, 8, 9]), is_answer=np.array([False, True, True])),
        EncodedRow(input_ids=np.array([5, 6]), is_answer=np.array([False, True])),
    ]
    input_ids, targets = collate(rows, pad_id=0)
    assert input_ids.tolist() == [[7, 8, 9], [5, 6, 0]]
    ignored = IGNORED_TARGET
    assert targets.tolist() == [[ignored, 8, 9], [ignored, 6, ignored]]
    assert input_ids.dtype == targets.dtype == np.int64


# A shorter limit in training


LONG = tuple(
    {"prompt": "ask " * (n % 7), "completion": "answer " * (1 + n % 3)} for n in range(60)
)


def splits_at(tokenizer, **limits):
    return load_splits(DataSpec(train=LONG, validation_fraction=0.2, **limits), tokenizer)


def test_training_rows_are_cut_as_max_tokens_would_and_others_are_not(tokenizer):
    shorter, short, long = (
        splits_at(tokenizer, max_tokens=40, train_max_tokens=20),
        splits_at(tokenizer, max_tokens=20),
        splits_at(tokenizer, max_tokens=40),
    )
    assert len(shorter.train.rows) < len(long.train.rows)
    assert shorter.train.examples == short.train.examples
    for one, other in zip(shorter.train.rows, short.train.rows, strict=True):
        np.testing.assert_array_equal(one.input_ids, other.input_ids)
        np.testing.assert_array_equal(one.is_answer, other.is_answer)
        assert one.is_cut == other.is_cut
    for one, other in zip(shorter.validation.rows, long.validation.rows, strict=True):
        np.testing.assert_array_equal(one.input_ids, other.input_ids)
    assert shorter.train.digest == long.train.digest


def test_cut_rows_share_their_tokens_with_the_whole(tokenizer):
    whole = splits_at(tokenizer, max_tokens=40)
    part = cut_train(whole, 20)
    assert part.validation is whole.validation
    wholes = {id(row) for row in whole.train.rows}
    bases = {id(row.input_ids) for row in whole.train.rows}
    assert any(id(row) in wholes for row in part.train.rows)
    assert all(id(row) in wholes or id(row.input_ids.base) in bases for row in part.train.rows)


def test_a_limit_that_leaves_no_answer_to_train_on_is_refused(tokenizer):
    rows = [{"prompt": "a long question", "completion": "b"}] * 3
    spec = DataSpec(train=rows, validation=rows, test_fraction=0, train_max_tokens=8)
    with pytest.raises(DataError, match=r"data\.train_max_tokens: none of 3 rows of data\.train"):
        load_splits(spec, tokenizer)


def test_rows_cut_in_training_are_counted(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        splits_at(tokenizer, max_tokens=100, train_max_tokens=20)
    (warning,) = [line for line in caplog.messages if "train_max_tokens=20" in line]
    assert re.search(r"data.train: \d+ of \d+ rows are longer than", warning)


# Digest of the tokenizer


def test_tokenizer_digest_outlives_saving_and_use(tokenizer, tmp_path):
    before = tokenizer_digest(tokenizer)
    tokenizer(["a", "bbbb"], padding=True, truncation=True, max_length=3)
    assert tokenizer_digest(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_digest(AutoTokenizer.from_pretrained(tmp_path)) == before


def test_tokenizer_digest_follows_vocabulary_and_special_tokens(tokenizer):
    before = tokenizer_digest(tokenizer)
    tokenizer.eos_token = "<|user|>"
    other_end = tokenizer_digest(tokenizer)
    tokenizer.add_tokens(["lynx"])
    assert len({before, other_end, tokenizer_digest(tokenizer)}) == 3
