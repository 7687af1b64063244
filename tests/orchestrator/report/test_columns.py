"""Heads and cells of the columns of searched settings."""

import pytest

from orchestrator.report.columns import format_cell, setting_cells, short_heads
from orchestrator.spec.settings import KNOBS

KNOBS_OF_A_TRIAL = {
    "base.quantization": "nf4",
    "lora.rank": 8,
    "lora.alpha": 16.0,
    "lora.targets": ("q_proj", "v_proj"),
    "optim.learning_rate": 0.00089284,
    "lora.dropout": 0.05,
}


def test_usual_settings_have_short_heads_in_both_spellings():
    names = tuple(KNOBS_OF_A_TRIAL)
    assert short_heads(names) == ("quant", "r", "α", "targets", "lr", "drop")
    assert short_heads(["quantization", "base", "lora.rank"]) == ("quant", "base", "r")


def test_every_setting_has_a_head_and_no_two_are_equal():
    heads = short_heads(list(KNOBS))
    assert len(set(heads)) == len(heads)
    assert all(heads)


def test_heads_that_would_be_equal_are_full_names():
    assert short_heads(["lora.init", "optim.init", "seed"]) == ("lora.init", "optim.init", "seed")


def test_cells_follow_the_names_and_a_missing_setting_is_a_dash():
    names = [*KNOBS_OF_A_TRIAL, "seed"]
    cells = setting_cells(names, KNOBS_OF_A_TRIAL)
    assert cells == ("nf4", "8", "16", "q+v", "8.93e-4", "0.05", "-")


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (0.0, "0"),
        (1e-4, "1e-4"),
        (0.0123456, "0.0123"),
        (3e8, "3e8"),
        (1234567.0, "1.23e6"),
        (True, "yes"),
        (None, "none"),
        ("all-linear", "all-linear"),
        ("q_proj+v_proj+up_proj", "q+v+up"),
        ("q_proj+fc1", "q_proj+fc1"),
        ("owner/a-base-with-a-long-name-" + "x" * 60, "owner/a-base-with-a-long-name-" + "x" * 60),
        ("a\nb\x1b", "a b"),
    ],
)
def test_a_value_is_short_and_whole(value, cell):
    assert format_cell(value) == cell
