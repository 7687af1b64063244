"""What every pod must have, and that all it names is there."""

import re
from fractions import Fraction

import pytest

from tests.support import manifests as k8s
from tests.support.manifests import asked, quantity

TEMPLATES = [
    pytest.param(overlay, template, id=f"{overlay}-{template.name}")
    for overlay in k8s.ALL
    for template in k8s.templates(k8s.manifests(overlay))
]
TOKENS = {"ray-head"}
"""Accounts that call the API server."""


@pytest.mark.parametrize(("overlay", "template"), TEMPLATES)
def test_a_container_has_its_resources(overlay, template):
    for container in template.containers():
        requests, limits = (container["resources"][key] for key in ("requests", "limits"))
        assert {"cpu", "memory"} <= requests.keys() & limits.keys(), container["name"]
        # Memory that is promised and not there ends pods at random.
        assert requests["memory"] == limits["memory"]
        if template.metadata["labels"]["app.kubernetes.io/component"] == "ray":
            assert requests == limits


@pytest.mark.parametrize(("overlay", "template"), TEMPLATES)
def test_a_container_that_serves_is_asked_whether_it_does(overlay, template):
    for container in template.spec["containers"]:
        if container.get("ports"):
            assert {"readinessProbe", "livenessProbe"} <= container.keys(), container["name"]


@pytest.mark.parametrize(("overlay", "template"), TEMPLATES)
def test_a_pod_has_no_right_that_it_does_not_need(overlay, template):
    pod = template.spec
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert not [one for one in pod["volumes"] if "hostPath" in one]
    for container in template.containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, container["name"]
    account = pod["serviceAccountName"]
    assert pod["automountServiceAccountToken"] is (account in TOKENS)
    assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize(("overlay", "template"), TEMPLATES)
def test_an_image_has_a_tag_that_stays(overlay, template):
    for container in template.containers():
        name, _, tag = container["image"].rpartition(":")
        assert name, container["image"]
        assert tag not in ("", "latest"), container["image"]
        assert re.search(r"\d+\.\d+", tag), container["image"]


@pytest.mark.parametrize(("overlay", "template"), TEMPLATES)
def test_what_is_written_goes_to_a_volume_with_a_limit(overlay, template):
    for volume in template.spec["volumes"]:
        if "emptyDir" in volume:
            assert volume["emptyDir"]["sizeLimit"], volume["name"]
    claims = {"data"}  # of the StatefulSets
    names = {one["name"] for one in template.spec["volumes"]} | claims
    for container in template.containers():
        assert {one["name"] for one in container["volumeMounts"]} <= names
        assert "/tmp" in {one["mountPath"] for one in container["volumeMounts"]} or container in (
            template.spec.get("initContainers", [])
        )


RAYS = [
    pytest.param(spec, id=overlay)
    for overlay in (*k8s.SWEEPS, *k8s.RAYS)
    for spec in k8s.ray_specs(k8s.manifests(overlay)).values()
]


@pytest.mark.parametrize("spec", RAYS)
def test_rays_folders_are_volumes_and_its_objects_fit_the_shared_memory(spec):
    for name, group in k8s.ray_groups(spec).items():
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        volumes = {one["name"]: one for one in pod["volumes"]}
        # KubeRay finds the first two by their names and adds no second volume without a limit.
        assert mounts["/tmp/ray"] == "ray-logs"
        assert mounts["/dev/shm"] == "shared-mem"
        assert "emptyDir" in volumes[mounts[group["rayStartParams"]["object-spilling-directory"]]]
        shared = volumes["shared-mem"]["emptyDir"]
        assert shared["medium"] == "Memory"
        objects = int(group["rayStartParams"]["object-store-memory"])
        assert objects <= quantity(shared["sizeLimit"]) / 2, name
        assert (
            quantity(shared["sizeLimit"])
            <= quantity(container["resources"]["limits"]["memory"]) / 2
        )


@pytest.mark.parametrize("spec", RAYS)
def test_two_attempts_share_bases_but_no_mirror_of_the_storage(spec):
    for group in k8s.ray_groups(spec).values():
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        own = {one["name"]: one.get("value") for one in container["env"]}["LORCHESTRA_CACHE"]
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        volumes = {one["name"]: one for one in pod["volumes"]}
        assert "emptyDir" in volumes[mounts[own]]
        assert "persistentVolumeClaim" in volumes[mounts[f"{own}/bases"]]


@pytest.mark.parametrize("spec", RAYS)
def test_only_the_driver_can_talk_to_mlflow(spec):
    for name, group in k8s.ray_groups(spec).items():
        (container,) = group["template"]["spec"]["containers"]
        found = {one["name"] for one in container["env"] if one["name"].startswith("MLFLOW_")}
        expected = {"MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
        assert found == (expected if name == "head" else set())


# ---------------------------------------------------------------------------------- what is named


def needed(template):
    """Names that a pod needs: kind, name and, of a Secret's key, the key."""
    pod = template.spec
    yield "ServiceAccount", pod["serviceAccountName"], None
    yield "PriorityClass", pod["priorityClassName"], None
    for volume in pod["volumes"]:
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], None
        if "configMap" in volume and not volume["configMap"].get("optional"):
            yield "ConfigMap", volume["configMap"]["name"], None
    for container in template.containers():
        yield from needed_by_environment(container)


