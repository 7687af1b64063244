"""The engine that `hosts.engine` means on a host."""

import pytest

from trainables.training.kinds import pick_engine, recorded_engine


@pytest.mark.parametrize(
    ("choice", "seats", "device", "dtype", "picked"),
    [
        ("auto", 4, "cpu", "bfloat16", "batched"),
        ("auto", 3, "cpu", "bfloat16", "exact"),
        ("auto", 64, "cpu", "float32", "exact"),
        ("auto", 64, "cuda", "bfloat16", "exact"),
        ("batched", 1, "cuda", "float16", "batched"),
        ("exact", 64, "cpu", "bfloat16", "exact"),
    ],
)
def test_auto_is_batched_only_where_it_was_faster(choice, seats, device, dtype, picked):
    found = pick_engine(choice, seats=seats, device_type=device, compute_dtype=dtype)
    assert found == picked


def test_records_without_an_engine_are_exact():
    assert [recorded_engine(one) for one in (None, "exact", "batched")] == [
        "exact",
        "exact",
        "batched",
    ]
