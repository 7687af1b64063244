"""Some of many rows, the same ones for whoever draws them."""

import pytest

from trainables.data_spec import DataSpec
from trainables.engine import rows_of
from trainables.rows.data import load_splits
from trainables.rows.sampling import sample


def test_sample_is_spread_over_rows_that_are_sorted():
    found = sample(160, 40, "sha256:a")
    assert found == sorted(set(found)) == sample(160, 40, "sha256:a")
    assert len(found) == 40
    assert all(sum(start <= n < start + 40 for n in found) >= 4 for start in (0, 40, 80, 120))


def test_smaller_sample_is_a_part_of_a_larger_one():
    assert set(sample(100, 10, "x")) < set(sample(100, 50, "x"))


def test_other_rows_give_another_sample():
    assert sample(100, 10, "x") != sample(100, 10, "y")


@pytest.mark.parametrize("most", [5, 9])
def test_all_rows_are_taken_where_no_more_are_there(most):
    assert sample(5, most, "x") == [0, 1, 2, 3, 4]


def test_trials_are_compared_on_every_class_of_a_sorted_file(tiny_base):
    from transformers import AutoTokenizer

    rows = [{"prompt": f"{n}", "completion": "wxyz"[n // 40]} for n in range(160)]
    spec = DataSpec(train=rows, validation=rows, test_fraction=0)
    splits = load_splits(spec, AutoTokenizer.from_pretrained(tiny_base))
    chosen = rows_of(splits, "validation", 40)
    classes = [int(row.input_ids[row.is_answer][0]) for row in chosen]
    assert len(chosen) == 40
    assert len(set(classes)) == 4
    assert len(rows_of(splits, "validation", None)) == 160
