"""Seats of a host: what its memory holds, and the last one that pays."""

import pytest

from trainables.memory.seating import MOST_SEATS_THAT_PAY, decide_seats, find_knee


@pytest.mark.parametrize(
    ("speeds", "knee"),
    [
        ([100], 1),
        ([100, 109.9], 1),
        ([100, 110], 2),
        ([100, 190, 270, 280], 3),
        ([100, 105, 200], 1),  # the second seat does not pay, whatever the third does
        ([100, 90], 1),
        ([100 * n for n in range(1, 11)], 10),
    ],
)
def test_the_knee_is_the_last_seat_that_gains_a_tenth(speeds, knee):
    assert find_knee(speeds) == knee


def test_no_speed_can_make_more_seats_pay():
    nearly_perfect = [n / (1 + n / 1e6) for n in range(1, 40)]
    assert find_knee(nearly_perfect) == MOST_SEATS_THAT_PAY


@pytest.mark.parametrize(
    ("by_memory", "speeds", "seats", "reason"),
    [
        (None, None, 1, "no limit"),
        (3, None, 3, "memory"),
        (50, None, MOST_SEATS_THAT_PAY, "knee"),
        (2, [100, 190, 270, 275], 2, "memory"),
        (3, [100, 190, 270, 275], 3, "knee"),
        (None, [100, 101], 1, "knee"),
        (0, [100, 190], 1, "memory"),  # a trial alone may save memory
    ],
)
def test_memory_or_knee_decides(by_memory, speeds, seats, reason):
    decision = decide_seats(by_memory, speeds)
    assert (decision.seats, decision.reason) == (seats, reason)
    assert decision.by_memory == by_memory
    assert decision.speeds == tuple(speeds or ())
