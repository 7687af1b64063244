"""Bad inputs of a user, each with the exact error: `bad_inputs.yaml` holds the cases.

`text` is a whole sweep file, `changes` are sections of a small valid one, `command` is a command
line beside that file, `reference` names a version, `rows` are files of rows. In `error`, FOLDER
stands for the working folder and … for any text.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cli import main
from registry.errors import RefError
from registry.versions.refs import AdapterRef
from trainables.data_spec import ColumnsSpec, DataSpec
from trainables.errors import DataError
from trainables.rows.splits import read_raw_splits

FILE = Path(__file__).with_name("bad_inputs.yaml")
CASES: list[dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))

SWEEP: dict[str, Any] = {
    "name": "tiny",
    "base": {"model": "owner/name"},
    "data": {"train": "owner/rows"},
    "optim": {"steps": 20},
    "eval": {"every": 10},
    "space": {"lora.rank": {"choice": [2, 4]}},
    "budget": {"trials": 2},
}


def answer_to_command(case: dict[str, Any], folder: Path, capsys: Any) -> tuple[int, str]:
    text = case.get("text")
    if text is None:
        text = yaml.safe_dump(SWEEP | case.get("changes", {}), sort_keys=False)
    (folder / "sweep.yaml").write_text(text, encoding="utf-8")
    for name, content in case.get("files", {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode("utf-16" if name.endswith(".bin") else "utf-8"))
    code = main(case.get("command", ["run", "sweep.yaml"]))
    said = capsys.readouterr().err.removeprefix("lorchestra: ").rstrip("\n")
    # The line of a file that this test wrote says nothing more.
    return code, said.split("\nsweep.yaml, line")[0] if "changes" in case else said


def answer_to_reference(case: dict[str, Any], folder: Path, capsys: Any) -> tuple[int, str]:
    with pytest.raises(RefError) as caught:
        AdapterRef.parse(case["reference"])
    return 2, str(caught.value)


def answer_to_rows(case: dict[str, Any], folder: Path, capsys: Any) -> tuple[int, str]:
    for name, content in case["rows"].items():
        (folder / name).write_text(content)
    data = dict(case["data"])
    if "columns" in data:
        data["columns"] = ColumnsSpec(**data["columns"])
    with pytest.raises(DataError) as caught:
        read_raw_splits(DataSpec(**data))
    return 1, str(caught.value)


ANSWERS: dict[str, Callable[[dict[str, Any], Path, Any], tuple[int, str]]] = {
    "reference": answer_to_reference,
    "rows": answer_to_rows,
}


def answer(case: dict[str, Any], folder: Path, capsys: Any) -> tuple[int, str]:
    """Exit code and message of a case."""
    kind = next((kind for kind in ANSWERS if kind in case), "")
    code, said = ANSWERS.get(kind, answer_to_command)(case, folder, capsys)
    return code, said.replace(str(folder), "FOLDER")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_there_are_many_and_each_has_a_name_of_its_own() -> None:
    assert len(CASES) >= 80
    assert len({case["id"] for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_bad_input_gives_exactly_this_error(
    case: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name, value in case.get("environment", {}).items():
        monkeypatch.setenv(name, value.replace("FOLDER", str(folder)))
    code, said = answer(case, folder, capsys)
    assert code == case.get("code", 2)
    pattern = ".*".join(re.escape(part) for part in case["error"].rstrip("\n").split("…"))
    assert re.fullmatch(pattern, said, re.DOTALL), said
