"""A distribution draws what the sweep file says, in the type of its setting."""

from typing import Any

import pytest

from orchestrator.distributions import parse_distribution
from orchestrator.errors import SweepSpecError


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
