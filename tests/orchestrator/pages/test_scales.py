"""Places of values on axes."""

import pytest

from orchestrator.pages.scales import format_tick, scale_of


def texts(scale):
    return [tick.text for tick in scale.ticks()]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.0, 1.0], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([0.701, 0.702], ["0.7010", "0.7012", "0.7014", "0.7016", "0.7018", "0.7020"]),
        ([10, 60], ["10", "20", "30", "40", "50", "60"]),
        ([7_000, 18_000], ["8k", "10k", "12k", "14k", "16k", "18k"]),
        ([1e-4, 1e-2], ["1e-4", "0.001", "0.01"]),
        ([3.0, 3.0], ["2.85", "2.90", "2.95", "3.00", "3.05", "3.10", "3.15"]),
    ],
    ids=["shares", "close", "whole", "thousands", "wide", "one value"],
)
def test_ticks_are_round_and_differ(values, ticks):
    scale = scale_of(values)
    assert texts(scale) == ticks
    assert all(-1e-9 <= tick.share <= 1 + 1e-9 for tick in scale.ticks())


def test_few_numbers_of_a_setting_stand_at_equal_distances_in_order():
    scale = scale_of([16, 4, 8, 4], is_setting=True)
    assert texts(scale) == ["4", "8", "16"]
    assert [scale.share(rank) for rank in (4, 8, 16)] == pytest.approx([1 / 6, 1 / 2, 5 / 6])


def test_words_and_missing_values_are_places_too():
    scale = scale_of(["q_proj+v_proj", None, True, "mlp"], is_setting=True)
    assert texts(scale) == ["mlp", "none", "q+v", "yes"]
    assert scale.share(None) == pytest.approx(3 / 8)


def test_a_wide_axis_is_logarithmic_and_holds_all_values_with_room():
    scale = scale_of([1e-4, 1e-2])
    assert scale.is_log
    assert 0 < scale.share(1e-4) < scale.share(1e-3) < scale.share(1e-2) < 1
    assert scale.share(1e-3) == pytest.approx(0.5)


def test_an_axis_from_zero_begins_there():
    scale = scale_of([0.2, 0.5], holds=[0.0])
    assert scale.share(0.0) == 0
    assert scale.share(0.5) < 1


@pytest.mark.parametrize(
    ("value", "text"), [(1.2e6, "1.2M"), (2e9, "2G"), (230_000, "230k"), (1e-4, "1e-4"), (0, "0")]
)
def test_numbers_are_short(value, text):
    assert format_tick(value) == text


def test_whole_numbers_have_whole_ticks():
    assert texts(scale_of([0, 1])) == ["0", "1"]
    assert texts(scale_of([2, 4])) == ["2", "3", "4"]
    assert texts(scale_of([3])) == ["3"]
