"""The sweeps that chaos disturbs, and what they run on: rows, an MLflow server, a Ray, a disk."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from chaos_checks import Traces, read_traces

sys.path.insert(1, str(Path(__file__).parents[1]))

from orchestrator.journal.events import LogEntry
from orchestrator.journal.log import read_events
from registry.tracking.server import serve_ui
from tests.support import tiny
from tests.support.servers import Proxy, proxy

EVERY = 8
SERVER_PAUSE_S = 3.0
DISK_MB = 48


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of sweep.

    Attributes:
        changes: Sections that replace those of the plain sweep.
        is_exact: Its result follows from the spec, bit for bit: one seat, no clock in it.
    """

    changes: Mapping[str, Any]
    is_exact: bool


SHORT = Kind(
    changes={
        "budget": {"trials": 2},
        "finals": {"top": 1, "seeds": 1, "forms": ["trained"]},
    },
    is_exact=True,
)
"""The plain sweep with two trials, one of them repeated."""

KINDS = {
    "short": SHORT,
    "random": Kind(changes={}, is_exact=True),
    "tpe": Kind(changes={"search": {"algorithm": "tpe"}}, is_exact=True),
    "seats": Kind(changes={"search": {"algorithm": "tpe"}, "hosts": {"seats": 3}}, is_exact=False),
    "pbt": Kind(
        changes={
            "schedule": {"algorithm": "pbt", "grace_steps": EVERY},
            "hosts": {"seats": 2},
        },
        is_exact=False,
    ),
}  # fmt: skip


def sweep_values(inputs: Path, model: str, kind: str = "random") -> dict[str, object]:
    """The sweep as plain values: 5 trials, two of them repeated, one registered."""
    values: dict[str, Any] = {
        "name": "chaos",
        "seed": 3,
        "base": {
            "model": str(inputs / "base"), "quantization": "none", "compute_dtype": "float32",
        },
        "data": {
            "train": str(inputs / "rows.jsonl"), "validation_fraction": 0.2,
            "test_fraction": 0.2, "max_tokens": 32,
        },
        "optim": {"steps": 5 * EVERY, "batch_size": 4},
        "eval": {"every": EVERY},
        "space": {
            "lora.rank": {"choice": [2, 4, 8]},
            "optim.learning_rate": {"log_uniform": [2e-3, 2e-2]},
        },
        "search": {"algorithm": "random"},
        "schedule": {"algorithm": "asha", "grace_steps": 2 * EVERY},
        "budget": {"trials": 5},
        "hosts": {"seats": 1},
        "finals": {"top": 2, "seeds": 1, "forms": ["trained"]},
        "register": {"name": model, "top": 1},
    }  # fmt: skip
    return values | KINDS[kind].changes


