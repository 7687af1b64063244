"""Measures against numbers computed by hand."""

import math

import pytest

from trainables.evaluation.measures import MEASURES, RESERVED, measured, value_of

COLUMNS = {
    "loss_sum": [1.0, 3.0, 0.0],
    "answer_tokens": [2, 5, 1],
    "answer_bytes": [4, 10, 2],
    "correct_tokens": [2, 3, 1],
    "accuracy": [1, 0, 1],
}


def test_values_are_those_computed_by_hand():
    values = {name: entry["value"] for name, entry in measured(COLUMNS, {}).items()}
    assert values == {
        "loss": 0.5,  # 4 nats over 8 tokens
        "perplexity": pytest.approx(1.6487212707),  # e ** 0.5
        "bits_per_byte": pytest.approx(0.3606737602),  # 4 nats = 5.770780 bits over 16 bytes
        "token_accuracy": 0.75,
        "accuracy": pytest.approx(2 / 3),
    }


def test_an_entry_says_how_it_follows_from_the_columns():
    entry = measured(COLUMNS, {})["bits_per_byte"]
    assert {key: entry[key] for key in ("of", "per", "scale", "mode")} == {
        "of": "loss_sum",
        "per": "answer_bytes",
        "scale": "bits",
        "mode": "min",
    }
    again = sum(COLUMNS[entry["of"]]) / sum(COLUMNS[entry["per"]]) / math.log(2)
    assert entry["value"] == pytest.approx(again)


def test_only_what_was_measured_is_there():
    columns = {"exact_match": [1, 0], "edits": [2.0, 5.0]}
    entries = measured(columns, {"edits": "min"})
    assert set(entries) == {"exact_match", "edits"}
    assert entries["edits"] == {
        "value": 3.5,
        "of": "edits",
        "per": None,
        "scale": "identity",
        "mode": "min",
    }


@pytest.mark.parametrize(
    "columns",
    [
        {"loss_sum": [1.0, None], "answer_tokens": [1, 1]},
        {"loss_sum": [1.0, math.nan], "answer_tokens": [1, 1]},
        {"loss_sum": [2000.0], "answer_tokens": [1]},
        {"loss_sum": [0.0], "answer_tokens": [0]},
    ],
    ids=["a-row-has-none", "not-a-number", "exp-overflows", "nothing-to-divide-by"],
)
def test_what_is_not_finite_has_no_value(columns):
    assert value_of(columns, MEASURES["perplexity"]) is None


def test_names_of_columns_and_measures_are_taken():
    assert {"loss", "loss_sum", "answer_bytes", "prediction", "exact_match"} <= RESERVED
