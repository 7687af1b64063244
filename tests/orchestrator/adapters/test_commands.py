"""The commands on adapters: what they say, what they refuse, and with which exit code."""

import json
import math
from pathlib import Path

import pytest

from orchestrator.adapters.as_json import to_json
from orchestrator.cli import main
from registry import Registry
from tests.support.bundles import new_document, write_bundle

ROWS = [1.0, 2.0, 3.0, 4.0] * 5


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A registry with two measured versions of `letters`, the second much better."""
    folder = tmp_path_factory.mktemp("runs")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    for seed, better_by in ((1, 0.0), (2, 0.5)):
        bundle = tmp_path_factory.mktemp("bundle")
        write_bundle(bundle, seed, {"eval_loss": 1.0, "test_loss": 1.0})
        version = Registry(uri).register(bundle, "letters")
        losses = [row - better_by for row in ROWS]
        document = new_document(losses, adapter=version.digest)
        Registry(uri).record_evaluation(version.ref, document)
    return folder


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')


def call(runs, capsys, *arguments):
    """Exit code, and what was said on either stream."""
    code = main(["adapters", *arguments, "--runs", str(runs)])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_a_version_is_promoted_on_its_evidence_and_rolled_back(runs, capsys):
    code, said = call(runs, capsys, "promote", "letters/1", "--why", "the first")
    assert (code, said[:9]) == (0, "promoted:")
    code, said = call(runs, capsys, "promote", "letters/2")
    assert (code, said[:9]) == (0, "promoted:")
    assert "20 test rows" in said
    code, said = call(runs, capsys, "promote", "letters/1")
    assert (code, said[:13]) == (1, "not promoted:")
    code, said = call(runs, capsys, "retire", "letters/2", "--why", "it is the champion")
    assert code == 1
    assert "roll back first" in said
    code, said = call(runs, capsys, "rollback", "letters", "--why", "users complained")
    assert (code, said) == (0, "letters@champion is version 1 again\n")
    assert call(runs, capsys, "retire", "letters/2", "--why", "rude")[0] == 0
    code, said = call(runs, capsys, "promote", "letters/2", "--force")
    assert code == 1
    assert "retired" in said
    assert call(runs, capsys, "unretire", "letters/2")[0] == 0
    code, said = call(runs, capsys, "history", "letters")
    champions = [line for line in said.splitlines() if " champion " in line]
    assert [words.split()[3:5] for words in champions] == [["-", "1"], ["1", "2"], ["2", "1"]]
    assert "rolled back: users complained" in champions[-1]
    heading, *challenges = said[said.index("when", 1) :].splitlines()
    assert heading.split()[1:4] == ["challenged", "by", "measure"]
    # Version 2 challenged version 1, and then version 1 version 2.
    assert [line.split()[2:4] for line in challenges] == [["1", "2"], ["2", "1"]]


def test_versions_are_compared_on_the_terminal_and_as_a_page(runs, capsys):
    code, said = call(runs, capsys, "compare", "letters/1", "letters/2", "--html", "new/c.html")
    assert code == 0
    assert "seed" in said
    page = Path("new/c.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "letters/2" in page


def test_what_is_listed_is_printed_as_json_for_programs(runs, capsys):
    def document(*arguments):
        code, said = call(runs, capsys, *arguments, "--json")
        assert code == 0
        return json.loads(said)

    assert to_json({"low": math.inf, "mean": 1.5}) == '{\n  "low": null,\n  "mean": 1.5\n}'

    versions = document("list", "letters")
    assert [one["ref"] for one in versions] == ["letters/2", "letters/1"]
    shown = document("show", "letters/2")
    assert shown["tags"]["lora.rank"] == versions[0]["tags"]["lora.rank"]
    (evaluation,) = shown["evaluations"]
    assert evaluation["data"]["rows"] == len(ROWS)
    assert "examples" not in evaluation
    compared = document("compare", "letters/1", "letters/2", "--html", "c.html")
    assert compared["adapters"] == ["letters/1", "letters/2"]
    assert Path("c.html").is_file()
    assert set(document("history", "letters")) == {"moves", "challenges"}


@pytest.mark.parametrize("verb", ["list", "history"])
def test_a_name_that_there_is_not_is_refused(runs, capsys, verb):
    code, said = call(runs, capsys, verb, "lettres")
    assert code == 1
    assert "adapter lettres: not found; allowed: letters" in said


def test_what_is_known_of_versions_is_shown(runs, capsys):
    code, said = call(runs, capsys, "list")
    assert code == 0
    assert "letters/1" in said
    code, said = call(runs, capsys, "show", "letters/2")
    assert said.startswith("letters/2 is not the champion")
    assert (code, "lora.rank" in said, "show letters/2 --all" in said) == (0, False, True)
    code, said = call(runs, capsys, "show", "letters/2", "--all")
    assert (code, "lora.rank" in said) == (0, True)
    assert call(runs, capsys, "pull", "letters/2", "--to", "here") == (0, "here\n")
    assert json.loads(Path("here/manifest.json").read_text())["seed"] == 2
    assert call(runs, capsys, "clean")[1].startswith("nothing to remove")


@pytest.mark.parametrize(
    ("arguments", "code", "field"),
    [
        (["evaluate", "letters"], 2, "--data: got None"),
        (["evaluate", "letters", "--data", "rows.jsonl", "--tasks", "a"], 2, "--data: got 'rows"),
        (["evaluate", "letters", "--data", "nowhere.jsonl"], 2, "--data: got 'nowhere.jsonl'"),
        (["evaluate", "letters", "--data", "rows.jsonl", "--forms", "a"], 2, "--forms: got 'a'"),
        (["evaluate", "letters", "--data", "rows.jsonl", "--choices", "x"], 2, "--choices: got"),
        (["evaluate", "letters", "--tasks", "a", "--forms", "b"], 2, "--forms: got 'b'"),
        (["promote", "letters/1", "--confidence", "2"], 2, "confidence: got 2.0"),
        (["promote", "letters/1", "--form", "packed"], 2, "form: got 'packed'"),
        (["retire", "letters/1", "--why", " "], 1, "no reason"),
        (["compare", "letters/1", "letters/1"], 2, "letters/1"),
        (["rollback", "nobody", "--why", "x"], 1, "nobody"),
        (["pull", "letters/1@step-9", "--to", "here"], 1, "step"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(runs, capsys, arguments, code, field):
    exit_code, said = call(runs, capsys, *arguments)
    assert said.startswith("lorchestra: ")
    assert "Traceback" not in said
    assert field in said
    assert exit_code == code
    assert not Path("here").exists()
