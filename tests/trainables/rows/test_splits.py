"""Rows parted so that no split holds another's, and what is said where given splits do."""

import json
import random
from pathlib import Path

import pytest

from trainables.data_spec import DataSpec
from trainables.errors import DataError
from trainables.rows.data_summary import summarize
from trainables.rows.splits import RawSplits, read_raw_splits

PAIRS = tuple({"prompt": f"{n} plus one is", "completion": f" {n + 1}"} for n in range(200))
GOOD = {"prompt": "a", "completion": "b"}


def write(path: Path, lines) -> str:
    path.write_text(
        "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines)
    )
    return str(path)


def texts(raw: RawSplits) -> dict[str, set[str]]:
    return {
        name: {" ".join(row.values["prompt"].lower().split()) for row in split.rows}
        for name, split in raw.by_name.items()
    }


def sizes(raw: RawSplits) -> dict[str, int]:
    return {name: len(split.rows) for name, split in raw.by_name.items()}


def require_apart(parts: dict[str, set[str]]) -> None:
    assert not parts["train"] & parts["validation"]
    assert not parts["train"] & parts["test"]
    assert not parts["validation"] & parts["test"]


# Sizes


@pytest.mark.parametrize("rows", [3, 10, 60, 199])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sizes_are_those_of_the_fractions(rows, seed):
    found = sizes(read_raw_splits(DataSpec(train=PAIRS[:rows], split_seed=seed)))
    held = max(1, int(rows / 10 + 0.5))
    assert found == {"train": rows - 2 * held, "validation": held, "test": held}


def test_rows_that_say_the_same_stay_in_one_split_under_whatever_id():
    rows = [{"id": n, **PAIRS[n % 40]} for n in range(400)]
    rows += [{"id": 400 + n, "prompt": f"  {n} PLUS one\tis ", "completion": f" {n + 1}"}
             for n in range(40)]  # fmt: skip
    raw = read_raw_splits(DataSpec(train=rows))
    require_apart(texts(raw))
    assert sizes(raw) == {"train": 352, "validation": 44, "test": 44}
    assert raw.overlaps == ()


def test_groups_stay_whole_beside_rows_that_say_the_same():
    rows = [{**PAIRS[n // 2], "author": n % 30} for n in range(240)]
    raw = read_raw_splits(DataSpec(train=rows, group_by="author", validation_fraction=0.2))
    homes = {name: {row.values["author"] for row in split.rows}
             for name, split in raw.by_name.items()}  # fmt: skip
    require_apart(homes)
    require_apart(texts(raw))


def test_long_rows_that_nearly_say_the_same_stay_in_one_split():
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
    rows = []
    for n in range(60):
        text = random.Random(n // 3).choices(words, k=150)
        text[40 + n % 3] = "zzz"
        rows.append({"prompt": " ".join(text), "completion": f"{n // 3}"})
    raw = read_raw_splits(DataSpec(train=rows, validation_fraction=0.2, test_fraction=0.2))
    homes = {name: {row.values["completion"] for row in split.rows}
             for name, split in raw.by_name.items()}  # fmt: skip
    require_apart(homes)
    assert sizes(raw) == {"train": 36, "validation": 12, "test": 12}


def test_split_does_not_depend_on_ids_or_order():
    def parts(rows):
        return texts(read_raw_splits(DataSpec(train=rows)))

    marked = [{**row, "id": n} for n, row in enumerate(PAIRS)]
    assert parts(PAIRS) == parts(marked) == parts(marked[::-1])


# Overlaps


def overlapping(**fields) -> DataSpec:
    near = [{**row, "prompt": row["prompt"].upper(), "id": n} for n, row in enumerate(PAIRS[:20])]
    return DataSpec(train=PAIRS[:100], validation=[*near, *PAIRS[150:160]], test=PAIRS[:10],
                    **fields)  # fmt: skip


def test_given_splits_that_overlap_are_counted_pair_by_pair():
    lines = summarize(read_raw_splits(overlapping())).lines()
    assert "20 of 30 validation rows are also training rows." in lines
    assert "10 of 10 test rows are also training rows." in lines
    assert "10 of 10 test rows are also validation rows." in lines


def test_splits_that_share_nothing_are_not_spoken_of():
    spec = DataSpec(train=PAIRS[:100], validation=PAIRS[100:160], test=PAIRS[160:])
    assert not [line for line in summarize(read_raw_splits(spec)).lines() if "also" in line]


def test_overlap_ends_the_run_where_that_is_asked_for():
    with pytest.raises(DataError, match=r"^data\.on_overlap: got 'fail', and 20 of 30 validation"):
        read_raw_splits(overlapping(on_overlap="fail"))


def test_overlap_is_dropped_from_what_matters_less():
    raw = read_raw_splits(overlapping(on_overlap="drop"))
    require_apart(texts(raw))
    assert sizes(raw) == {"train": 80, "validation": 20, "test": 10}
    assert raw.dropped == {"train": 20, "validation": 10}
    assert "20 of the training rows are removed." in summarize(raw).lines()


def test_dropping_everything_is_refused():
    same = DataSpec(train=PAIRS, validation=PAIRS, test_fraction=0, on_overlap="drop")
    with pytest.raises(DataError, match=r"no rows are left in data\.train"):
        read_raw_splits(same)


# Rows that cannot be used


def test_bad_rows_are_listed_with_their_lines_up_to_ten(tmp_path):
    lines = [GOOD, "{", {"prompt": "a"}, "[1]", *[{**GOOD, "completion": None}] * 9]
    path = write(tmp_path / "rows.jsonl", [*lines, *PAIRS])
    with pytest.raises(DataError) as caught:
        read_raw_splits(DataSpec(train=path))
    first, *listed = str(caught.value).split("\n")
    assert first.startswith("data.train: 12 of 213 rows cannot be used; allowed: ")
    assert "data.on_bad_row: skip" in first
    assert len(listed) == 11
    assert listed[0].startswith(f"  {path} line 2 is not JSON")
    assert listed[1].startswith(f"  {path} line 3 has no column 'completion'")
    assert listed[2] == f"  {path} line 4 is a list"
    assert listed[9] == f"  {path} line 11 has no value in 'completion'"
    assert listed[10] == "  and 2 more"


def test_bad_rows_are_left_out_and_told_where_that_is_asked_for(tmp_path):
    chat = {"prompt": [{"role": "user", "content": "a"}], "completion": "b"}
    path = write(tmp_path / "rows.jsonl", [*PAIRS[:50], "{", chat, *PAIRS[50:98]])
    raw = read_raw_splits(DataSpec(train=path, on_bad_row="skip"))
    assert sum(sizes(raw).values()) == 98
    (line,) = (one for one in summarize(raw).lines() if "skipped" in one)
    assert line.startswith("data.train: skipped 2 rows that cannot be used")
    assert f"{path} line 51 is not JSON" in line
    assert f"{path} line 52 " in line


def test_source_without_a_good_row_is_refused_even_when_skipping(tmp_path):
    path = write(tmp_path / "rows.jsonl", ["{"] * 12)
    with pytest.raises(DataError, match="12 of 12 rows cannot be used"):
        read_raw_splits(DataSpec(train=path, on_bad_row="skip"))


def test_skipped_rows_do_not_count_in_the_digest(tmp_path):
    whole = write(tmp_path / "whole.jsonl", PAIRS)
    broken = write(tmp_path / "broken.jsonl", [*PAIRS[:9], "{", *PAIRS[9:]])
    digests = {
        read_raw_splits(DataSpec(train=path, on_bad_row="skip")).train.digest
        for path in (whole, broken)
    }
    assert len(digests) == 1
