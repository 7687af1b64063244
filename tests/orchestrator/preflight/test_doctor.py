"""`doctor` says what works, what does not, and what to do; its exit code follows."""

import json
import sqlite3

import pytest

from orchestrator.cli import main
from orchestrator.preflight.doctor import Finding, _packages, _ray, as_table, to_values


@pytest.mark.timeout(120)
def test_doctor_finds_this_machine_fit_and_a_foreign_database_not(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("CREATE TABLE letters (one TEXT)")
    database.close()
    assert main(["doctor", "--json", "--runs", str(tmp_path)]) == 1
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert "its tables are not those of MLflow" in found["MLflow"]["said"]
    assert {name for name, one in found.items() if one["state"] == "fail"} == {"MLflow"}
    assert "nf4 computes and learns on" in found["4-bit layers"]["said"]
    assert found["Ray"]["said"].endswith("a local Ray is started")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_packages_that_differ_from_the_pinned_ones_are_named_with_the_command():
    found = _packages(["pyyaml==1.0", "no-such-package>=2", "rich>=1", "mypy==0; extra == 'test'"])
    assert found.state == "fail"
    assert "tested with ==1.0; no-such-package is missing" in found.said
    assert found.remedy == "Run: pip install 'pyyaml==1.0' 'no-such-package>=2'"
    assert _packages(["rich>=1"]).state == "ok"


def test_a_cluster_that_does_not_answer_is_a_failure_in_one_sentence(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    found = _ray()
    assert found.state == "fail"
    assert found.said.startswith("RAY_ADDRESS: no Ray answers at 127.0.0.1:9")


def test_the_table_has_a_line_for_each_finding_and_each_remedy():
    findings = [
        Finding(name="a", state="ok", said="fine"),
        Finding(name="long", state="warn", said="half", remedy="Do it."),
    ]
    assert list(as_table(findings)) == [
        "ok    a     fine",
        "warn  long  half",
        "            Do it.",
    ]
    assert to_values(findings)["ok"]
