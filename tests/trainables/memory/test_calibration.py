"""A forecast is corrected by what was measured, within bounds, for rows of near lengths."""

import json

import pytest

from trainables.memory.calibration import (
    MOST_FACTOR,
    NO_CORRECTION,
    Calibration,
    Correction,
    MemoryReading,
    correct,
)
from trainables.memory.forecast import Forecast

FORECAST = Forecast(
    base=1000, dense=0, adapters=10, gradients=10, optimizer=20, activations=300, logits=60,
    workspace=30, evaluation=5, context=50,
)  # fmt: skip


def test_the_corrected_total_equals_the_outcome():
    assert (FORECAST.passing, FORECAST.total) == (400, 1485)
    found = correct({"base": 1000, "passing": 400}, {"base": 1010, "passing": 500})
    assert found == Correction(base=10, factor=1.25)
    assert found.total(FORECAST) == 1485 + 10 + 100
    assert NO_CORRECTION.total(FORECAST) == FORECAST.total


@pytest.mark.parametrize(
    ("measured", "factor", "base"),
    [
        ({"base": 9000, "passing": 9000}, MOST_FACTOR, 1000),
        ({"base": 1, "passing": 1}, 1 / MOST_FACTOR, -500),
    ],
)
def test_a_correction_is_bounded(measured, factor, base):
    found = correct({"base": 1000, "passing": 400}, measured)
    assert (found.factor, found.base) == (factor, base)


def test_rows_of_the_nearest_length_decide():
    known = Calibration()
    assert known.of(100) == NO_CORRECTION
    short, long = Correction(factor=1.1), Correction(factor=1.4)
    known.learn(64, short)
    known.learn(1024, long)
    assert [known.of(tokens) for tokens in (1, 64, 500, 600, 4096)] == [
        short, short, short, long, long,
    ]  # fmt: skip
    known.learn(64, long)
    assert known.of(1) == long


def test_a_reading_sums_its_parts_and_is_plain():
    reading = MemoryReading(
        seats=2,
        train_tokens=64,
        forecast={"base": 10, "passing": 5},
        measured={"base": 11, "passing": 7},
        capacity=100,
        correction=Correction(factor=1.4),
    )
    assert (reading.forecast_bytes, reading.measured_bytes) == (15, 18)
    assert json.loads(json.dumps(reading.to_dict()))["correction"] == {"base": 0, "factor": 1.4}
