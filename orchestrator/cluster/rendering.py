"""The objects of a submitted sweep: a ConfigMap with its file and a RayJob that runs it."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from orchestrator.cluster.sweep_file import SweepFile
from orchestrator.errors import SweepSpecError
from orchestrator.wording import refusal

Manifest = dict[str, Any]

MAX_NAME = 47
"""Characters of a RayJob's name: KubeRay makes names of pods and services from it."""

FILE_KEY = "sweep.yaml"
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/[\w./=-]+)?")
_IMAGE = re.compile(r"[\w.-]+(:\d+)?(/[\w.-]+)*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?")
_EXAMPLES = ("example.com/", "example-bucket")
_TIME_FOR_FINALS_S = 6 * 3600


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """The objects of a sweep.

    Attributes:
        name: The sweep's name, and the RayJob's.
        storage: The sweep's storage.
        file: ConfigMap with the sweep file.
        job: The RayJob.
    """

    name: str
    storage: str
    file: Manifest
    job: Manifest

    def to_yaml(self) -> str:
        """Both objects as YAML documents."""
        # Through JSON: what a template shares becomes text, not YAML's anchors.
        plain = [json.loads(json.dumps(one)) for one in (self.file, self.job)]
        return yaml.dump_all(plain, Dumper=_Dumper, sort_keys=False, width=110)


class _Dumper(yaml.SafeDumper):
    """Dumper that writes text of several lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    )


_Dumper.add_representer(str, _text)


def file_name(sweep: str) -> str:
    """Name of the ConfigMap with a sweep's file."""
    return f"sweep-{sweep}"


def requests_name(sweep: str) -> str:
    """Name of the ConfigMap with the requests to a sweep's driver."""
    return f"requests-{sweep}"


def require_job_name(where: str, name: str) -> None:
    """Refuse a sweep's name that cannot be a RayJob's.

    Raises:
        SweepSpecError: It is too long, or has other characters.
    """
    if len(name) <= MAX_NAME and _NAME.fullmatch(name):
        return
    near = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:MAX_NAME].rstrip("-")
    remedy = f"Use {near}." if near else "Choose a short lower-case name."
    flaw = f"of {len(name)} characters" if len(name) > MAX_NAME else ""
    allowed = f"1 to {MAX_NAME} of a-z, 0-9 and '-' on Kubernetes, starting with a letter"
    raise SweepSpecError(refusal(where, name, allowed, remedy, flaw=flaw))


def mounted_places(template: Manifest) -> tuple[str, ...]:
    """Folders of a RayJob's head that are volumes for all nodes."""
    head = template["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    shared = {one["name"] for one in head["volumes"] if "persistentVolumeClaim" in one}
    mounts = head["containers"][0].get("volumeMounts", ())
    return tuple(one["mountPath"] for one in mounts if one["name"] in shared)


def render(
    template: Manifest, sweep: SweepFile, namespace: str, sweeps: str | None, image: str | None
) -> Rendered:
    """The objects of a sweep.

    Args:
        template: A RayJob, from `load_template`.
        sweep: The sweep.
        namespace: The namespace.
        sweeps: Folder or bucket prefix that holds sweeps; the template's when not given.
        image: Image of all containers; the template's when not given.

    Raises:
        SweepSpecError: The name cannot be a RayJob's, or image or storage cannot work.
    """
    name = sweep.spec.name
    require_job_name("name", name)
    job = copy.deepcopy(template)
    metadata = {
        key: job["metadata"][key] for key in ("labels", "annotations") if key in job["metadata"]
    }
    job["metadata"] = {"name": name, "namespace": namespace, **metadata}
    job.pop("status", None)
    spec = job["spec"]
    storage = _set_storage(spec, name, sweeps, mounted_places(template))
    _set_config_maps(spec, name)
    _set_image(spec, image)
    limit, wall_clock_s = spec.get("activeDeadlineSeconds"), sweep.spec.budget.wall_clock_s
    if limit is not None and wall_clock_s is not None:
        # KubeRay's deadline ends everything without a report: the budget must come first.
        spec["activeDeadlineSeconds"] = max(limit, round(wall_clock_s) + _TIME_FOR_FINALS_S)
    file = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": file_name(name), "namespace": namespace},
        "immutable": True,
        "data": {FILE_KEY: sweep.text},
    }
    return Rendered(name=name, storage=storage, file=file, job=job)


def storage_of(job: Manifest) -> str:
    """The storage of a RayJob's sweep; empty if its entrypoint names none."""
    words = shlex.split(job["spec"].get("entrypoint", ""))
    return words[words.index("--storage") + 1] if "--storage" in words[:-1] else ""


def _set_storage(spec: Manifest, name: str, sweeps: str | None, places: tuple[str, ...]) -> str:
    """Change the entrypoint; returns the sweep's storage."""
    words = shlex.split(spec["entrypoint"])
    if "--storage" not in words[:-1]:
        allowed = "a RayJob whose entrypoint has --storage"
        raise SweepSpecError(
            refusal("--overlay", spec["entrypoint"], allowed, "Add it to the entrypoint.")
        )
    place = words.index("--storage") + 1
    folder = sweeps or words[place].rpartition("/")[0]
    mounted = [one for one in places if not one.startswith("/cache")]
    is_mounted = any(folder == one or folder.startswith(f"{one}/") for one in mounted)
    is_example = any(one in folder for one in _EXAMPLES)
    if is_example or not (is_mounted or _BUCKET.fullmatch(folder)):
        raise SweepSpecError(
            refusal(
                "--sweeps",
                folder,
                "s3://BUCKET/FOLDER, or a folder below a volume that the overlay mounts"
                + (f" ({', '.join(mounted)})" if mounted else ""),
                "Name the place that holds your sweeps.",
                flaw="the example of the overlay" if is_example and not sweeps else "",
            )
        )
    words[place] = f"{folder.rstrip('/')}/{name}"
    spec["entrypoint"] = shlex.join(words)
    return words[place]


def _set_config_maps(spec: Manifest, name: str) -> None:
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    names = {"sweep-file": file_name(name), "requests": requests_name(name)}
    for volume in head["volumes"]:
        if volume["name"] in names and "configMap" in volume:
            volume["configMap"]["name"] = names[volume["name"]]


def _set_image(spec: Manifest, image: str | None) -> None:
    containers = list(_containers(spec))
    if image is not None:
        for container in containers:
            container["image"] = image
    for container in containers:
        found = container["image"]
        is_example = any(one in found for one in _EXAMPLES)
        if is_example or _IMAGE.fullmatch(found) is None:
            raise SweepSpecError(
                refusal(
                    "--image",
                    found,
                    "an image that the cluster's nodes can pull, such as REGISTRY/lorchestra:TAG",
                    "Build one with `make image`, push it, and name it.",
                    flaw="the example of the overlay" if is_example and image is None else "",
                )
            )


def _containers(spec: Manifest) -> Iterator[Manifest]:
    ray = spec["rayClusterSpec"]
    for group in (ray["headGroupSpec"], *ray.get("workerGroupSpecs", ())):
        pod = group["template"]["spec"]
        yield from (*pod.get("initContainers", ()), *pod["containers"])