def needed_by_environment(container):
    for source in container.get("envFrom", ()):
        for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if key in source:
                yield kind, source[key]["name"], None
    for variable in container.get("env", ()):
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        if reference is not None:
            yield "Secret", reference["name"], reference["key"]


@pytest.mark.parametrize(("overlay", "template"), TEMPLATES)
def test_all_that_a_pod_names_is_there_or_made_by_the_secrets_folder(overlay, template):
    there = k8s.manifests(k8s.platform_of(overlay)) + k8s.manifests(overlay)
    for kind, name, key in needed(template):
        if kind == "Secret":
            assert name in k8s.SECRETS
            assert key is None or key in k8s.SECRETS[name]
        else:
            assert name in k8s.of_kind(there, kind), (kind, name)


@pytest.mark.parametrize("overlay", k8s.ALL)
def test_names_and_namespaces(overlay):
    items = k8s.manifests(overlay)
    alone = {"Namespace", "PriorityClass", "ClusterQueue", "ResourceFlavor"}
    for item in items:
        namespace = item["metadata"].get("namespace")
        assert namespace == (None if item["kind"] in alone else "lorchestra"), item["kind"]
    names = [(one["kind"], one["metadata"]["name"]) for one in items]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("overlay", k8s.ALL)
def test_no_secret_is_rendered(overlay):
    assert k8s.of_kind(k8s.manifests(overlay), "Secret") == {}
    text = k8s.text_of(overlay)
    assert not re.search(r"\b(AKIA|ASIA|hf_)[A-Za-z0-9]{8,}|BEGIN [A-Z ]*PRIVATE KEY", text)
    assert not re.search(r"://[^/\s:]+:[^/\s@]+@", text)  # a password in an address
    for template in k8s.templates(k8s.manifests(overlay)):
        for container in template.containers():
            for variable in container.get("env", ()):
                if re.search(r"(?i)password|secret|token|auth_key", variable["name"]):
                    value = re.sub(r"\$\(\w+\)", "", variable.get("value", ""))
                    assert not re.search(r"\w", value), variable["name"]


@pytest.mark.parametrize("overlay", k8s.PLATFORMS)
def test_the_role_of_submitters_has_no_secrets_and_no_star(overlay):
    roles = k8s.of_kind(k8s.manifests(overlay), "Role")
    assert set(roles) == {"sweep-submitter"}
    for rule in roles["sweep-submitter"]["rules"]:
        assert "secrets" not in rule["resources"]
        assert "*" not in [*rule["resources"], *rule["verbs"], *rule["apiGroups"]]
        assert "pods/exec" not in rule["resources"]
    assert not k8s.of_kind(k8s.manifests(overlay), "ClusterRole")


# -------------------------------------------------------------------------------------- quotas


def test_the_queue_has_room_for_two_sweeps_with_their_sidecars():
    (spec,) = k8s.ray_specs(k8s.manifests("kueue/sweep")).values()
    (queue,) = k8s.of_kind(k8s.manifests("kueue"), "ClusterQueue").values()
    quotas = {
        resource["name"]: quantity(resource["nominalQuota"])
        for group in queue["spec"]["resourceGroups"]
        for flavor in group["flavors"]
        for resource in flavor["resources"]
    }
    assert set(quotas) == {"cpu", "memory", "nvidia.com/gpu"}
    for resource, quota in quotas.items():
        full = 2 * asked(spec, resource, is_full=True)
        assert full <= quota <= Fraction(11, 10) * full, resource


def test_the_kinds_of_kueue_fit_together():
    items = k8s.manifests("kueue")
    (queue,) = k8s.of_kind(items, "ClusterQueue").values()
    (local,) = k8s.of_kind(items, "LocalQueue").values()
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    job = next(iter(k8s.of_kind(k8s.manifests("kueue/sweep"), "RayJob").values()))
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]
    flavors = k8s.of_kind(items, "ResourceFlavor")
    used = [one["name"] for group in queue["spec"]["resourceGroups"] for one in group["flavors"]]
    assert sorted(used) == sorted(flavors)
    assert {one["apiVersion"] for one in (queue, local, *flavors.values())} == {
        "kueue.x-k8s.io/v1beta2"
    }
    (spec,) = k8s.ray_specs(k8s.manifests("kueue/sweep")).values()
    selector = spec["workerGroupSpecs"][1]["template"]["spec"]["nodeSelector"]
    assert flavors["lorchestra-l4"]["spec"]["nodeLabels"] == selector
    assert "ResourceQuota" not in {one["kind"] for one in items}


def test_the_example_quota_has_room_for_the_largest_sweep():
    (quota,) = k8s.of_kind(k8s.manifests("gpu"), "ResourceQuota").values()
    hard = quota["spec"]["hard"]
    (spec,) = k8s.ray_specs(k8s.manifests("gpu/h100")).values()
    platform = {"cpu": Fraction(0), "memory": Fraction(0)}
    for template in k8s.templates(k8s.manifests("gpu")):
        for container in template.spec["containers"]:
            for name in platform:
                platform[name] += quantity(container["resources"]["limits"][name])
    for name, more in platform.items():
        assert 2 * asked(spec, name, is_full=True) + more <= quantity(hard[f"limits.{name}"]), name
    assert 2 * asked(spec, "nvidia.com/gpu", is_full=True) <= int(hard["requests.nvidia.com/gpu"])
