"""What is said of a sweep's rows, once for all bases or by base."""

import json
import shutil
from pathlib import Path

from orchestrator.spec.inspection import inspect_inputs
from orchestrator.spec.sweep import SweepSpec, parse_sweep

ROWS = [{"question": f"{n} plus one is", "answer": f" {n + 1}", "id": n} for n in range(60)]


def sweep(folder: Path, base: Path, **space: object) -> SweepSpec:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    values = {
        "name": "tiny",
        "base": {"model": str(base)},
        "data": {"train": "rows.jsonl", "max_tokens": 16},
        "optim": {"steps": 20},
        "space": {"lora.rank": {"choice": [2, 4]}, **space},
        "budget": {"trials": 2},
    }
    return parse_sweep(values, folder)


def test_rows_are_described_before_anything_is_started(tiny_base: Path, tmp_path: Path) -> None:
    found = inspect_inputs(sweep(tmp_path, tiny_base))
    assert found.lines[0].endswith(
        "prompt from 'question', completion from 'answer'; not used: 'id'."
    )
    assert any("rows are longer than data.max_tokens=16 and cut" in line for line in found.lines)
    assert json.loads(json.dumps(found.facts)) == found.facts
    assert list(found.facts) == [str(tiny_base)]


def test_what_differs_between_bases_names_them(tiny_base: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(tiny_base, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8}))
    spec = sweep(tmp_path, tiny_base, **{"base.model": {"choice": [str(tiny_base), str(short)]}})
    assert [base.model for base in spec.bases] == [str(tiny_base), str(short)]
    lines = inspect_inputs(spec).lines
    assert sum(line.startswith("Rows are read as") for line in lines) == 1
    named = [line for line in lines if line.startswith("With /")]
    assert named
    assert all(line.startswith(f"With {short}: ") and "8 positions" in line for line in named)
