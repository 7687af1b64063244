"""What KubeRay's controllers refuse although its schemas allow it.

From `validation.go` of the operator at v1.7.0, feature gates as they are by default. A refused
object stays where it is, with an event; nothing starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

MAX_RAYCLUSTER_NAME, MAX_RAYJOB_NAME = 53, 47
MAX_GROUPS_OF_KUEUE = 17
QUEUE, ELASTIC = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/elastic-job"
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_FROM_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
_ALPHA_OF_CLUSTERS = ("networkPolicy", "tlsOptions", "historyServerOptions")

Manifest = dict[str, Any]


def refusals(item: Manifest) -> list[str]:
    """Why KubeRay, and Kueue for an object with a queue, would refuse a RayJob or RayCluster."""
    is_job = item["kind"] == "RayJob"
    found = list(_name(item, MAX_RAYJOB_NAME if is_job else MAX_RAYCLUSTER_NAME))
    if not is_job:
        return found + list(_cluster(item["spec"]))
    found += _job(item["spec"])
    if "rayClusterSpec" in item["spec"]:
        found += _cluster(item["spec"]["rayClusterSpec"])
    if QUEUE in item["metadata"].get("labels", {}):
        found += _queued(item)
    return found


def _name(item: Manifest, limit: int) -> Iterator[str]:
    name = item["metadata"]["name"]
    if len(name) > limit:
        yield f"metadata.name: has {len(name)} characters; allowed: {limit}"
    if not _DNS_1035.fullmatch(name):
        yield f"metadata.name: got {name!r}; allowed: a DNS-1035 label"


def _job(spec: Manifest) -> Iterator[str]:
    mode, retries = spec.get("submissionMode", "K8sJobMode"), spec.get("backoffLimit", 0)
    if mode not in SUBMISSION_MODES:
        yield f"submissionMode: got {mode!r}"
    if ("rayClusterSpec" in spec) == ("clusterSelector" in spec):
        yield "rayClusterSpec: one of it and clusterSelector"
    if retries < 0 or (retries and (mode == "InteractiveMode" or "clusterSelector" in spec)):
        yield "backoffLimit: excluded by InteractiveMode and clusterSelector"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 1) <= 0:
            yield f"{field}: must be positive"
    yield from _end_of_job(spec)
    if mode == "SidecarMode":
        yield from _sidecar(spec)
    if spec.get("rayClusterSpec", {}).get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "authOptions.enableK8sTokenAuth: not for a RayJob"


def _end_of_job(spec: Manifest) -> Iterator[str]:
    is_shut_down = spec.get("shutdownAfterJobFinishes", False)
    if not is_shut_down and (spec.get("ttlSecondsAfterFinished") or spec.get("suspend")):
        yield "shutdownAfterJobFinishes: needed by ttlSecondsAfterFinished and suspend"
    rules = spec.get("deletionStrategy", {}).get("deletionRules", ())
    if rules and is_shut_down:
        yield "deletionStrategy.deletionRules: excluded by shutdownAfterJobFinishes"
    is_growing = spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling")
    if is_growing and any(rule["policy"] == "DeleteWorkers" for rule in rules):
        yield "deletionStrategy.deletionRules: no DeleteWorkers with autoscaling"


def _sidecar(spec: Manifest) -> Iterator[str]:
    for field in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
        if field in spec:
            yield f"{field}: excluded by SidecarMode"
    head = spec.get("rayClusterSpec", {}).get("headGroupSpec", {}).get("template", {})
    if head.get("spec", {}).get("restartPolicy", "Never") != "Never":
        yield "headGroupSpec: restartPolicy must be Never in SidecarMode"


def _cluster(spec: Manifest) -> Iterator[str]:
    groups = [("head", spec["headGroupSpec"])]
    groups += [(group["groupName"], group) for group in spec.get("workerGroupSpecs", ())]
    is_growing = spec.get("enableInTreeAutoscaling", False)
    version = spec.get("autoscalerOptions", {}).get("version")
    if len({name for name, _ in groups}) != len(groups):
        yield "groupName: used twice"
    for name, group in groups:
        yield from (f"{name}: {one}" for one in _group(group))
        if is_growing:
            yield from (f"{name}: {one}" for one in _growing(group, version))
        elif name != "head" and not {"minReplicas", "maxReplicas"} <= group.keys():
            yield f"{name}: minReplicas and maxReplicas without autoscaling"
    yield from _switched_off(spec)
    auth, ray = spec.get("authOptions", {}), spec.get("rayVersion", "0")
    if auth.get("mode") == "token" and tuple(map(int, ray.split(".")[:2])) < (2, 52):
        yield f"rayVersion: got {ray}; token authentication needs 2.52"
    if "gcsFaultToleranceOptions" not in spec and "RAY_REDIS_ADDRESS" in _variables(groups[0][1]):
        yield "RAY_REDIS_ADDRESS: needs gcsFaultToleranceOptions"


def _switched_off(spec: Manifest) -> Iterator[str]:
    for field in _ALPHA_OF_CLUSTERS:
        if field in spec:
            yield f"{field}: behind a feature gate that is off"


def _group(group: Manifest) -> Iterator[str]:
    params = group.get("rayStartParams", {})
    if group.get("resources") and any(name in params for name in _FROM_PARAMS):
        yield "resources: excluded by rayStartParams num-cpus, num-gpus, memory and resources"
    if "labels" in params:
        yield "rayStartParams.labels: use labels"
    for value in group.get("labels", {}).values():
        if len(value) > 63 or not _LABEL_VALUE.fullmatch(value):
            yield f"labels: got {value!r}"
    low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
    if not 0 <= low <= high:
        yield f"minReplicas: got {low}; allowed: 0 to maxReplicas"
    if not low <= group.get("replicas", low) <= high:
        yield "replicas: outside of minReplicas and maxReplicas"


def _growing(group: Manifest, version: str | None) -> Iterator[str]:
    if group.get("suspend"):
        yield "suspend: excluded by autoscaling"
    if group["template"]["spec"].get("restartPolicy", "Never") != "Never" and version == "v2":
        yield "restartPolicy: must be Never with autoscaler v2"
    if version != "v2" and {"idleTimeoutSeconds", "priority"} & group.keys():
        yield "idleTimeoutSeconds, priority: autoscaler v2 only"
    if version and "RAY_enable_autoscaler_v2" in _variables(group):
        yield "RAY_enable_autoscaler_v2: excluded by autoscalerOptions.version"


def _queued(job: Manifest) -> Iterator[str]:
    """Rules of Kueue's webhook for RayJobs."""
    spec = job["spec"]
    ray = spec["rayClusterSpec"]
    if not spec.get("shutdownAfterJobFinishes"):
        yield "shutdownAfterJobFinishes: Kueue needs it"
    if len(ray["workerGroupSpecs"]) > MAX_GROUPS_OF_KUEUE:
        yield f"workerGroupSpecs: Kueue takes {MAX_GROUPS_OF_KUEUE}"
    if ray.get("enableInTreeAutoscaling"):
        if job["metadata"].get("annotations", {}).get(ELASTIC) != "true":
            yield f"{ELASTIC}: Kueue refuses autoscaling without it"
        if any("minReplicas" not in group for group in ray["workerGroupSpecs"]):
            yield "minReplicas: Kueue counts it"


def _variables(group: Manifest) -> set[str]:
    return {one["name"] for one in group["template"]["spec"]["containers"][0].get("env", ())}
