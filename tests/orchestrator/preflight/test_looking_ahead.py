"""`lorchestra plan`, and what `check` and `run` say and refuse, without Ray or MLflow."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import main
from orchestrator.preflight.looking_ahead import own_hardware, plan_ahead, require_fitting
from orchestrator.spec.sweep import parse_sweep
from tests.trainables.memory.test_published import LLAMA_3_8B


@pytest.fixture
def sweep(tmp_path, monkeypatch, tiny_base, tiny_data):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return {
        "name": "tiny",
        "base": {"model": str(tiny_base)},
        "data": {"train": str(tiny_data), "max_tokens": 64},
        "optim": {"steps": 8, "batch_size": 4},
        "eval": {"every": 4, "batch_size": 4},
        "space": {
            "base.quantization": {"choice": ["nf4", "none"]},
            "lora.rank": {"choice": [2, 4]},
        },
        "budget": {"trials": 4},
    }


@pytest.fixture
def large(sweep, tmp_path, tiny_base):
    """The same sweep on a folder that describes an 8B base."""
    folder = tmp_path / "large"
    folder.mkdir()
    for file in Path(tiny_base).glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps(LLAMA_3_8B))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    return {**sweep, "base": {"model": str(folder)}}


def write(sweep, *options):
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep))
    return ["plan", "sweep.yaml", *options]


def test_plan_says_memory_seats_and_time_without_ray_or_mlflow(sweep):
    code = (
        "import sys; from orchestrator.cli import main; code = main(sys.argv[1:]);"
        "print(*(name in sys.modules for name in ('ray', 'mlflow')), code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *write(sweep, "--gpu", "l4")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    said = done.stdout
    assert "Configurations on l4 (24.0 GB): 4.\n" in said
    assert "Training rows have " in said
    assert "Memory, nf4+dq: " in said
    assert "Memory, none: " in said
    assert "Time: not known beforehand: no published figure for l4" in said
    assert said.endswith("False False 0\n")
    assert [path.name for path in Path().iterdir()] == ["sweep.yaml"]


def test_plan_in_json_has_bytes_of_every_part(sweep, capsys):
    assert main(write(sweep, "--gpu", "h100-80", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["configurations"]["valid"]) == (True, 4)
    (nf4, plain) = found["groups"]
    assert (nf4["form"], plain["form"]) == ("nf4+dq", "none")
    parts = nf4["largest"]["bytes"]
    assert parts["total"] == sum(parts.values()) - parts["total"]
    assert found["rows"][sweep["base"]["model"]]["source"] == "tokenizer"


def test_plan_of_what_does_not_fit_exits_with_1_and_names_a_change(large, capsys):
    large["space"] = {"base.quantization": {"choice": ["none"]}}
    assert main(write(large, "--gpu", "t4")) == 1
    said = capsys.readouterr().out
    assert "1 of 1 configurations in none do not fit" in said
    assert "It would fit with base.quantization: nf4" in said
    assert main(write(large, "--gpu", "t4", "--json")) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_an_unknown_card_is_a_mistake_of_the_input(sweep, capsys):
    assert main(write(sweep, "--gpu", "h1000")) == 2
    assert (
        "--gpu: did you mean h100-80? Got 'h1000'; allowed: h100-80, " in capsys.readouterr().err
    )
    assert main(write(sweep, "--gpu", "h1000", "--json")) == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_rows_without_a_tokenizer_count_with_the_limit(sweep, tmp_path, capsys):
    folder = tmp_path / "no-tokenizer"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((Path(sweep["base"]["model"]) / name).read_bytes())
    assert main(write({**sweep, "base": {"model": str(folder)}}, "--gpu", "l4")) == 0
    said = capsys.readouterr().out
    assert "Rows count with data.max_tokens (64), an upper bound: the base's tokenizer" in said


def test_the_device_is_that_of_this_machine_unless_ray_is_elsewhere(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    hardware = own_hardware()
    assert hardware is not None
    assert hardware.is_here
    assert hardware.memory > 10**9
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert own_hardware() is None


def test_check_says_the_same_in_at_most_four_lines(sweep, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write(sweep)
    assert main(["check", "sweep.yaml"]) == 0
    said = capsys.readouterr().out.splitlines()
    found = [line for line in said if line.startswith(("Configurations", "Memory", "Time: "))]
    assert 3 <= len(found) <= 4
    assert main(["check", "sweep.yaml", "--json"]) == 0
    outlook = json.loads(capsys.readouterr().out)["outlook"]
    assert outlook["fits"] is True


def test_a_sweep_of_which_nothing_fits_is_refused_before_ray(large, monkeypatch, capsys):
    outlook = plan_ahead(parse_sweep(large, Path.cwd()), "h100-80", Path("runs"))
    require_fitting(outlook)  # an 8B base fits an H100
    # 4.5 trillion weights fit no machine.
    sizes = {"hidden_size": 65536, "intermediate_size": 229376, "num_hidden_layers": 80}
    config = Path(large["base"]["model"]) / "config.json"
    config.write_text(json.dumps({**LLAMA_3_8B, **sizes}))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write(large)
    assert main(["check", "sweep.yaml"]) == 2
    assert "base.model: no configuration fits this machine (" in capsys.readouterr().err
    assert not Path("runs").exists()
