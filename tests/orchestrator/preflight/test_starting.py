"""`init` writes a sweep file for rows that people have, and the file passes every check."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import main
from orchestrator.preflight.checking import check_sweep
from orchestrator.spec.sweep import SweepSpec


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, tiny_base):
    """An empty folder with the tiny base in it, and no GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    shutil.copytree(tiny_base, tmp_path / "base")


def write(name, rows):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def labels(count, start=0):
    """Rows of a classification with three classes."""
    return [
        {"question": f"letter {n}?", "answer": "abc"[n % 3]} for n in range(start, start + count)
    ]


def test_a_classification_gets_a_file_that_passes_check_with_reasons_and_no_overwriting(capsys):
    write("letters/rows.jsonl", labels(90))
    arguments = ["init", "letters/rows.jsonl", "--base", "base", "--out", "sweeps/a.yaml"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "Rows are read as prompt-completion: prompt from 'question'" in said
    assert "Answers are 3 classes: " in said
    assert "Cost: at most 10 trainings of " in said
    assert "Next: lorchestra check sweeps/a.yaml" in said
    written = Path("sweeps/a.yaml").read_text()
    values = yaml.safe_load(written)
    assert values["data"]["train"] == "../letters/rows.jsonl"
    assert (values["base"]["model"], values["name"]) == ("../base", "letters")
    assert values["lora"]["targets"] == "all-linear"
    assert values["space"]["lora.alpha"] == {"tied": "2 * lora.rank"}
    assert values["register"] == {"name": "letters", "metric": "accuracy"}
    unexplained = [
        line
        for line, before in zip(written.splitlines()[1:], written.splitlines(), strict=False)
        if line.startswith("  ") and "#" not in line and "#" not in before
    ]
    assert unexplained == []
    checked = check_sweep(SweepSpec.from_yaml("sweeps/a.yaml"))
    rows = checked.prepared.data.facts[str(Path("base").resolve())]["rows"]
    assert {name: one["cut"] for name, one in rows.items()} == dict.fromkeys(rows, 0)

    assert main(arguments) == 2
    assert "--out: got 'sweeps/a.yaml', which exists" in capsys.readouterr().err
    assert Path("sweeps/a.yaml").read_text() == written


def test_splits_beside_the_rows_are_used_and_their_common_rows_not_trained_on(capsys):
    write("set.train.jsonl", labels(60))
    write("set.val.jsonl", labels(20))
    write("set.test.jsonl", labels(20, start=100))
    assert main(["init", "set.train.jsonl", "--base", "base"]) == 0
    data = yaml.safe_load(Path("set.yaml").read_text())["data"]
    assert (data["validation"], data["test"]) == ("set.val.jsonl", "set.test.jsonl")
    assert data["on_overlap"] == "drop"
    assert "20 of the training rows are removed." in capsys.readouterr().out
    assert not {"validation_fraction", "test_fraction"} & data.keys()


def test_free_chats_with_bad_and_long_rows_are_said_and_cut(capsys):
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"say {n} " + "x" * (600 if n % 10 == 0 else 5)},
                {"role": "assistant", "content": f"number {n} it is"},
            ]
        }
        for n in range(80)
    ]
    write("talk.jsonl", [*chats, {"messages": []}])
    assert main(["init", "talk.jsonl", "--base", "base"]) == 0
    said = capsys.readouterr().out
    values = yaml.safe_load(Path("talk.yaml").read_text())
    assert values["data"]["on_bad_row"] == "skip"
    assert values["data"]["max_tokens"] == 512  # positions of the base
    assert "Answers are free text." in said
    assert "are longer than data.max_tokens=512 and cut" in said
    assert "metric" not in values["register"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["init", "rows.jsnl"], 2, "Did you mean rows.jsonl?"),
        (["init", "rows.jsonl", "--base", "./bsae"], 2, "Did you mean base?"),
        (["init", "rows.jsonl", "--base", "owner/none"], 1, "got 'owner/none', which is not"),
        (["init", "empty.jsonl"], 2, "holds no rows"),
    ],
    ids=["rows", "base", "hub", "empty"],
)
def test_what_cannot_be_had_is_told_and_no_file_written(capsys, arguments, code, said):
    write("rows.jsonl", labels(60))
    write("empty.jsonl", [])
    assert main(arguments) == code
    assert said in capsys.readouterr().err
    assert not list(Path().glob("*.yaml"))
