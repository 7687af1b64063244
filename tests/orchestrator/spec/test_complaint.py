"""A mistake gives one short sentence with the nearest remedy."""

import pytest

from orchestrator.spec.complaint import complaint, nearest, unknown

KNOWN = ["lora.rank", "optim.learning_rate", "optim.eps", "base.quantization"]


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("rank", "lora.rank"),
        ("lora.rnak", "lora.rank"),
        ("lr", "optim.learning_rate"),
        ("optim.lr", "optim.learning_rate"),
        ("optim.rank", "lora.rank"),
        ("quantisation", "base.quantization"),
        ("zzzzzz", None),
    ],
)
def test_nearest_known_word(word: str, near: str | None) -> None:
    assert nearest(word, KNOWN) == near


def test_unknown_word_without_a_near_one_is_to_be_removed() -> None:
    assert str(unknown("space", "zzzzzz", KNOWN)).endswith("Remove it.")


def test_long_value_is_cut() -> None:
    assert len(str(complaint("data.train", "x" * 10_000, "a file", "Name one."))) < 250
