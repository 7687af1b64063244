"""`lorchestra doctor`: what this installation and machine can do, each finding with a remedy.

Slow parts run at the same time. Ray and a 4-bit layer of bitsandbytes are tried in processes of
their own, whose crash is a finding.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import SweepError
from orchestrator.journal.sweep_storage import require_cache
from orchestrator.preflight.machine import Machine, free_disk, look_at_machine
from orchestrator.preflight.places import require_usable
from orchestrator.wording import format_size, last_line, one_line
from trainables.base.origin import cache_folder
from trainables.base.presence import hub_fault

State = Literal["ok", "warn", "fail"]

_PATIENCE_S = 60.0
"""Time limit for a process that imports Ray or torch: a busy machine takes long."""
_LITTLE_DISK, _LITTLE_MEMORY = 5 * 10**9, 4 * 10**9

_LAYER = """
import torch, bitsandbytes as bnb
device = "cuda" if torch.cuda.is_available() else "cpu"
layer = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
layer.weight = bnb.nn.Params4bit(torch.randn(64, 64), requires_grad=False, quant_type="nf4")
layer = layer.to(device).train()
x = torch.ones(2, 64, device=device, requires_grad=True)
layer(x).sum().backward()
assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0, "no gradient"
print(f"{device} {torch.__version__} {torch.cuda.device_count()}")
"""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: The thing, in a few words.
        state: `fail` for a part that sweeps need; `warn` for one that some sweeps need.
        said: What was found.
        remedy: What to do; empty if nothing is to be done.
    """

    name: str
    state: State
    said: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain values, ready for JSON."""
        return asdict(self)


def examine(runs: Path) -> list[Finding]:
    """Findings on versions, machine, storage, MLflow, Ray, hub and 4-bit layers.

    Args:
        runs: Folder of the sweeps.
    """
    machine = look_at_machine()
    with ThreadPoolExecutor(4) as pool:
        slow = [
            pool.submit(look)
            for look in (
                lambda: _four_bit(machine),
                _ray,
                lambda: _mlflow(runs),
                _hub,
            )
        ]
        quick = [
            _python(),
            _packages(importlib.metadata.requires("lorchestra") or []),
            *_machine(machine),
            _disk(runs),
            _place(
                "storage", lambda: require_usable(runs / "any"), f"{runs}: files can be locked"
            ),
            _place("cache of bases", require_cache, f"{cache_folder()} can be written"),
        ]
        return [*quick, *(one.result() for one in slow)]


def _python() -> Finding:
    version = platform.python_version()
    is_known = sys.version_info >= (3, 11)
    remedy = "" if is_known else "Install Python 3.11 or newer."
    return Finding(name="Python", state="ok" if is_known else "fail", said=version, remedy=remedy)


def _packages(required: Sequence[str]) -> Finding:
    """Installed versions against those that the package requires.

    Args:
        required: Requirements as in the metadata of a package.
    """
    from packaging.requirements import Requirement

    wrong = []
    parsed = [Requirement(one) for one in required]
    needed = [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})]
    for one in needed:
        try:
            have = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append((one, f"{one.name} is missing"))
            continue
        if not one.specifier.contains(have, prereleases=True):
            wrong.append((one, f"{one.name} is {have}, tested with {one.specifier}"))
    if not wrong:
        return Finding(
            name="packages", state="ok", said=f"{len(needed)} packages as lorchestra needs them"
        )
    wanted = " ".join(f"'{one.name}{_extras(one.extras)}{one.specifier}'" for one, _ in wrong)
    return Finding(
        name="packages",
        state="fail",
        said="; ".join(said for _, said in wrong),
        remedy=f"Run: pip install {wanted}",
    )


def _extras(names: set[str]) -> str:
    return f"[{','.join(sorted(names))}]" if names else ""


def _machine(machine: Machine) -> Iterator[Finding]:
    kind = "bfloat16" if machine.has_bfloat16 else "float32, as it does not multiply bfloat16"
    yield Finding(
        name="CPU",
        state="ok",
        said=f"{machine.cores} cores; trains in {kind} (compute_dtype auto)",
    )
    if machine.gpus:
        said = "; ".join(
            f"{gpu.name}, {format_size(gpu.memory)}, driver {gpu.driver}" for gpu in machine.gpus
        )
        yield Finding(name="GPU", state="ok", said=said)
    else:
        yield Finding(
            name="GPU",
            state="warn",
            said="none that nvidia-smi shows: trials train on the CPU",
            remedy="A CPU is enough for bases of some hundred million weights. For larger ones "
            "install NVIDIA's driver, or name a cluster with GPUs in RAY_ADDRESS.",
        )
    is_enough = machine.memory >= _LITTLE_MEMORY
    yield Finding(
        name="memory",
        state="ok" if is_enough else "warn",
        said=f"{format_size(machine.memory)} free",
        remedy="" if is_enough else "Close other programs: the demo needs about 4 GB.",
    )


def _disk(runs: Path) -> Finding:
    free = free_disk(runs)
    is_enough = free >= _LITTLE_DISK
    return Finding(
        name="disk",
        state="ok" if is_enough else "warn",
        said=f"{format_size(free)} free for {runs}",
        remedy="" if is_enough else "Free some space: lorchestra prune FOLDER lists what can go.",
    )


def _place(name: str, check: Callable[[], None], said: str) -> Finding:
    try:
        check()
    except SweepError as error:
        return Finding(name=name, state="fail", said=str(error))
    return Finding(name=name, state="ok", said=said)


def _mlflow(runs: Path) -> Finding:
    """MLflow's server or database, with its schema; a missing database is made by a sweep."""
    from registry.errors import TrackingError
    from registry.tracking.access import reach
    from registry.tracking.connection import tracking_uri_for

    try:
        return Finding(name="MLflow", state="ok", said=reach(tracking_uri_for(runs)[0]))
    except TrackingError as error:
        return Finding(name="MLflow", state="fail", said=str(error))


