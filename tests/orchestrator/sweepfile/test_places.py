"""A field is found in its line, also when its name has dots."""

import pytest
import yaml

from orchestrator.sweepfile.places import Place, excerpt, find_field

TEXT = """\
name: tiny
optim: {steps: 20, learning_rate: 1e-4}
space:
  lora.rank: {choice: [2, 4]}
  lora.rank_x: 3
forbid:
  - {lora.rank: 2}
  - lora.rank: 4
lora:
  targets:
    - q_proj
"""


@pytest.mark.parametrize(
    ("field", "line", "column"),
    [
        ("name", 1, 7),
        ("optim.steps", 2, 16),
        ("optim.stepz", 2, 8),
        ("space.lora.rank", 4, 14),
        ("space.lora.rank_x", 5, 16),
        ("space.lora.rnk", 3, 1),
        ("forbid[0].lora.rank", 7, 17),
        ("forbid[1]", 8, 5),
        ("lora.targets", 10, 3),
    ],
)
def test_a_field_is_found_or_the_section_that_lacks_it(field: str, line: int, column: int) -> None:
    assert find_field(yaml.compose(TEXT), field) == Place(line - 1, column - 1)


def test_a_key_that_is_wrong_itself_is_pointed_at() -> None:
    assert find_field(yaml.compose(TEXT), "optim.steps", is_key=True) == Place(1, 8)
    assert find_field(yaml.compose(TEXT), "seed") is None
    assert find_field(None, "seed") is None


def test_a_long_line_is_cut_around_the_column_and_wide_characters_keep_the_caret() -> None:
    line, caret = excerpt("x" * 500 + "!" + "y" * 500, Place(0, 500)).split("\n")
    assert len(line) <= 80
    assert line[caret.index("^")] == "!"
    assert excerpt("a: 日本 !", Place(0, 6)).split("\n")[1] == "      |         ^"
