"""The RayJobs that a submitted sweep is made from: those of k8s/overlays, or one of the user's.

The package carries the RayJobs as kustomize renders them, because an installed package has neither
the folder k8s nor kustomize. `python k8s/make_templates.py` writes them, and a test compares them
with the folder.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import SweepSpecError
from orchestrator.wording import last_line, refusal

Manifest = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """A sweep's folder in k8s/overlays.

    Attributes:
        folder: The folder below k8s/overlays.
        file: Name of the rendered RayJob in this package.
        gpu: The GPU of its trainers, as `lorchestra plan --gpu` names it; `None` without one.
    """

    folder: str
    file: str
    gpu: str | None = None


OVERLAYS: Mapping[str, Overlay] = {
    "local-cpu": Overlay(folder="local-cpu/sweep", file="local-cpu.yaml"),
    "gpu/l4": Overlay(folder="gpu/l4", file="gpu-l4.yaml", gpu="l4"),
    "gpu/a100": Overlay(folder="gpu/a100", file="gpu-a100.yaml", gpu="a100-40"),
    "gpu/h100": Overlay(folder="gpu/h100", file="gpu-h100.yaml", gpu="h100-80"),
    "kueue": Overlay(folder="kueue/sweep", file="kueue.yaml", gpu="l4"),
}
"""Overlays by the name that `--overlay` takes. An A100 counts as the smaller one of the two."""

DEFAULT_OVERLAY = "local-cpu"
_ALIASES = {"gpu": "gpu/l4"}
_OPTION = "--overlay"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, ten times as fast


def template_file(overlay: Overlay) -> Path:
    """The file of an overlay's RayJob in this package."""
    return Path(__file__).parent / "rayjobs" / overlay.file


def overlay_of(name: str) -> Overlay | None:
    """The packaged overlay of a name; `None` for a folder or file of the user's."""
    return OVERLAYS.get(_ALIASES.get(name, name))


def load_template(name: str) -> Manifest:
    """The RayJob of an overlay.

    Args:
        name: A name in `OVERLAYS`, or `gpu` for `gpu/l4`; a folder that kubectl renders; or a file
            with a RayJob.

    Raises:
        SweepSpecError: There is no such overlay, it cannot be rendered, or it has no RayJob.
    """
    overlay = overlay_of(name)
    if overlay is not None:
        return _only_rayjob(template_file(overlay).read_text(encoding="utf-8"), name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _only_rayjob(_rendered(path), name)
    if path.is_file():
        return _only_rayjob(path.read_text(encoding="utf-8"), name)
    allowed = f"{', '.join(OVERLAYS)}, gpu (which is gpu/l4), or a kustomize folder"
    raise SweepSpecError(refusal(_OPTION, name, allowed, "Name one of them."))


def _rendered(folder: Path) -> str:
    """What kubectl makes of a kustomize folder."""
    try:
        done = subprocess.run(
            ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise SweepSpecError(
            refusal(
                _OPTION,
                str(folder),
                f"a kustomize folder where kubectl is installed, or {', '.join(OVERLAYS)}",
                "Install kubectl, or give a file with the rendered RayJob.",
                flaw="and there is no kubectl",
            )
        ) from error
    if done.returncode:
        raise SweepSpecError(
            refusal(
                _OPTION,
                str(folder),
                "a folder that `kubectl kustomize` renders",
                "Correct the folder.",
                flaw=f"which kubectl refuses ({last_line(done.stderr)})",
            )
        )
    return done.stdout


def _only_rayjob(text: str, name: str) -> Manifest:
    """The one RayJob with a cluster of its own among YAML documents."""
    try:
        items = [one for one in yaml.load_all(text, Loader=_LOADER) if isinstance(one, dict)]
    except yaml.YAMLError as error:
        why = f"which is not YAML ({last_line(error)})"
        raise SweepSpecError(
            refusal(_OPTION, name, "YAML with one RayJob", "Correct the file.", flaw=why)
        ) from error
    jobs = [one for one in items if one.get("kind") == "RayJob" and _is_whole(one)]
    if len(jobs) != 1:
        raise SweepSpecError(
            refusal(
                _OPTION,
                name,
                "one RayJob whose head mounts a volume sweep-file, as k8s/base/sweep makes it",
                "Start from a copy of k8s/overlays/gpu/sweep.",
                flaw=f"which has {len(jobs)} such RayJobs",
            )
        )
    return jobs[0]


def _is_whole(job: Manifest) -> bool:
    try:
        pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        return "configMap" in volumes["sweep-file"] and "entrypoint" in job["spec"]
    except (LookupError, TypeError):
        return False
