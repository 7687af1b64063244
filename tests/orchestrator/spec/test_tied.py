"""Expressions of settings are computed; anything else is refused with its text."""

from typing import Any

import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.spec.settings import NUMBERS
from orchestrator.spec.tied import Tie, parse_tie

VALUES = {"lora.rank": 16, "optim.steps": 45, "optim.learning_rate": 1e-3, "lora.alpha": 2.0}


def parse(written: object, hint: Any = float) -> Tie:
    return parse_tie("space.lora.alpha", written, hint, NUMBERS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 * lora.rank", 32.0),
        (" lora.rank ", 16.0),
        ("optim.steps / 10", 4.5),
        ("-(lora.rank - 20) + +1e-1", 4.1),
        ("2 + 3 * 4 - 6 / 3", 12.0),
        ("sqrt(lora.rank) * lora.alpha", 8.0),
        ("min(lora.rank, optim.steps, 12)", 12.0),
        ("max(lora.rank / 4, 3 * optim.learning_rate)", 4.0),
    ],
)
def test_expression_is_computed(text: str, value: float) -> None:
    assert parse(text).compute(VALUES) == pytest.approx(value, rel=1e-12)


def test_whole_number_settings_are_rounded() -> None:
    for hint in (int, int | None):
        number = parse("optim.steps / 10 + 0.2", hint).compute(VALUES)
        assert (number, type(number)) == (5, int)
    assert isinstance(parse("2").compute(VALUES), float)


def test_names_are_listed_once() -> None:
    assert parse("lora.rank * lora.rank + optim.steps").names == ("lora.rank", "optim.steps")


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("lora.rnk * 2", ["'lora.rnk * 2'", "There is no lora.rnk", "did you mean lora.rank?"]),
        ("rank", ["There is no rank", "did you mean lora.rank?"]),
        ("base.model", ["There is no base.model"]),
        ("2 ** lora.rank", ["Take out '2 ** lora.rank'", "+ - * /, sqrt(), min(), max()"]),
        ("lora.rank // 2", ["Take out"]),
        ("lora.rank if 1 else 2", ["Take out"]),
        ("(lambda: 1)()", ["Take out"]),
        ("__import__('os').getcwd()", ["Take out"]),
        ("lora.__class__", ["There is no lora.__class__"]),
        ("(1).real", ["Take out '1'"]),
        ("abs(lora.rank)", ["Take out 'abs(lora.rank)'"]),
        ("sqrt(1, 2)", ["Give sqrt() one number."]),
        ("min(lora.rank)", ["Give min() two numbers or more."]),
        ("min(*lora.rank, 2)", ["Take out '*lora.rank'"]),
        ("min(1, 2, key=3)", ["Take out"]),
        ("True", ["Take out 'True'"]),
        ("'text'", ["Take out"]),
        ("1j", ["Take out '1j'"]),
        ("not lora.rank", ["Take out"]),
        ("2 *", ["'2 *'", "Correct the expression."]),
        ("", ["''", "Correct the expression."]),
        ("\0", ["Correct the expression."]),
        ("a = 1", ["Correct the expression."]),
        ("(" * 150, ["Correct the expression."]),
        ("1 + " * 60 + "1", ["up to 200 characters"]),
        (16, ["got 16", "Write it as {tied: '2 * lora.rank'}."]),
        (["2 * lora.rank"], ["Write it as"]),
        (None, ["None"]),
    ],
)
def test_anything_else_is_refused(written: object, parts: list[str]) -> None:
    with pytest.raises(SweepSpecError) as caught:
        parse(written)
    assert str(caught.value).startswith("space.lora.alpha: ")
    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("1 / (lora.rank - 16)", "lora.rank 16"),
        ("sqrt(4 - lora.rank)", "lora.rank 16"),
        ("lora.rank * 1e308", "lora.rank 16"),
        ("optim.micro_batch_size + 1", "optim.micro_batch_size None"),
    ],
)
def test_expression_without_a_value_says_for_what(text: str, known: str) -> None:
    with pytest.raises(SweepSpecError, match=rf"^space\.lora\.alpha: got .*none for {known}\)"):
        parse(text).compute(VALUES | {"optim.micro_batch_size": None})


@pytest.mark.parametrize("hint", [str, bool, str | tuple[str, ...]])
def test_setting_that_is_no_number_is_not_computed(hint: Any) -> None:
    with pytest.raises(SweepSpecError, match="this setting is not a number"):
        parse("2 * lora.rank", hint)
