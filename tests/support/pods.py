"""Ray pods of rendered manifests, on one machine without Kubernetes.

A pod is a process tree with its own network, processes and temporary folder: Linux namespaces,
joined by a bridge. Its address, environment, Ray parameters and CPU limit are those that KubeRay
gives to the container of its group, so `ray start` gets the command that KubeRay would write
(ray-operator/controllers/ray/common/pod.go). Killing a pod kills all its processes at once, as a
node that is gone does. Namespaces need root.

What is different from a cluster: one file system, so the paths of volumes are replaced by folders;
no kubelet, so probes and memory limits do nothing; no autoscaler: a test reads `unmet_demand` and
starts a pod itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from tests.support.manifests import UNITS

GCS_PORT = 6379
_START_S = 120.0
_OWN = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "VIRTUAL_ENV")


def can_make_namespaces() -> bool:
    """Whether this process may make network namespaces."""
    done = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"],
                          capture_output=True)  # fmt: skip
    return done.returncode == 0


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass
class Network:
    """A bridge that pods join, with the services of a platform by name.

    Attributes:
        name: Name of the bridge, at most 8 letters, unique on this machine.
        subnet: First three numbers of its addresses; the bridge is number 1.
        names: Address of each service name, as a cluster's DNS would give it.
    """

    name: str
    subnet: str
    names: dict[str, str] = field(default_factory=dict)
    _used: int = 1

    @property
    def address(self) -> str:
        """Address of this side of the bridge."""
        return f"{self.subnet}.1"

    def __enter__(self) -> Network:
        _ip("link", "add", self.name, "type", "bridge")
        _ip("addr", "add", f"{self.address}/24", "dev", self.name)
        _ip("link", "set", self.name, "up")
        return self

    def __exit__(self, *error: object) -> None:
        _ip("link", "delete", self.name)

    def take_address(self) -> str:
        """An address that no pod had before."""
        self._used += 1
        return f"{self.subnet}.{self._used}"

    def hosts_file(self) -> str:
        """Text of `/etc/hosts` in a pod."""
        lines = ["127.0.0.1 localhost", *(f"{self.names[name]} {name}" for name in self.names)]
        return "".join(f"{line}\n" for line in lines)


@contextlib.contextmanager
def forwarded(address: str, port: int, to_port: int) -> Iterator[None]:
    """Pass connections to an address of the bridge on to a port of loopback."""
    with _Forwarder((address, port), _Forwarding) as server:
        server.to_port = to_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


class _Forwarder(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    to_port = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A pod that was killed leaves its connections as they are."""


