"""What versions cost when there are many: registering one more, listing all, finding the champion.

Bundles of a few bytes are registered one after another under one name, in an MLflow database in
SQLite. CPU-seconds are those of this process; listing is timed as the command that a user gives,
in a process of its own.

    python benchmarks/registry_load.py --versions 500 --out benchmarks/results/registry_load.md
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))

from registry import Registry
from tests.support.bundles import write_bundle

NAME = "many"
WINDOW = 20


def register(folder: Path, versions: int) -> list[float]:
    """CPU-seconds of each registration, in order."""
    adapters = Registry(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    spent = []
    for number in range(versions):
        bundle = write_bundle(folder / "bundle", number)
        started = time.process_time()
        adapters.register(bundle, NAME)
        spent.append(time.process_time() - started)
    return spent


def list_versions(folder: Path) -> float:
    """Seconds of `lorchestra adapters list`; the median of three.

    Raises:
        CalledProcessError: The command failed.
    """
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", "adapters", "list"],
            cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        seconds.append(time.monotonic() - started)
    return statistics.median(seconds)


def describe(spent: list[float], listed: dict[int, float], command: str) -> str:
    """The results as a Markdown page."""
    first, last = spent[1 : 1 + WINDOW], spent[-WINDOW:]
    return "\n".join(
        [
            "# Many versions",
            "",
            f"`{command}`",
            "",
            f"Python {platform.python_version()}, mlflow {importlib.metadata.version('mlflow')} "
            f"on SQLite; {os.cpu_count()} CPU cores, {time.strftime('%Y-%m-%d')}.",
            "",
            f"- Registering a version: {statistics.median(first):.3f} CPU-seconds for versions 2 "
            f"to {WINDOW + 1} (median), {statistics.median(last):.3f} for the last {WINDOW} of "
            f"{len(spent)}; the first, which creates the database, {spent[0]:.2f}.",
            *(
                f"- `lorchestra adapters list` with {count} versions: {seconds:.2f} s."
                for count, seconds in listed.items()
            ),
            "",
        ]
    )


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--versions", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/registry_load.md"))
    arguments = parser.parse_args()
    listed: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "runs").mkdir()
        spent = register(folder, arguments.versions)
        listed[arguments.versions] = list_versions(folder)
    page = describe(spent, listed, f"python {shlex.join(sys.argv)}")
    arguments.out.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
