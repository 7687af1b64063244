"""How versions look in a terminal."""

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from orchestrator.adapters import render_version, render_versions
from registry import AdapterRef, AdapterVersion


def build_version(number=1, **changes):
    values = {
        "name": "tiny",
        "version": number,
        "aliases": ("champion",),
        "run_id": "abc123",
        "digest": "sha256:00",
        "metrics": {"test_loss": 1.23456789, "eval_loss": 2.0},
        "tags": {"quantization": "nf4", "lora.rank": "4", "metric.test_loss": "1.2345"},
        "created_at": datetime(2026, 3, 4, 5, 6, tzinfo=UTC),
    }
    return AdapterVersion(**(values | changes))


def shown(renderable, width=160):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def test_a_registry_without_adapters_says_what_to_do():
    assert "lorchestra run" in shown(render_versions([]))


def test_a_list_has_a_line_for_each_version_in_the_order_given():
    lines = shown(render_versions([build_version(2, aliases=()), build_version(1)])).splitlines()
    assert len(lines) == 3
    assert lines[1].split()[0] == "tiny/2"
    assert lines[2].split()[:6] == ["tiny/1", "champion", "1.2346", "test", "nf4", "4"]


def test_a_list_shows_what_was_measured_on_test_rows_and_else_on_validation_rows():
    metrics = {"eval_loss": 2.0, "eval_accuracy": 0.5}
    only_eval = build_version(1, metrics=metrics)
    both = build_version(2, metrics=metrics | {"test_loss": 1.0, "test_accuracy": 0.75})
    lines = shown(render_versions([only_eval, both])).splitlines()
    assert lines[1].split()[2:5] == ["2.0000", "0.5000", "eval"]
    assert lines[2].split()[2:5] == ["1.0000", "0.7500", "test"]


def test_one_version_shows_all_that_is_recorded_once():
    text = shown(render_version(build_version()))
    for part in ("tiny/1", "champion", "abc123", "1.23457", "lora.rank", "nf4"):
        assert part in text
    assert text.count("test_loss") == 1


@pytest.mark.parametrize(
    ("changes", "label"), [({"aliases": ()}, "aliases"), ({"run_id": None}, "run")]
)
def test_what_a_version_lacks_is_named_none(changes, label):
    lines = shown(render_version(build_version(**changes))).splitlines()
    assert [line.split() for line in lines if line.strip().startswith(label + " ")] == [
        [label, "none"]
    ]


def test_tags_with_brackets_are_text_and_not_markup():
    version = build_version(tags={"lora.targets": "[q_proj]", "note": "[/bold]"})
    assert "[q_proj]" in shown(render_version(version))
    assert str(AdapterRef(name="tiny", version=1)) in shown(render_version(version))
