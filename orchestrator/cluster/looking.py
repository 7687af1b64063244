"""`lorchestra status` and `logs` of a submitted sweep."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict

from orchestrator.cluster.api import Kube
from orchestrator.cluster.driver_log import DriverLog
from orchestrator.cluster.faults import Refused, Unreachable, explain
from orchestrator.cluster.following import PAUSE_S, Tell, follow_job
from orchestrator.cluster.state import Look, look_around, read_job
from orchestrator.cluster.steering import find_job
from orchestrator.cluster.submitting import mlflow_lines
from orchestrator.errors import SweepSpecError
from orchestrator.wording import refusal

_LAST_LINES = 10
_MAX_WARNINGS = 5


def show_status(kube: Kube, name: str, tell: Tell, *, is_followed: bool, is_json: bool) -> int:
    """Tell the state of a sweep, once or until it ends; returns an exit code.

    Raises:
        SweepSpecError: There is no such sweep.
        ClusterError: The sweep failed while it was followed, or the cluster does not answer.
    """
    item = find_job(kube, name)
    if is_followed:
        return 0 if follow_job(kube, name, tell).is_completed else 1
    look, lines = _look(kube, name, item)
    if is_json:
        told = {
            **look.job.to_dict(),
            "namespace": kube.namespace,
            "fault": look.fault,
            "pods": [asdict(pod) for pod in look.pods],
            "warnings": list(look.warnings),
            "log": lines[-_LAST_LINES:],
        }
        tell(json.dumps(told, indent=2))
        return 0
    for line in _describe(look, lines, kube.namespace):
        tell(line)
    return 0


def show_log(
    kube: Kube, name: str, tell: Tell, *, is_followed: bool, pause_s: float = PAUSE_S
) -> int:
    """Tell the lines of a sweep's driver, of the present attempt or of all that come; exit code.

    Raises:
        SweepSpecError: There is no such sweep, or no driver has begun.
        ClusterError: The cluster does not answer.
    """
    job = read_job(find_job(kube, name))
    log, is_first = DriverLog(), True
    while True:
        try:
            look = look_around(kube, job)
            lines = log.read_on(kube, look.head) if look.head else []
        except Refused as refused:
            raise explain(refused.answer, f"log of {name}", kube.namespace) from refused
        except Unreachable as error:
            raise kube.unreachable(error) from error
        for line in lines:
            tell(line)
        if not is_followed or job.is_ended:
            if is_first and not lines:
                raise _no_driver(name, look)
            return 0
        is_first = is_first and not lines
        time.sleep(pause_s)
        job = read_job(find_job(kube, name))


def _look(kube: Kube, name: str, item: dict[str, object]) -> tuple[Look, list[str]]:
    """One look at a sweep, with the driver's lines."""
    try:
        look = look_around(kube, read_job(item))
        return look, DriverLog().read_on(kube, look.head) if look.head else []
    except Refused as refused:
        raise explain(refused.answer, f"sweep {name}", kube.namespace) from refused
    except Unreachable as error:
        raise kube.unreachable(error) from error


def _describe(look: Look, lines: list[str], namespace: str) -> Iterator[str]:
    job = look.job
    yield f"sweep {job.name} in {namespace}: {job.describe()}"
    yield f"  storage: {job.storage}"
    if job.failed:
        yield f"  attempts: {job.failed} of {job.attempts} failed"
    for pod in look.pods:
        yield f"  {pod.group or 'pod'} {pod.name}: {pod.state}"
    if look.fault and not job.is_ended:
        yield f"  {look.fault}."
    for warning in look.warnings[-_MAX_WARNINGS:]:
        yield f"  warning: {warning}"
    if lines:
        yield f"  the driver's last lines, of {len(lines)}:"
        yield from (f"    {line}" for line in lines[-_LAST_LINES:])
    yield from mlflow_lines(namespace)


def _no_driver(name: str, look: Look) -> SweepSpecError:
    flaw = f"which has no driver now: {look.job.describe()}"
    remedy = f"lorchestra.log is in {look.job.storage}; lorchestra status tells more."
    return SweepSpecError(
        refusal("logs", name, "a sweep with a head whose driver has begun", remedy, flaw=flaw)
    )
