"""Errors in a YAML file name the line."""

import time
from pathlib import Path

import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.sweepfile.reading import load_mapping


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "name: a\nlora: {rank: 8\n",
            ["sweep.yaml, line 2, column 7", "is not closed by }", "    2 | lora: {rank"],
        ),
        ("name: a\nname: b\n", ["line 2, column 1", "'name' is given twice"]),
        ("", ["None", "a mapping of settings"]),
        ("- name\n", ["['name']", "a mapping of settings"]),
        ("a: !!python/object:os.system x\n", ["line 1", "python/object"]),
        ("a: \x00\n", ["line 1: the character '\\x00' is not allowed"]),
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


def nested_aliases(levels: int, width: int = 9) -> str:
    """A text whose value grows by the width at each level: a few hundred bytes, then gigabytes."""
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines) + "\n"


def nested_merges(levels: int, width: int = 9) -> str:
    lines = ["m0: &m0 {x: 1}"]
    for level in range(1, levels):
        lines.append(f"m{level}: &m{level} {{<<: [{', '.join([f'*m{level - 1}'] * width)}]}}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (nested_aliases(9), "line 5, column 10: got more than 10,000 values; allowed: 10,000"),
        (nested_merges(9), "got more than 10,000 values"),
        ("name: " + "[" * 5000 + "]" * 5000, "line 1, column 30: got values nest 25 deep"),
        ("name: " + "{a: " * 5000, "got values nest 25 deep; allowed: 24 levels"),
        ("".join("  " * depth + "a:\n" for depth in range(300)), "got values nest 25 deep"),
        ("a: &a [*a]\n", "line 1, column 8: got *a contains itself; allowed: plain values"),
        ("a: &a {b: {c: *a}}\n", "got *a contains itself"),
        ("a: " + "[x]," * 10, "text follows a value that is complete"),
        ("name: " + "y" * 10**6, "got 1,000,006 bytes; allowed: 200,000 bytes"),
        ("name: " + "y" * 10**5, "got a text of 100,000 characters (yyyyyyyyyyyyyyyyyyyy…)"),
        ("a: [" + "1, " * 20_000 + "]", "got more than 10,000 values"),
        ("a: " + "9" * 5000, "column 4: a whole number has 5000 digits"),
        ("a: 0x" + "f" * 5000, "a whole number has 5002 digits"),
        ("a: 1" + ":59" * 3000, "a whole number has 9001 digits"),
        ("a: !!python/object/apply:os.system [ls]\n", "python/object/apply:os.system'; allowed"),
        ("a: !!binary aGk=\n", "the tag 'tag:yaml.org,2002:binary'; allowed: values without"),
        ("a: !mine b\n", "the tag '!mine'"),
    ],
    ids=lambda value: value[:12] if len(value) > 20 else value,
)
def test_a_short_text_of_a_huge_value_is_refused_at_once(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    began = time.perf_counter()
    with pytest.raises(SweepSpecError) as caught:
        load_mapping(tmp_path / "sweep.yaml")
    assert time.perf_counter() - began < 1
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400


def test_values_within_the_bounds_are_read(tmp_path: Path) -> None:
    many = ", ".join(map(str, range(2000)))
    deep = "[" * 20 + "]" * 20
    text = f"a: &a [{many}]\nb: [*a, *a]\nc: {deep}\nd: !!str 5\ne: {'y' * 20_000}\n"
    (tmp_path / "sweep.yaml").write_text(text)
    values = load_mapping(tmp_path / "sweep.yaml")
    assert [len(values[name]) for name in "abde"] == [2000, 2, 1, 20_000]