class _Forwarding(socketserver.BaseRequestHandler):
    server: _Forwarder

    def handle(self) -> None:
        """Copy bytes both ways until one side ends."""
        near = self.request
        with socket.create_connection(("127.0.0.1", self.server.to_port)) as far:
            other = {near: far, far: near}
            while True:
                for one in select.select([near, far], [], [], 60)[0]:
                    content = one.recv(65536)
                    if not content:
                        return
                    other[one].sendall(content)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a cluster gives to its pods.

    Attributes:
        network: The network.
        folder: Where pods keep their files.
        places: Folder of this machine for each mounted path, such as `/cache`.
        values: Data of ConfigMaps and Secrets by name, as text.
        token: Ray's token.
    """

    network: Network
    folder: Path
    places: Mapping[str, Path]
    values: Mapping[str, Mapping[str, str]]
    token: str

    def placed(self, text: str) -> str:
        """Text in which mounted paths are those of this machine."""
        for path, folder in self.places.items():
            text = text.replace(path, str(folder))
        return text

    def environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        """Variables of a container: those it names, and what KubeRay adds for the token.

        Raises:
            KeyError: A ConfigMap or Secret that is not optional is missing.
        """
        found = {name: os.environ[name] for name in _OWN if name in os.environ}
        found["PATH"] = f"{Path(sys.executable).parent}:{found.get('PATH', os.defpath)}"
        for source in container.get("envFrom", ()):
            (reference,) = source.values()
            found |= self.values[reference["name"]]
        for entry in container.get("env", ()):
            value = entry.get("value")
            if value is None:
                reference = entry["valueFrom"]["secretKeyRef"]
                secret = self.values.get(reference["name"], {})
                if reference.get("optional") and reference["key"] not in secret:
                    continue
                value = secret[reference["key"]]
            found[entry["name"]] = self.placed(value)
        return found | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}


class Pod:
    """The Ray container of a group, running until it is killed.

    Attributes:
        name: Name of the pod and its network namespace.
        address: Its IP address.
    """

    def __init__(
        self, name: str, group: Mapping[str, Any], around: Surroundings, head: Pod | None = None
    ) -> None:
        """Start `ray start` for a group; for the head group when `head` is not given."""
        self.name, self._around = name, around
        self.address = around.network.take_address()
        self._container = group["template"]["spec"]["containers"][0]
        self._environment = around.environment(self._container)
        folder = around.folder / name
        Path("/tmp/ray").mkdir(exist_ok=True)  # where each pod has a folder of its own
        for part in ("ray", "spill"):
            (folder / part).mkdir(parents=True)
        (folder / "hosts").write_text(around.network.hosts_file())
        self.log = folder / "ray.log"
        self._plug_in()
        command = shlex.join(self._ray_start(group, folder, head))
        inside = (
            f"mount --bind {folder / 'ray'} /tmp/ray && mount --bind {folder / 'hosts'} /etc/hosts"
            f" && ip link set lo up && exec {command}"
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", name, "unshare", "--mount", "--pid", "--fork",
                 "--kill-child", "--mount-proc", "bash", "-c", inside],
                env=self._environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder,
                start_new_session=True,
            )  # fmt: skip

    def _plug_in(self) -> None:
        network, inner = self._around.network, f"{self.name[-11:]}-in"
        _ip("netns", "add", self.name)
        _ip("link", "add", self.name[-14:], "type", "veth", "peer", "name", inner)
        _ip("link", "set", self.name[-14:], "master", network.name, "up")
        _ip("link", "set", inner, "netns", self.name)
        inside = ("netns", "exec", self.name, "ip")
        _ip(*inside, "link", "set", inner, "name", "eth0")
        _ip(*inside, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _ip(*inside, "link", "set", "eth0", "up")
        _ip(*inside, "route", "add", "default", "via", network.address)

    def _ray_start(self, group: Mapping[str, Any], folder: Path, head: Pod | None) -> list[str]:
        limits = self._container["resources"]["limits"]
        parameters = {
            "num-cpus": str(max(1, int(quantity(limits["cpu"])))),
            "memory": str(int(quantity(limits["memory"]))),
            "node-ip-address": self.address,
            **group["rayStartParams"],
        }
        # Of the machine's memory, which the pods of a test share.
        parameters["object-store-memory"] = str(100 * 2**20)
        parameters["object-spilling-directory"] = str(folder / "spill")
        parameters.pop("dashboard-host", None)  # the dashboard is not installed
        if "nvidia.com/gpu" in limits:
            parameters["num-gpus"] = str(limits["nvidia.com/gpu"])
        resources = {name: float(value) for name, value in group.get("resources", {}).items()}
        if resources:
            parameters["resources"] = json.dumps(resources)
        place = (
            ["--head", f"--port={GCS_PORT}", "--include-dashboard=false"]
            if head is None
            else [f"--address={head.address}:{GCS_PORT}"]
        )
        options = [f"--{name}={value}" for name, value in parameters.items()]
        ray = str(Path(sys.executable).with_name("ray"))
        return [ray, "start", *place, *options, "--block", "--disable-usage-stats"]

    def start(self, command: str, log: Path) -> subprocess.Popen[bytes]:
        """Run a command beside the container, in its namespaces, as a sidecar would."""
        with log.open("ab") as out:
            return subprocess.Popen(
                ["nsenter", f"--target={self._first()}", "--net", "--mount", "--pid", "bash",
                 "-c", f"exec {self._around.placed(command)}"],
                env={**self._environment, "RAY_ADDRESS": f"{self.address}:{GCS_PORT}"},
                stdout=out, stderr=subprocess.STDOUT, cwd=self._around.folder / self.name,
                start_new_session=True,
            )  # fmt: skip

    def await_ready(self) -> None:
        """Wait until Ray runs.

        Raises:
            RuntimeError: It ended, or takes too long.
        """
        deadline = time.monotonic() + _START_S
        while b"Ray runtime started" not in self.log.read_bytes():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"pod {self.name} did not come up: {said}")
            time.sleep(0.2)

    def kill(self) -> None:
        """End all processes of the pod at once and unplug its network."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._first(), signal.SIGKILL)  # its first process takes all with it
            self.process.wait(20)
            subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)

    def _first(self) -> int:
        """Process id of the first process inside, which `unshare` has forked."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        deadline = time.monotonic() + 10
        while not (found := children.read_text().split()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"pod {self.name} has no processes")
            time.sleep(0.05)
        return int(found[0])


def quantity(text: str | int) -> Fraction:
    """A Kubernetes quantity as a number, such as 2000m or 6Gi."""
    value = str(text)
    unit = next((one for one in ("Gi", "Mi", "m") if value.endswith(one)), "")
    return Fraction(value.removesuffix(unit)) * UNITS[unit]


class RayCluster:
    """The pods of a RayJob's cluster.

    Attributes:
        head: The head pod.
        workers: Living and killed worker pods by name.
    """

    def __init__(self, name: str, spec: Mapping[str, Any], around: Surroundings) -> None:
        """Start the head, and of each group as many pods as its `minReplicas` says."""
        self.name, self._spec, self._around = name, spec, around
        self.workers: dict[str, Pod] = {}
        self.head = Pod(f"{name}-head", spec["headGroupSpec"], around)
        self.head.await_ready()
        for group in spec["workerGroupSpecs"]:
            for _ in range(group["minReplicas"]):
                self.add_worker(group["groupName"])

    def add_worker(self, group: str) -> Pod:
        """Start one more pod of a group."""
        (spec,) = (one for one in self._spec["workerGroupSpecs"] if one["groupName"] == group)
        name = f"{self.name}-{group[:3]}{len(self.workers)}"
        pod = self.workers[name] = Pod(name, spec, self._around, self.head)
        pod.await_ready()
        return pod

    def kill(self) -> None:
        """End all pods."""
        for pod in (*self.workers.values(), self.head):
            pod.kill()


def unmet_demand(head: Pod, around: Surroundings) -> Sequence[Mapping[str, float]]:
    """Resources that are asked for and that no node can give, as an autoscaler reads them."""
    code = (
        "import json; from ray.autoscaler.v2.sdk import get_cluster_status as ask; "
        f"d = ask('{head.address}:{GCS_PORT}').resource_demands; "
        "rows = [b.bundle for g in (d.ray_task_actor_demand, d.placement_group_demand, "
        "d.cluster_constraint_demand) for one in g for b in "
        "(one.bundles_by_count if hasattr(one, 'bundles_by_count') else [])]; "
        "print(json.dumps([dict(row) for row in rows]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": around.token},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"Ray's demand cannot be read: {done.stderr[-2000:]}")
    rows: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return rows
