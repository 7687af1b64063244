"""Every rendered manifest against the schemas of its kind, and schemas that find mistakes."""

import copy
import json

import kubernetes_validate
import pytest
from kubernetes_validate.utils import all_versions, major_minor

from tests.support import manifests as k8s
from tests.support.crds import problems, validators

NEWEST = list(dict.fromkeys(map(major_minor, all_versions())))[-3:]
RAY = "ray.io/v1"
needs_crds = pytest.mark.skipif(
    not (k8s.CRDS / "ray.io_rayjobs.yaml").is_file(), reason=k8s.NO_CRDS
)


def is_core(item):
    """Whether Kubernetes itself has the kind; Ray and Kueue bring their own."""
    return not item["apiVersion"].startswith(("ray.io/", "kueue.x-k8s.io/"))


def core_manifests():
    """The manifests of Kubernetes' own kinds; those that several overlays share once."""
    found = {}
    for overlay in k8s.ALL:
        for item in filter(is_core, k8s.manifests(overlay)):
            found[json.dumps(item, sort_keys=True)] = item
    return list(found.values())


def test_the_overlays_are_all_that_there_are():
    folders = {
        str(file.parent.relative_to(k8s.OVERLAYS))
        for file in k8s.OVERLAYS.rglob("kustomization.yaml")
        if "kind: Component" not in file.read_text()
    }
    # `cluster` has the sizes of both Rays of its overlay, and is part of what they render.
    assert folders == {*k8s.ALL, "local-cpu/cluster"}


@pytest.mark.parametrize("version", NEWEST)
def test_core_kinds_fulfil_the_strict_schema_of_the_newest_versions(version):
    items = core_manifests()
    assert {one["kind"] for one in items} >= {
        "Namespace", "Deployment", "StatefulSet", "Service", "ConfigMap", "ServiceAccount", "Role",
        "RoleBinding", "NetworkPolicy", "PodDisruptionBudget", "ResourceQuota", "PriorityClass",
        "PersistentVolumeClaim",
    }  # fmt: skip
    for item in items:
        assert kubernetes_validate.validate(item, version, strict=True) == version


def test_a_misspelt_field_of_a_core_kind_is_found():
    (deployment,) = [one for one in core_manifests() if one["kind"] == "Deployment"][:1]
    broken = copy.deepcopy(deployment)
    broken["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, NEWEST[-1], strict=True)


@needs_crds
@pytest.mark.parametrize("overlay", [*k8s.SWEEPS, *k8s.RAYS])
def test_ray_kinds_fulfil_the_strict_schema_of_kuberay(overlay):
    known = validators(k8s.CRDS)
    items = [one for one in k8s.manifests(overlay) if one["apiVersion"].startswith("ray.io/")]
    assert len(items) == 1
    for item in items:
        assert problems(known[item["apiVersion"], item["kind"]], item) == []


@needs_crds
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("backOffLimit",), 3),
        (("rayClusterSpec", "autoscalerOptions", "version"), "v3"),
        (("rayClusterSpec", "headGroupSpec", "template", "spec", "serviceAccount_name"), "x"),
        (("rayClusterSpec", "workerGroupSpecs", 0, "replicas"), "1"),
        (("rayClusterSpec", "authOptions", "token"), "x"),
    ],
)
def test_a_mistake_in_a_rayjob_is_found(path, value):
    (job,) = k8s.of_kind(k8s.manifests("gpu/l4"), "RayJob").values()
    place = job["spec"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert len(problems(validators(k8s.CRDS)[RAY, "RayJob"], job)) == 1
