"""`lorchestra cancel`, `stop` and `resume` of a submitted sweep.

The driver is told by a ConfigMap that its pod mounts: a submitter needs neither `pods/exec`, which
would show the pod's secrets, nor the keys of the bucket. The kubelet brings a change into the pod
within about a minute. Each request is a key of its own with a field manager of its own, so that
two requests never undo each other.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from orchestrator.cluster.api import Kube, Manifest
from orchestrator.cluster.rendering import requests_name, require_job_name
from orchestrator.cluster.state import CANCELLED, JobState, read_job
from orchestrator.cluster.submitting import MANAGER, await_deletion
from orchestrator.errors import ClusterError, SweepSpecError
from orchestrator.wording import refusal

_KEPT = "labels", "annotations"
_OF_KUBECTL = "kubectl.kubernetes.io/last-applied-configuration"


def find_job(kube: Kube, name: str) -> Manifest:
    """The RayJob of a sweep.

    Raises:
        SweepSpecError: There is none of that name.
        ClusterError: The cluster refuses, or does not answer.
    """
    require_job_name("NAME", name)
    kube.require_rayjobs()
    found = kube.get("RayJob", name)
    if found is None:
        raise SweepSpecError(
            refusal(
                "NAME",
                name,
                f"a sweep with a RayJob in namespace {kube.namespace}; `kubectl -n "
                f"{kube.namespace} get rayjobs` lists them",
                "Submit the sweep: it continues if its storage holds it.",
                flaw="which has none",
            )
        )
    return found


def cancel_job(kube: Kube, name: str) -> str:
    """End a sweep: its driver ends at its next step, and no attempt follows.

    A cancelled driver ends with exit code 1, which KubeRay counts as a failed attempt. So
    `backoffLimit` becomes 0 first: KubeRay compares it with the failed attempts when one ends.

    Returns:
        A sentence for the user.

    Raises:
        SweepSpecError: There is no such sweep, or it has ended.
        ClusterError: The cluster refuses, or does not answer.
    """
    item = find_job(kube, name)
    job = read_job(item)
    _require_running(job, "cancel", "There is nothing to cancel.")
    if job.is_cancelled:
        return f"sweep {name} {job.describe()}"
    if not job.has_driver:
        kube.delete("RayJob", name)
        return (
            f"sweep {name} is cancelled; no driver was running it, and its RayJob is deleted. "
            "Submitting it again continues it"
        )
    _require_listening(item, kube.namespace)
    before = {CANCELLED: str(item["spec"].get("backoffLimit", 0))}
    change = {"metadata": {"annotations": before}, "spec": {"backoffLimit": 0}}
    kube.merge("RayJob", name, change, f"{MANAGER}-cancel")
    _post(kube, name, "cancel", None)
    return f"sweep {name} is told to end; its driver hears it within two minutes"


def stop_in_job(kube: Kube, name: str, trial: int) -> str:
    """End one trial of a sweep, and keep its adapter; returns a sentence for the user.

    Raises:
        SweepSpecError: There is no such sweep, or it has ended.
        ClusterError: The cluster refuses, or does not answer.
    """
    item = find_job(kube, name)
    _require_running(read_job(item), "stop", "There is nothing to stop.")
    _require_listening(item, kube.namespace)
    if trial < 0:
        allowed = "the number of a trial, from 0"
        raise SweepSpecError(refusal("stop", trial, allowed, "See lorchestra logs."))
    _post(kube, name, "stop", trial)
    return f"trial {trial} is told to stop; the driver hears it within two minutes"


def resume_job(kube: Kube, name: str) -> str:
    """Continue a sweep that has ended or is suspended, on a new cluster.

    Returns:
        A sentence for the user.

    Raises:
        SweepSpecError: There is no such sweep.
        ClusterError: It is being cancelled, or the cluster refuses or does not answer.
    """
    item = find_job(kube, name)
    job = read_job(item)
    if not job.is_ended:
        return _resume_running(kube, job)
    if job.is_completed and not job.is_cancelled:
        return f"sweep {name} has completed; nothing was started"
    again = _fresh(item)
    kube.delete("RayJob", name)
    await_deletion(kube, name)
    kube.delete("ConfigMap", requests_name(name))
    kube.apply("RayJob", again, MANAGER)
    return f"sweep {name} continues from {job.storage}: its RayJob was created again"


def _resume_running(kube: Kube, job: JobState) -> str:
    if job.is_cancelled:
        raise ClusterError(
            f"sweep {job.name}: {job.describe()}; allowed: a sweep that has ended. Wait for "
            "its end, and run the same command again."
        )
    if job.is_suspended and not job.queue:
        kube.merge("RayJob", job.name, {"spec": {"suspend": False}}, MANAGER)
        return f"sweep {job.name} is no longer suspended"
    return f"sweep {job.name} has not ended: {job.describe()}; nothing was started"


def _require_running(job: JobState, command: str, remedy: str) -> None:
    if job.is_ended:
        raise SweepSpecError(
            refusal(
                command,
                job.name,
                "a sweep without an end",
                remedy,
                flaw=f"which has ended: {job.describe()}",
            )
        )


def _require_listening(item: Manifest, namespace: str) -> None:
    """Refuse a RayJob whose driver reads no requests.

    Raises:
        ClusterError: Its head does not mount their ConfigMap.
    """
    name = item["metadata"]["name"]
    head = item["spec"].get("rayClusterSpec", {}).get("headGroupSpec", {}).get("template", {})
    volumes = head.get("spec", {}).get("volumes", ())
    if not any(one.get("configMap", {}).get("name") == requests_name(name) for one in volumes):
        raise ClusterError(
            f"RayJob {name}: its head does not mount ConfigMap {requests_name(name)}; allowed: a "
            "RayJob made from k8s/base/sweep of this version. End the sweep with kubectl -n "
            f"{namespace} delete rayjob {name}."
        )


def _post(kube: Kube, name: str, kind: Literal["cancel", "stop"], trial: int | None) -> None:
    """Leave a request for the driver."""
    key = kind if trial is None else f"{kind}-{trial}"
    request = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": requests_name(name), "namespace": kube.namespace},
        "data": {f"{key}.json": json.dumps({"kind": kind, "trial": trial})},
    }
    kube.apply("ConfigMap", request, f"{MANAGER}-{key}")


def _fresh(item: Manifest) -> Manifest:
    """The RayJob as it was submitted: without what the server, a queue or a cancel wrote."""
    metadata = item["metadata"]
    kept: dict[str, Any] = {key: dict(metadata[key]) for key in _KEPT if metadata.get(key)}
    spec = {key: value for key, value in item["spec"].items() if key not in ("suspend", "jobId")}
    annotations = kept.get("annotations", {})
    annotations.pop(_OF_KUBECTL, None)
    if CANCELLED in annotations:
        spec["backoffLimit"] = int(annotations.pop(CANCELLED))
    names = {"name": metadata["name"], "namespace": metadata["namespace"]}
    return {
        "apiVersion": item["apiVersion"],
        "kind": item["kind"],
        "metadata": {**names, **{key: value for key, value in kept.items() if value}},
        "spec": spec,
    }
