"""`check`: the same refusals as `run`, a plan, and neither Ray nor anything left behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import main
from orchestrator.errors import SweepInUseError, SweepStorageError
from orchestrator.journal.log import EventLog
from orchestrator.preflight.checking import check_sweep
from orchestrator.preflight.places import require_usable
from orchestrator.spec.sweep import parse_sweep
from tests.support.events import event


@pytest.fixture
def sweep(tmp_path, monkeypatch, tiny_base, tiny_data):
    """Plain values of a sweep that can run; the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return {
        "name": "tiny",
        "base": {"model": str(tiny_base)},
        "data": {"train": str(tiny_data), "max_tokens": 32},
        "optim": {"steps": 8, "batch_size": 4},
        "eval": {"every": 4},
        "space": {"lora.rank": {"choice": [2, 4]}},
        "budget": {"trials": 4, "wall_clock_s": 90},
        "finals": {"top": 3, "seeds": 2},
        "register": {},
    }


def write(sweep):
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep))
    return ["check", "sweep.yaml"]


def test_check_says_what_run_will_do_without_ray_and_leaves_nothing(sweep):
    arguments = write(sweep)
    code = (
        "import sys; from orchestrator.cli import main; code = main(sys.argv[1:]);"
        "print('ray' in sys.modules, code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    said = done.stdout
    assert "Rows are read as prompt-completion: prompt from 'prompt'" in said
    assert "Search: 2 trials of up to 8 steps of 4 rows; tpe chooses lora.rank; asha" in said
    assert "Finals: the best 2, each trained again with 2 new seeds: 4 trainings" in said
    assert "Serving forms: trained, unquantized, merged, requantized." in said
    assert "Limits: 1:30 of wall clock; the search leaves 20% of it to the finals" in said
    assert "Will register: the best adapter as tiny; it becomes champion if" in said
    assert "Start with: lorchestra run sweep.yaml\nFalse 0\n" in said
    assert done.stderr == ""
    assert [path.name for path in Path().iterdir()] == ["sweep.yaml"]


def test_check_in_json_has_the_plan_or_the_mistake(sweep, capsys):
    del sweep["register"], sweep["budget"]["wall_clock_s"]
    assert main([*write(sweep), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["state"]) == (True, "a new sweep")
    assert (found["plan"]["trials"], found["plan"]["repeats"]) == (2, 4)
    assert (found["plan"]["limits"], found["plan"]["register"]) == ([], "")
    assert "Will register: nothing, as the file has no section register." in found["plan"]["lines"]

    sweep["budget"]["trials"] = 0
    assert main([*write(sweep), "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "ok": False,
        "error": captured.err.strip().removeprefix("lorchestra: "),
    }


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"lora": {"targets": ["q_prj"]}}, 2, "did you mean q_proj? Got 'q_prj'"),
        ({"base": {"model": "./tiny-bsae"}}, 2, "Did you mean tiny-base?"),
        ({"data": {"train": "empty.jsonl"}}, 2, "holds no rows"),
        ({"data": {"train": "rows.jsnl"}}, 2, "Did you mean rows.jsonl?"),
        ({"data": {"train": "./rows.jsn"}}, 2, "Did you mean rows.jsonl?"),
        ({"base": {"model": "owner/absent"}}, 1, "'owner/absent', which "),
    ],
    ids=["target", "folder", "empty", "suffix", "path", "hub"],
)
def test_mistakes_are_told_before_anything_heavy(sweep, capsys, command, changes, code, said):
    Path("tiny-base").mkdir()
    Path("empty.jsonl").write_text("")
    Path("rows.jsonl").write_text('{"text": "a"}\n')
    write({**sweep, **changes})
    started = time.process_time()
    assert main([command, "sweep.yaml"]) == code
    assert time.process_time() - started < 1.5
    complaint = capsys.readouterr().err
    assert said in complaint
    assert "Traceback" not in complaint
    assert len(complaint.splitlines()) in (1, 4)  # the sentence, and perhaps the line of the file
    assert not Path("runs").exists()


def test_a_limit_on_gpu_time_needs_a_gpu(sweep, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(write({**sweep, "budget": {"trials": 2, "gpu_seconds": 60}})) == 2
    assert "budget.gpu_seconds: got 60" in capsys.readouterr().err


def test_a_storage_with_another_sweep_is_refused_and_with_the_same_continued(sweep, tmp_path):
    spec = parse_sweep(sweep, tmp_path)
    log = EventLog(tmp_path / "runs/tiny/events.jsonl")
    log.append(event("sweep_started", sweep_id="one", spec=spec.to_dict(), digest=spec.digest))
    with pytest.raises(SweepInUseError, match="in use by process"):
        check_sweep(spec)
    log.close()
    assert check_sweep(spec).lines[0].endswith("continues a sweep of 0 trials so far.")
    other = parse_sweep({**sweep, "seed": 1}, tmp_path)
    with pytest.raises(SweepStorageError, match="another spec"):
        check_sweep(other)


def test_a_storage_that_cannot_be_locked_or_written_is_refused(tmp_path):
    require_usable(tmp_path / "a/b")
    (tmp_path / "file").write_text("")
    with pytest.raises(SweepStorageError, match="cannot be written and locked"):
        require_usable(tmp_path / "file/b")
    assert not (tmp_path / "a").exists()
