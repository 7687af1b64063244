"""A submitted sweep from its submission to its end: states, pods, warnings, the driver's lines.

The RayJob is watched; between its changes the pods, the warnings and the driver's log are read.
A watch that ends, breaks or is too old (410) is begun again, and a server that is away for minutes
is waited for: the sweep does not need this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from orchestrator.cluster.api import Kube, Manifest
from orchestrator.cluster.driver_log import DriverLog
from orchestrator.cluster.faults import Refused, Unreachable, explain
from orchestrator.cluster.state import JobState, Look, look_around, read_job
from orchestrator.errors import ClusterError

Tell = Callable[[str], None]

PAUSE_S = 5.0
"""Seconds between two looks at pods and log while the RayJob does not change."""

MAX_OUTAGE_S = 600.0
"""Seconds after which a server that does not answer ends the command."""

_RETRY_S = 2.0
_GONE, _TOO_OLD = 404, 410


def follow_job(kube: Kube, name: str, tell: Tell, pause_s: float = PAUSE_S) -> JobState:
    """Tell what happens to a sweep until it ends.

    Args:
        kube: The namespace.
        name: The sweep.
        tell: Takes each line.
        pause_s: Seconds between two looks, at least 1.

    Returns:
        The last state.

    Raises:
        ClusterError: The sweep failed or its RayJob was deleted, or a person has to change
            something before it can go on, or the server was away for ten minutes.
    """
    teller = _Teller(tell=tell)
    for job in _states(kube, name, teller, pause_s):
        look = teller.look
        if look.fault and not job.is_ended:
            raise ClusterError(
                f"{look.fault}. The RayJob stays; `lorchestra status {name} --namespace "
                f"{kube.namespace} --follow` goes on watching it."
            )
        if job.is_ended:
            return _concluded(job, teller)
    raise AssertionError("states end with the job")


def _concluded(job: JobState, teller: _Teller) -> JobState:
    if job.is_completed or job.is_cancelled:
        return job
    said = teller.log.complaint
    driver = f"; its driver said: {said}" if said else ""
    warned = f"; the last warning: {teller.look.warnings[-1]}" if teller.look.warnings else ""
    raise ClusterError(
        f"sweep {job.name}: {job.describe()}{driver or warned}. Nothing recorded is lost: see to "
        "the cause, then run lorchestra resume."
    )


@dataclass
class _Teller:
    """Tells each thing once."""

    tell: Tell
    log: DriverLog = field(default_factory=DriverLog)
    look: Look = field(init=False)
    _state: str = ""
    _pods: dict[str, str] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    def told_job(self, job: JobState) -> None:
        """Tell a state of the RayJob if it is another one than before."""
        state = job.describe()
        key = f"{job.deployment}{job.failed}{job.is_suspended}{job.is_cancelled}{state[:20]}"
        if key != self._state:
            self._state = key
            self.tell(f"sweep {job.name}: {state}")

    def told_look(self, kube: Kube, job: JobState) -> None:
        """Tell what is new about pods, warnings and the driver."""
        self.look = look_around(kube, job)
        for pod in self.look.pods:
            if self._pods.get(pod.name) != pod.state:
                self._pods[pod.name] = pod.state
                self.tell(f"{pod.group or 'pod'} {pod.name}: {pod.state}")
        for warning in self.look.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self.tell(f"warning: {warning}")
        if self.look.head:
            for line in self.log.read_on(kube, self.look.head):
                self.tell(line)


def _states(kube: Kube, name: str, teller: _Teller, pause_s: float) -> Iterator[JobState]:
    """States of a RayJob, each after what else is new was told; the last one is its end."""
    item: Manifest | None = None
    outage = _Outage(kube)
    while True:
        try:
            if item is None:
                item = kube.read("RayJob", name)
            job = read_job(item)
            teller.told_job(job)
            teller.told_look(kube, job)
            outage.is_over()
            yield job
            item = _changed(kube, name, item, pause_s)
        except Refused as refused:
            answer = refused.answer
            if answer.status == _GONE:
                raise _deleted(kube, name) from refused
            item = None
            if answer.status != _TOO_OLD:
                if not answer.is_transient:
                    raise explain(answer, f"sweep {name}", kube.namespace) from refused
                outage.wait(Unreachable(str(answer)), answer.retry_after_s)
        except Unreachable as error:
            item = None
            outage.wait(error)


def _changed(kube: Kube, name: str, item: Manifest, pause_s: float) -> Manifest:
    """The RayJob after its next change, or as it is after a pause."""
    version = item["metadata"]["resourceVersion"]
    for event in kube.watch("RayJob", name, version, pause_s):
        found: Manifest = event["object"]
        if event["type"] == "DELETED":
            raise _deleted(kube, name)
        if event["type"] == "BOOKMARK":
            version = found["metadata"]["resourceVersion"]
            item = {**item, "metadata": {**item["metadata"], "resourceVersion": version}}
        else:
            return found
    return item


def _deleted(kube: Kube, name: str) -> ClusterError:
    return ClusterError(
        f"sweep {name}: its RayJob in namespace {kube.namespace} was deleted; allowed: a RayJob "
        "that is there until the sweep ends. Submit the sweep again: it continues from its "
        "storage."
    )


class _Outage:
    """The time that a server has not answered."""

    def __init__(self, kube: Kube) -> None:
        self._kube, self._since = kube, 0.0

    def is_over(self) -> None:
        """Forget the outage: the server answered."""
        self._since = 0.0

    def wait(self, error: Unreachable, wanted_s: float | None = None) -> None:
        """Wait before the next try.

        Raises:
            ClusterError: The server was away too long.
        """
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > MAX_OUTAGE_S:
            raise self._kube.unreachable(error) from error
        time.sleep(_RETRY_S if wanted_s is None else min(float(wanted_s), MAX_OUTAGE_S))
