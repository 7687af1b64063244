"""How versions look in a terminal."""

import io
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from orchestrator.adapters.terminal import (
    list_width,
    render_evaluations,
    render_version,
    render_versions,
)
from registry import AdapterRef, AdapterVersion, AliasMove, Evaluation


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
    assert lines[2].split()[:7] == ["tiny/1", "champion", "1.2346", "test", "nf4", "trained", "4"]


def test_a_list_fits_a_terminal_and_never_breaks_the_name_that_is_to_be_copied():
    usual = build_version(12, name="wordnet-classes", metrics={"test_loss": 1.0,
                                                                "test_accuracy": 1.0})  # fmt: skip
    assert len(shown(render_versions([usual]), 80).splitlines()) == 2
    long = build_version(3, name="a-name-of-sixty-three-characters-" + "x" * 30)
    assert f"{long.name}/3 " in shown(render_versions([long]), 80)


@pytest.mark.parametrize("terminal", [20, 80, 200])
def test_a_name_longer_than_the_terminal_is_not_cut(terminal):
    version = build_version(3, name="n" * 150)
    width = list_width([version], terminal)
    assert width >= terminal
    assert str(version.ref) in shown(render_versions([version]), width).split()
    assert list_width([build_version()], 80) == 80


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


def build_evaluation(losses=(1.0, 2.0, 3.0), form="trained", **changes):
    rows = len(losses)
    columns = {
        "loss_sum": list(losses), "answer_tokens": [1] * rows, "accuracy": [1] + [0] * (rows - 1),
    }  # fmt: skip
    document = {
        "format": "lorchestra.evaluation/1",
        "adapter": "sha256:00",
        "form": form,
        "data": {"digest": "sha256:cc", "name": "test", "rows": rows},
        "generation": None,
        "measures": {
            "perplexity": build_measure(2.718281828 ** (sum(losses) / rows), "exp"),
            "loss": build_measure(sum(losses) / rows),
            "accuracy": {"value": 1 / rows, "of": "accuracy", "per": None, "scale": "identity",
                         "mode": "max"},
        },
        "examples": columns,
    }  # fmt: skip
    return Evaluation.from_document(document | changes)


def build_measure(value, scale="identity"):
    return {"value": value, "of": "loss_sum", "per": "answer_tokens", "scale": scale,
            "mode": "min"}  # fmt: skip


def build_move(number, source, target, **changes):
    values = {"alias": "champion", "who": "eva", "at": datetime(2026, 3, 5, tzinfo=UTC), "why": ""}
    return AliasMove(number=number, source=source, target=target, **(values | changes))


def test_retired_versions_are_marked_and_dim_in_a_list():
    table = render_versions([build_version(2), build_version(1, retired="broken, by eva")])
    assert "champion, retired" in shown(table)
    assert [str(row.style) for row in table.rows] == ["", "dim"]


def test_a_version_shows_how_it_is_meant_to_be_served_what_was_kept_and_why_it_is_out_of_use():
    tags = {"serving.form": "merged", "checkpoints": "20,40", "checkpoint.20": "sha256:20",
            "checkpoint.40": "sha256:40", "lorchestra.retired": "{}"}  # fmt: skip
    text = shown(render_version(build_version(tags=tags, retired="[b]wrong data, by eva")))
    assert "serving form  merged" in text
    assert "20, 40 (as tiny/1@step-20)" in text
    assert "[b]wrong data, by eva" in text
    assert "sha256:20" not in text
    assert "lorchestra.retired" not in text


def test_a_version_shows_the_newest_evaluation_of_each_form_with_intervals():
    evaluations = [
        build_evaluation(form="merged"),
        build_evaluation((1.0, 1.0)),
        build_evaluation((9.0, 9.0)),
    ]
    text = shown(render_version(build_version(), evaluations))
    lines = [line.split() for line in text.splitlines() if "(2)" in line or "(3)" in line]
    assert [line[0] for line in lines] == ["trained", "merged"]
    assert lines[0][1:6] == ["test", "(2)", "1.0000", "(1.0000", "…"]
    assert lines[1][3:7] == ["2.0000", "(1.0000", "…", "3.0000)"]
    assert "9.0000" not in text
    assert "perplexity" not in text
    assert "and 1 older or with other settings" in text


def test_evaluations_read_without_their_rows_have_no_intervals():
    document = build_evaluation()
    brief = replace(document, examples={})
    text = shown(render_evaluations([brief]))
    assert "2.0000" in text
    assert "…" not in text


def test_a_version_shows_when_aliases_came_and_went():
    moves = [
        build_move(1, None, 1, why="the first"),
        build_move(2, 1, 2),
        build_move(3, 2, 1, is_rollback=True, why="it was wrong"),
        build_move(4, 1, None, is_done=False),
        build_move(5, 2, 3),
    ]
    lines = [line.split("alias history", 1)[1].strip()
             for line in shown(render_version(build_version(), moves=moves)).splitlines()
             if "alias history" in line]  # fmt: skip
    assert [line.split(maxsplit=2)[2] for line in lines] == [
        "got champion (by eva): the first",
        "champion went to 2 (by eva)",
        "got back champion, which was at 2 (by eva): it was wrong",
    ]