def _ray() -> Finding:
    """Ray as it will be used: the named cluster answers, or a local Ray could start."""
    named = os.environ.get("RAY_ADDRESS", "").strip()
    code = (
        "import ray; from orchestrator.resources.reachable import check_ray; check_ray(); "
        "print(ray.__version__)"
    )
    done = _run_python(code)
    where = f"the cluster at {named}" if named not in ("", "local") else "a local Ray is started"
    if isinstance(done, str):
        return Finding(name="Ray", state="fail", said=done, remedy="Run the command again.")
    if done.returncode:
        said = last_line(done.stderr).removeprefix("orchestrator.errors.ClusterError: ")
        remedy = "" if named else "Reinstall it: pip install --force-reinstall 'ray[tune,train]'"
        return Finding(name="Ray", state="fail", said=said, remedy=remedy)
    return Finding(name="Ray", state="ok", said=f"{done.stdout.split()[-1]}; {where}")


def _hub() -> Finding:
    fault = hub_fault()
    if not fault:
        return Finding(name="model hub", state="ok", said="it accepts connections")
    return Finding(
        name="model hub",
        state="warn",
        said=f"offline ({fault}): bases come from its cache, folders, files and packages",
        remedy="For bases of the hub check the network, HF_ENDPOINT and HTTPS_PROXY.",
    )


def _four_bit(machine: Machine) -> Finding:
    """A 4-bit layer computes and gives a gradient, on the device that trials would use."""
    name = "4-bit layers"
    done = _run_python(_LAYER)
    if isinstance(done, str):
        return Finding(name=name, state="fail", said=done, remedy="Run the command again.")
    if done.returncode:
        return Finding(
            name=name,
            state="fail",
            said=f"bitsandbytes does not work: {last_line(done.stderr) or 'it crashed'}",
            remedy="Install bitsandbytes and torch as pinned, for this machine's CUDA.",
        )
    device, torch_version, seen = done.stdout.split()[-3:]
    if machine.gpus and device == "cpu":
        return Finding(
            name=name,
            state="fail",
            said=f"they work on the CPU, but torch {torch_version} sees none of "
            f"{len(machine.gpus)} GPUs",
            remedy="Install a build of torch with CUDA for this driver, or hide the GPUs: "
            "CUDA_VISIBLE_DEVICES=''",
        )
    where = "the CPU" if device == "cpu" else f"{seen} GPUs"
    return Finding(
        name=name, state="ok", said=f"nf4 computes and learns on {where} (torch {torch_version})"
    )


def _run_python(code: str) -> subprocess.CompletedProcess[str] | str:
    """The finished process; a sentence if it took too long."""
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    try:
        return subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_PATIENCE_S:g} s"


def as_table(findings: Sequence[Finding]) -> Iterator[str]:
    """A line for each finding, and a line with its remedy where there is one."""
    width = max(len(one.name) for one in findings)
    for one in findings:
        yield f"{one.state:4}  {one.name:{width}}  {one_line(one.said)}"
        if one.remedy:
            yield f"{'':4}  {'':{width}}  {one.remedy}"


def to_values(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as plain values for JSON."""
    return {
        "ok": all(one.state != "fail" for one in findings),
        "findings": [one.to_dict() for one in findings],
    }
