"""What the cluster says of a sweep: its RayJob, its pods, its warnings."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.cluster.api import Kube
from orchestrator.cluster.rendering import storage_of
from orchestrator.wording import one_line, shorten

Manifest = Mapping[str, Any]

CANCELLED = "lorchestra.io/cancelled"
"""Annotation of a RayJob that `lorchestra cancel` ended: its backoffLimit before."""
QUEUE = "kueue.x-k8s.io/queue-name"

_ENDED = ("Complete", "Failed", "ValidationFailed")
_NEVER_PULLED = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_NOT_CONFIGURED = ("CreateContainerConfigError",)
_UNNOTICED_S = 60.0


@dataclass(frozen=True, kw_only=True)
class JobState:
    """The state of a RayJob.

    Attributes:
        name: Its name, which is the sweep's.
        deployment: KubeRay's `jobDeploymentStatus`; empty before KubeRay has looked at it.
        job: Ray's `jobStatus`; empty before the driver was submitted.
        reason: KubeRay's reason; empty without one.
        message: KubeRay's message.
        cluster: Name of the present attempt's RayCluster; empty without one.
        failed: Attempts that failed.
        attempts: Attempts allowed in all.
        queue: Kueue's queue; empty without one.
        is_suspended: Whether it waits for a queue, or for a person.
        is_cancelled: Whether `lorchestra cancel` ended it.
        age_s: Seconds since it was submitted.
        storage: The sweep's storage.
    """

    name: str
    deployment: str
    job: str
    reason: str
    message: str
    cluster: str
    failed: int
    attempts: int
    queue: str
    is_suspended: bool
    is_cancelled: bool
    age_s: float
    storage: str

    @property
    def is_ended(self) -> bool:
        """Whether no attempt comes any more."""
        return self.deployment in _ENDED

    @property
    def is_completed(self) -> bool:
        """Whether the driver ended with exit code 0."""
        return self.deployment == "Complete" and self.job in ("SUCCEEDED", "")

    @property
    def has_driver(self) -> bool:
        """Whether a driver runs, or is about to."""
        return self.deployment == "Running"

    def describe(self) -> str:
        """A sentence."""
        why = shorten(one_line(": ".join(filter(None, (self.reason, self.message)))), 400)
        told = f" ({why})" if why else ""
        if self.is_cancelled:
            return "cancelled" if self.is_ended else "is being cancelled: its driver ends soon"
        if self.is_suspended:
            return f"waits in the queue {self.queue}" if self.queue else "suspended"
        return {
            "": self._describe_new(),
            "Initializing": f"starts the cluster {self.cluster}".rstrip(),
            "Waiting": "waits for its driver to be submitted",
            "Running": f"its driver runs on the cluster {self.cluster}",
            "Retrying": f"attempt {self.failed} of {self.attempts} failed{told}; a new cluster "
            "continues the sweep",
            "Complete": "completed" if self.is_completed else f"ended as {self.job}",
            "Failed": f"failed{told}",
            "ValidationFailed": f"KubeRay refuses it{told}",
        }.get(self.deployment, self.deployment + told)

    def _describe_new(self) -> str:
        if self.age_s < _UNNOTICED_S:
            return "submitted; KubeRay has not begun with it"
        return (
            f"submitted {round(self.age_s)} s ago, and KubeRay's operator has not looked at it: "
            "it does not run, or watches other namespaces (kubectl get pods -A | grep kuberay)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "sweep": self.name,
            "state": self.describe(),
            "is_ended": self.is_ended,
            "is_completed": self.is_completed,
            "is_cancelled": self.is_cancelled,
            "deployment_status": self.deployment,
            "job_status": self.job,
            "reason": self.reason,
            "message": self.message,
            "cluster": self.cluster,
            "failed_attempts": self.failed,
            "allowed_attempts": self.attempts,
            "queue": self.queue,
            "storage": self.storage,
        }


@dataclass(frozen=True, kw_only=True)
class PodState:
    """The state of a pod.

    Attributes:
        name: The pod.
        group: Its group: `head`, or the name of a worker group.
        state: Its phase, with the reason of a container that waits.
        fault: What a person has to change, as a sentence; empty if nothing is known.
    """

    name: str
    group: str
    state: str
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a sweep in the cluster.

    Attributes:
        job: Its RayJob.
        pods: Its pods.
        warnings: Kubernetes' and KubeRay's warnings, as sentences; oldest first.
    """

    job: JobState
    pods: tuple[PodState, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def head(self) -> str:
        """Name of the head's pod; empty without one."""
        return next((pod.name for pod in self.pods if pod.group == "head"), "")

    @property
    def fault(self) -> str:
        """What a person has to change before the sweep can go on; empty if nothing is known."""
        return next((pod.fault for pod in self.pods if pod.fault), "")


def read_job(item: Manifest) -> JobState:
    """The state in a RayJob."""
    metadata, spec, status = item["metadata"], item["spec"], item.get("status") or {}
    return JobState(
        name=metadata["name"],
        deployment=status.get("jobDeploymentStatus", ""),
        job=status.get("jobStatus", ""),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        cluster=status.get("rayClusterName", ""),
        failed=int(status.get("failed") or 0),
        attempts=int(spec.get("backoffLimit") or 0) + 1,
        queue=(metadata.get("labels") or {}).get(QUEUE, ""),
        is_suspended=bool(spec.get("suspend")),
        is_cancelled=CANCELLED in (metadata.get("annotations") or {}),
        age_s=_age_s(metadata.get("creationTimestamp")),
        storage=storage_of(dict(item)),
    )


def look_around(kube: Kube, job: JobState) -> Look:
    """A look at the pods and warnings of a sweep.

    Raises:
        Refused: The server refuses.
        Unreachable: The server does not answer.
    """
    items: list[Manifest] = []
    if job.cluster:
        items = [*kube.list("Pod", labelSelector=f"ray.io/cluster={job.cluster}")]
    events = kube.list("Event", fieldSelector="type=Warning", limit="500")
    events.sort(key=_time_of)
    pods = tuple(map(_read_pod, items))
    names = {job.name, job.cluster, *(pod.name for pod in pods)} - {""}
    told = [text for event in events for text in _warning(event, names)]
    return Look(job=job, pods=pods, warnings=tuple(dict.fromkeys(told)))


def _read_pod(item: Manifest) -> PodState:
    labels = item["metadata"].get("labels") or {}
    group = "head" if labels.get("ray.io/node-type") == "head" else labels.get("ray.io/group", "")
    status = item.get("status") or {}
    waiting = list(_waiting(status))
    state = status.get("phase", "Pending")
    if waiting:
        state = f"{state}, {waiting[0][1]}"
    else:
        state += next((f", {why}" for why in _unscheduled(status)), "")
    name = item["metadata"]["name"]
    return PodState(name=name, group=group, state=state, fault=_fault(name, waiting, item))


def _waiting(status: Manifest) -> Iterator[tuple[str, str, str]]:
    """Containers that wait for more than their turn: name, reason, message."""
    for one in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        found = (one.get("state") or {}).get("waiting")
        if found and found.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            yield one["name"], found["reason"], found.get("message", "")


def _unscheduled(status: Manifest) -> Iterator[str]:
    for one in status.get("conditions", ()):
        if one.get("type") == "PodScheduled" and one.get("reason") == "Unschedulable":
            yield shorten(one_line(f"no node fits ({one.get('message', '')})"), 300)


def _fault(pod: str, waiting: Sequence[tuple[str, str, str]], item: Manifest) -> str:
    for container, reason, message in waiting:
        why = shorten(one_line(message), 300)
        if reason in _NEVER_PULLED:
            image = _image_of(item, container)
            return (
                f"image: pod {pod} cannot pull {image} ({reason}: {why}); allowed: an image that "
                "is in its registry and that the nodes may pull. Push it, or submit the sweep "
                "with another --image after lorchestra cancel"
            )
        if reason in _NOT_CONFIGURED:
            return (
                f"pod {pod}: container {container} lacks what it is configured with ({why}); "
                "allowed: the Secrets and ConfigMaps of the platform. Apply k8s/secrets and the "
                "platform; the pod then starts by itself"
            )
    return ""


def _image_of(item: Manifest, container: str) -> str:
    spec = item.get("spec") or {}
    found = [*spec.get("initContainers", ()), *spec.get("containers", ())]
    return next((str(one.get("image")) for one in found if one.get("name") == container), "")


def _warning(event: Manifest, names: set[str]) -> Iterator[str]:
    about = (event.get("involvedObject") or {}).get("name", "")
    if about in names:
        text = shorten(one_line(re.sub(r"\s+", " ", event.get("message", ""))), 400)
        yield f"{about}: {event.get('reason', '')}: {text}"


def _time_of(event: Manifest) -> str:
    metadata = event.get("metadata") or {}
    times = (event.get("lastTimestamp"), event.get("eventTime"), metadata.get("creationTimestamp"))
    return next((str(one) for one in times if one), "")


def _age_s(written: str | None) -> float:
    if not written:
        return 0.0
    made = datetime.fromisoformat(written.replace("Z", "+00:00"))
    return max(0.0, time.time() - made.astimezone(UTC).timestamp())
