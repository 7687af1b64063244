"""Values and errors read the same wherever they are shown."""

import pytest

from orchestrator.wording import last_line, refusal


@pytest.mark.parametrize(
    ("text", "line"),
    [("Traceback\n  File x\nRuntimeError: no\n\n", "RuntimeError: no"), ("", "ValueError")],
)
def test_the_last_line_of_a_traceback_is_the_reason(text: str, line: str) -> None:
    assert last_line(ValueError(text)) == line


def test_a_refusal_has_place_value_allowed_values_and_remedy() -> None:
    said = refusal("lora.rank", 0, ">= 1", "Raise it.")
    assert said == "lora.rank: got 0; allowed: >= 1. Raise it."
    said = refusal("stop", 3, "a running trial", "See status.", flaw="which is failed")
    assert said == "stop: got 3, which is failed; allowed: a running trial. See status."


def test_a_refusal_cuts_a_long_value() -> None:
    assert len(refusal("data.train", "x" * 10_000, "a file", "Name one.")) < 200
