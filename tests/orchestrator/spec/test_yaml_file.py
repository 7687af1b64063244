"""Errors in a YAML file name the line."""

from pathlib import Path

import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.spec.yaml_file import load_mapping


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name: a\nlora: {rank: 8\n", ["sweep.yaml, line 3, column 1", "Correct"]),
        ("name: a\nname: b\n", ["line 2, column 1", "'name' is given twice"]),
        ("", ["None", "a mapping of settings"]),
        ("- name\n", ["['name']", "a mapping of settings"]),
        ("a: !!python/object:os.system x\n", ["line 1", "python/object"]),
        ("a: \x00\n", ["special characters"]),
    ],
)
def test_yaml_mistake_is_placed(tmp_path: Path, text: str, parts: list[str]) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(SweepSpecError) as caught:
        load_mapping(tmp_path / "sweep.yaml")
    assert [part for part in parts if part not in str(caught.value)] == []


def test_missing_sweep_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SweepSpecError, match=r"cannot read .*none\.yaml"):
        load_mapping(tmp_path / "none.yaml")


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert load_mapping(tmp_path / "sweep.yaml")["b"] == {"x": 1, "y": 3}
