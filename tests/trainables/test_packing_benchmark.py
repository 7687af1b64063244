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
        "--processes", "2",
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
    assert [(row[0], row[1]) for row in rows] == [("16", "1"), ("16", "2")]
    for row in rows:
        assert float(row[2].replace(",", "")) > 0
        assert (row[3] == "1.00") == (row[1] == "1")
        assert float(row[4]) > 0
        assert (row[5] != "") == (row[1] == "2")
        shares = [float(cell.rstrip("%")) for cell in row[7:]]
        assert 95 <= sum(shares) <= 105 or shares[-1] == 0
        assert row[8] == "0%"  # nothing is quantized
