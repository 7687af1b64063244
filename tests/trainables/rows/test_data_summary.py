"""What is said of the rows before anything is trained, and what a manifest keeps of it."""

import json

import pytest
from transformers import AutoTokenizer

from trainables.data_spec import DataSpec
from trainables.rows.data import encode_splits
from trainables.rows.data_summary import summarize, wilson_interval
from trainables.rows.splits import read_raw_splits

PAIRS = tuple({"prompt": f"{n} plus one is", "completion": f" {n + 1}"} for n in range(200))


def summary_of(spec: DataSpec, tokenizer=None, **facts):
    raw = read_raw_splits(spec)
    splits = None if tokenizer is None else encode_splits(raw, spec, tokenizer)
    return summarize(raw, splits, **facts)


@pytest.fixture
def tokenizer(tiny_base):
    return AutoTokenizer.from_pretrained(tiny_base)


def test_columns_and_sizes_come_first():
    first, second, *_ = summary_of(DataSpec(train=PAIRS)).lines()
    assert first == (
        "Rows are read as prompt-completion: prompt from 'prompt', completion from 'completion'."
    )
    assert second == "Rows: 160 training, 20 validation, 20 test."


def test_rows_that_a_limit_cuts_are_counted_with_the_limit_that_takes_them(tokenizer):
    long = {"prompt": "a", "completion": "x" * 50}
    rows = [*({**long, "prompt": f"{n}"} for n in range(10)), *PAIRS[:90]]
    spec = DataSpec(train=rows, validation=PAIRS[100:], test_fraction=0, max_tokens=30)
    lines = summary_of(spec, tokenizer).lines()
    (line,) = (one for one in lines if one.startswith("data.train: "))
    assert line == (
        "data.train: 10 of 100 rows are longer than data.max_tokens=30 and cut: 10 lose the end "
        "of an answer, and 0 are dropped, as no answer is left; data.max_tokens: 52 leaves all "
        "rows whole."
    )


def test_shorter_limit_of_training_is_named_by_its_field(tokenizer):
    spec = DataSpec(train=PAIRS, max_tokens=30, train_max_tokens=17)
    lines = summary_of(spec, tokenizer).lines()
    assert any("are longer than data.train_max_tokens=17" in line for line in lines)
    assert not any("data.max_tokens=" in line for line in lines)


@pytest.mark.parametrize(
    ("max_tokens", "end"),
    [(10, "data.max_tokens cuts them before."), (30, "lower data.max_tokens to 16")],
)
def test_rows_longer_than_the_positions_of_the_base_are_counted(tokenizer, max_tokens, end):
    rows = [{"text": "a" * (8 + n)} for n in range(12)]
    spec = DataSpec(train=rows, validation=rows, test_fraction=0, max_tokens=max_tokens)
    lines = summary_of(spec, tokenizer, positions=16).lines()
    (line,) = (one for one in lines if one.startswith("data.train: ") and "positions" in one)
    assert line.startswith("data.train: 4 of 12 rows are longer than the 16 positions")
    assert end in line


def test_few_rows_are_told_with_the_interval_they_give():
    lines = summary_of(DataSpec(train=PAIRS[:60])).lines()
    assert any(
        line.startswith("With 6 validation rows, a measured accuracy of 50% stands for 19% to 81%")
        for line in lines
    )
    many = summary_of(DataSpec(train=PAIRS[:100], validation=PAIRS[100:], test_fraction=0))
    assert not any(line.startswith("With ") for line in many.lines())


def test_sample_that_trials_are_compared_on_is_told():
    spec = DataSpec(train=PAIRS[:100], validation=PAIRS[100:], test_fraction=0)
    lines = summary_of(spec, compared_on=40).lines()
    assert "a sample of 40 of the 100 validation rows, the same for all" in lines[1]
    assert any(line.startswith("With 40 validation rows") for line in lines)
    assert "sample" not in summary_of(spec, compared_on=400).lines()[1]


def test_record_is_json_with_counts_and_no_rows(tokenizer):
    spec = DataSpec(train=PAIRS[:100], validation=PAIRS[90:190], test_fraction=0, max_tokens=17)
    record = json.loads(json.dumps(summary_of(spec, tokenizer).to_dict()))
    assert record["layout"]["columns"] == {"prompt": "prompt", "completion": "completion"}
    assert record["rows"]["train"]["rows"] == 100
    assert record["rows"]["train"]["longest"] > 17
    assert record["overlaps"] == [
        {"rows": "validation", "other": "train", "same": 10, "near": 0, "total": 100}
    ]
    assert len(json.dumps(record)) < 1500


def test_interval_is_wilsons():
    # Newcombe 1998, table I: 15 of 148 rows.
    low, high = wilson_interval(15 / 148, 148)
    assert (low, high) == (pytest.approx(0.0624, abs=1e-4), pytest.approx(0.1605, abs=1e-4))