def build_inputs(folder: Path) -> Path:
    """A folder with the tests' tiny base and rows that it can learn."""
    tiny.build_tiny_llama().save_pretrained(folder / "base")
    tiny.build_byte_tokenizer().save_pretrained(folder / "base")
    rows = [
        {"prompt": f"{'abcdefgh'[i % 8] * (3 + i % 5)} ->", "completion": f" {'xyzw'[i % 4]}"}
        for i in range(64)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


# ------------------------------------------------------------------------------------ MLflow


class Server:
    """An MLflow server on SQLite behind a proxy; it can be killed and comes back.

    Attributes:
        uri: Address of the proxy.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._database = folder / "mlflow.db"
        self._return: threading.Timer | None = None
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._port = listener.getsockname()[1]
        self._stack = ExitStack()
        self._proxy: Proxy = self._stack.enter_context(proxy(self._port))
        self.uri = self._proxy.address
        self._start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.await_up()
        self._serving.__exit__(None, None, None)
        self._stack.close()

    def kill(self) -> None:
        """Kill it with all its processes; it is started again a little later."""
        self.await_up()
        kill_family(psutil.Process(self._process.pid))
        self._serving.__exit__(None, None, None)
        self._return = threading.Timer(SERVER_PAUSE_S, self._start)
        self._return.start()

    def fail(self) -> None:
        """Answer 500 to each request for a while."""
        self._proxy.weather.kind = "error"
        self._return = threading.Timer(SERVER_PAUSE_S, self._recover)
        self._return.start()

    def await_up(self) -> None:
        """Wait until it has come back."""
        if self._return is not None:
            self._return.join()

    def _recover(self) -> None:
        self._proxy.weather.kind = "fair"

    def _start(self) -> None:
        self._serving = serve_ui(self._database, self._port)
        self._process = self._serving.__enter__()


# --------------------------------------------------------------------------------------- Ray


THREE_NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(num_cpus=2)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@contextmanager
def shared_ray() -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """A Ray of three nodes that outlives drivers: its process, and variables that lead there."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {name: v for name, v in os.environ.items() if not name.startswith("RAY_")}
    cluster = psutil.Popen(
        [sys.executable, "-c", THREE_NODES], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=environment | token,
    )  # fmt: skip
    try:
        lines = iter(cluster.stdout.readline, "")
        address = next(line.strip() for line in lines if line[:1].isdigit())
        yield cluster, {"RAY_ADDRESS": address, **token}
    finally:
        cluster.stdin.close()
        with suppress(psutil.TimeoutExpired):
            cluster.wait(30)
        kill_family(cluster)


# -------------------------------------------------------------------------------------- disk


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of its own for a sweep; only root can mount one, others get a folder."""
    folder.mkdir(parents=True)
    if os.getuid() != 0:
        yield folder
        return
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "chaos", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


# ----------------------------------------------------------------------------------- a sweep


class Sweep:
    """A sweep's folder and the command that runs it.

    Args:
        folder: Holds the sweep file and `runs/`.
        inputs: Folder of `build_inputs`.
        model: Name of the registered adapter.
        tracking_uri: MLflow.
        kind: Key of `KINDS`.
        environment: More variables, such as the address of a Ray.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Path,
        model: str,
        tracking_uri: str,
        kind: str = "random",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.model, self.tracking_uri, self.kind = folder, model, tracking_uri, kind
        self.storage = folder / "runs" / "chaos"
        (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep_values(inputs, model, kind)))
        self._environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith("RAY_")},
            "MLFLOW_TRACKING_URI": tracking_uri,
            "LORCHESTRA_CACHE": str(inputs / "cache"),
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }

    def start(self, output: str = "output.txt") -> psutil.Popen:
        """Give the command; what it says is added to a file beside the folder."""
        with self.output(output).open("ab") as out:
            return psutil.Popen(
                [sys.executable, "-m", "orchestrator.cli", "run", "sweep.yaml"],
                cwd=self.folder, env=self._environment, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def output(self, name: str = "output.txt") -> Path:
        """File with the output; not on the sweep's disk, which may be full."""
        return self.folder.parent / f"{self.folder.name}.{name}"

    def events(self) -> list[LogEntry]:
        """The log so far."""
        return list(read_events(self.storage / "events.jsonl"))

    def is_told(self) -> bool:
        """Whether all is registered, and MLflow knows everything that it is told.

        The cursor stands behind the last event that MLflow is told; phases and usage are not.
        """
        events = self.events()
        cursor = self.storage / "delivered.json"
        delivered = json.loads(cursor.read_text())["events"] if cursor.is_file() else 0
        untold = {event.kind for event in events[delivered:]}
        return untold <= {"phase", "usage"} and any(event.kind == "promoted" for event in events)

    def traces(self) -> Traces:
        """What it left."""
        return read_traces(self.storage, self.tracking_uri, self.model)


def kill_family(parent: psutil.Process) -> None:
    """Kill a process and all below it at once."""
    with suppress(psutil.NoSuchProcess):
        family = [parent, *parent.children(recursive=True)]
        for process in family:
            kill(process)
        psutil.wait_procs(family, timeout=10)


def kill(process: psutil.Process) -> None:
    """Kill a process that may have ended by itself."""
    with suppress(psutil.NoSuchProcess):
        process.kill()
