"""The benchmark of packs prints a row for each cell, with ratios of what it measured."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_have_a_row_for_each_cell():
    command = [
        sys.executable, "benchmarks/packing.py", "--shape", "tiny", "--forms", "none",
        "--seats", "1", "2", "--tokens", "16", "--row", "8", "--repeats", "1",
        "--processes", "2", "--engine", "exact", "batched",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in done.stdout.splitlines()
        if line.startswith("| ") and line[2].isdigit()
    ]
    assert [row[:3] for row in rows] == [
        ["16", seats, engine] for seats in ("1", "2") for engine in ("exact", "batched")
    ]
    for row in rows:
        assert float(row[3].replace(",", "")) > 0
        assert row[4] == "1.00" or row[1] == "2"
        assert (row[5] != "") == (row[2] == "batched")
        assert float(row[6]) > 0
        assert (row[7] != "") == (row[1] == "2")
        shares = [float(cell.rstrip("%")) for cell in row[9:]]
        assert 95 <= sum(shares) <= 105 or shares[-1] == 0
        assert row[10] == "0%"  # nothing is quantized
