"""A distribution draws the values of the sweep file, in the type of the setting."""

from typing import Any

import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.spec.distributions import parse_distribution


@pytest.mark.parametrize(
    ("written", "hint", "listed"),
    [
        ({"choice": ["8", 4]}, int, [8, 4]),
        ({"choice": [1, 2]}, float, [1.0, 2.0]),
        ({"choice": [["b", "a", "b"], "mlp"]}, str | tuple[str, ...], [["a", "b"], "mlp"]),
        ({"choice": [None, 2]}, int | None, [None, 2]),
        ({"int": [2, 4]}, int, [2, 3, 4]),
        ({"log_int": [2, 3]}, float, [2.0, 3.0]),
    ],
)
def test_values_have_the_type_of_the_setting(written: Any, hint: Any, listed: list[Any]) -> None:
    distribution = parse_distribution("space.x", written, hint)
    assert list(distribution.listed()) == listed
    assert [type(value) for value in distribution.listed()] == [type(value) for value in listed]
    assert distribution.size == len(listed)


def test_range_of_numbers_has_no_size_and_tries_its_bounds() -> None:
    distribution = parse_distribution("space.x", {"log_uniform": ["1e-4", 1]}, float)
    assert distribution.size is None
    assert list(distribution.samples()) == [1e-4, 1.0]


def test_long_range_of_whole_numbers_tries_its_bounds_only() -> None:
    distribution = parse_distribution("space.x", {"int": [0, 10**9]}, int)
    assert list(distribution.samples()) == [0, 10**9]


@pytest.mark.parametrize("kind", ["uniform", "log_uniform", "int", "log_int"])
@pytest.mark.parametrize("hint", [str, bool, str | tuple[str, ...]])
def test_setting_without_order_takes_choices_only(kind: str, hint: Any) -> None:
    with pytest.raises(SweepSpecError, match=r"^space\.x: got .*; allowed: choice\."):
        parse_distribution("space.x", {kind: [1, 2]}, hint)


@pytest.mark.parametrize(
    ("written", "inside", "outside"),
    [
        ({"choice": [4, 8]}, [4, 8], [5, "4", None]),
        ({"int": [2, 4]}, [2, 3, 4], [1, 5, 2.5, True, "3", None]),
        ({"log_uniform": [0.5, 1]}, [0.5, 0.7, 1], [0.4, 1.1, float("nan"), None, [0.7]]),
    ],
)
def test_distribution_holds_its_values_only(
    written: Any, inside: list[Any], outside: list[Any]
) -> None:
    distribution = parse_distribution("space.x", written, float)
    assert [value for value in inside if not distribution.holds(value)] == []
    assert [value for value in outside if distribution.holds(value)] == []


@pytest.mark.parametrize(
    ("written", "allowed"),
    [
        ({"choice": [4, None]}, "4, None"),
        ({"int": [2, 4]}, "whole numbers 2 to 4"),
        ({"log_uniform": [1e-5, 1]}, "1e-05 to 1"),
    ],
)
def test_values_read_well_in_messages(written: Any, allowed: str) -> None:
    assert parse_distribution("space.x", written, int | float | None).allowed == allowed
