"""Rows without a sweep file: splits, classes and repeated rows are found."""

import json
from pathlib import Path

import pytest

from orchestrator.preflight.rows import look_at_rows


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, rows):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def pairs(count, answer):
    return [{"prompt": f"{n}", "completion": answer(n)} for n in range(count)]


@pytest.mark.parametrize(
    ("answer", "classes"),
    [
        (lambda n: f" {'ab'[n % 2]}", {"a", "b"}),
        (lambda n: f"answer {n}", set()),
        (lambda n: "ab"[n % 2] * 70, set()),
        (lambda n: "yes", set()),
    ],
    ids=["classes", "free", "long", "one"],
)
def test_classes_are_few_short_answers_that_occur_often(answer, classes):
    write("rows.jsonl", pairs(60, answer))
    found = look_at_rows("rows.jsonl")
    assert set(found.classes) == classes
    assert found.train_rows < found.total == 60


@pytest.mark.parametrize(("rows", "share"), [(60, 0.2), (400, 0.125), (1000, 0.1), (6000, 0.083)])
def test_small_data_gives_a_larger_share_to_evaluation(rows, share):
    write("rows.jsonl", pairs(rows, str))
    assert look_at_rows("rows.jsonl").settings["test_fraction"][0] == share


def test_a_folder_of_splits_is_read_split_by_split():
    for split, count in (("train", 50), ("validation", 12), ("test", 9)):
        write(f"set/{split}.jsonl", [{"text": f"{split} {n}"} for n in range(count)])
    found = look_at_rows("set")
    assert {name: len(one.rows) for name, one in found.raw.by_name.items()} == {
        "train": 50, "validation": 12, "test": 9,
    }  # fmt: skip


def test_repeated_rows_are_counted():
    write("rows.jsonl", [*pairs(40, str), *pairs(10, str)])
    assert "10 of 50 rows repeat another row." in list(look_at_rows("rows.jsonl").lines())
