"""KubeRay's and Kueue's own rules, and the settings on which a sweep's recovery rests."""

import json
import shlex

import pytest
import yaml
from ray.scripts.scripts import drain_node

from orchestrator import SweepSpec
from orchestrator.journal.requests import REQUESTS_VARIABLE
from orchestrator.resources.nodes import STEADY, type_constraint
from orchestrator.resources.room import STEADY_SHARE
from tests.support import manifests as k8s
from tests.support.kuberay import refusals


def job_of(overlay):
    (job,) = k8s.of_kind(k8s.manifests(overlay), "RayJob").values()
    return job


def ray_of(overlay):
    (spec,) = k8s.ray_specs(k8s.manifests(overlay)).values()
    return spec


@pytest.mark.parametrize("overlay", [*k8s.SWEEPS, *k8s.RAYS])
def test_the_controllers_refuse_nothing(overlay):
    items = [one for one in k8s.manifests(overlay) if one["apiVersion"].startswith("ray.io/")]
    assert [refusals(one) for one in items] == [[]]


def set_at(item, path, value):
    *steps, last = path.split(".")
    for step in steps:
        item = item[int(step)] if isinstance(item, list) else item.setdefault(step, {})
    item[last] = value


HEAD = "spec.rayClusterSpec.headGroupSpec"
GPU = "spec.rayClusterSpec.workerGroupSpecs.1"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("metadata.name", "a" * 48, "48 characters"),
        ("metadata.name", "Sweep", "DNS-1035"),
        ("metadata.name", "5b", "DNS-1035"),
        ("spec.submissionMode", "Sidecar", "submissionMode"),
        ("spec.submissionMode", "InteractiveMode", "backoffLimit"),
        ("spec.submitterPodTemplate", {}, "SidecarMode"),
        ("spec.clusterSelector", {"ray.io/cluster": "interactive"}, "rayClusterSpec"),
        ("spec.shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished"),
        ("spec.deletionStrategy", {"deletionRules": [{"policy": "DeleteWorkers"}]}, "excluded"),
        ("spec.preRunningDeadlineSeconds", 0, "positive"),
        ("spec.rayClusterSpec.authOptions.enableK8sTokenAuth", True, "not for a RayJob"),
        ("spec.rayClusterSpec.rayVersion", "2.51.1", "2.52"),
        ("spec.rayClusterSpec.networkPolicy", {}, "feature gate"),
        ("spec.rayClusterSpec.autoscalerOptions.version", "v1", "v2 only"),
        (f"{HEAD}.template.spec.restartPolicy", "Always", "SidecarMode"),
        (f"{HEAD}.resources", {"steady": "1"}, "excluded by rayStartParams"),
        (f"{GPU}.template.spec.restartPolicy", "OnFailure", "autoscaler v2"),
        (f"{GPU}.rayStartParams.labels", "a=b", "use labels"),
        (f"{GPU}.minReplicas", 5, "0 to maxReplicas"),
        (f"{GPU}.replicas", 9, "outside"),
        (f"{GPU}.suspend", True, "autoscaling"),
        (f"{GPU}.groupName", "steady", "used twice"),
        ("metadata.annotations", {}, "elastic-job"),
    ],
)
def test_a_broken_rule_is_found(path, value, said):
    job = job_of("kueue/sweep")
    set_at(job, path, value)
    assert said in " | ".join(refusals(job))


@pytest.mark.parametrize("overlay", k8s.SWEEPS)
def test_a_sweep_survives_its_head_and_ends_some_day(overlay):
    spec = job_of(overlay)["spec"]
    assert spec["submissionMode"] == "SidecarMode"
    assert 3 <= spec["backoffLimit"] <= 10
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert spec["shutdownAfterJobFinishes"] is True


@pytest.mark.parametrize("overlay", [*k8s.SWEEPS, *k8s.RAYS])
def test_token_and_autoscaler_are_written_out(overlay):
    ray = ray_of(overlay)
    assert ray["authOptions"]["mode"] == "token"
    assert ray["enableInTreeAutoscaling"] is True
    assert ray["autoscalerOptions"]["version"] == "v2"


@pytest.mark.parametrize("overlay", [*k8s.SWEEPS, *k8s.RAYS])
def test_nothing_that_asks_for_a_cpu_comes_to_the_head(overlay):
    groups = k8s.ray_groups(ray_of(overlay))
    assert groups["head"]["rayStartParams"]["num-cpus"] == "0"
    # The one group that others can ask for by name; it is always there.
    assert [name for name, one in groups.items() if one.get("resources")] == ["steady"]
    assert groups["steady"]["minReplicas"] >= 1


@pytest.mark.parametrize("overlay", [*k8s.SWEEPS[1:], "gpu/interactive"])
def test_gpus_start_from_none_and_may_be_spot(overlay):
    group = k8s.ray_groups(ray_of(overlay))["gpu"]
    spec = group["template"]["spec"]
    assert (group["replicas"], group["minReplicas"]) == (0, 0)
    assert group["maxReplicas"] >= 1
    (container,) = spec["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    keys = {one["key"] for one in spec["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= keys
    # One CPU per GPU, for the host: nothing else fits beside it.
    assert group["rayStartParams"]["num-cpus"] == "1"


@pytest.mark.parametrize("kind", ["l4", "a100", "h100"])
def test_an_empty_gpu_group_is_found_by_its_type(kind):
    """`hosts.gpu_type` asks by this label while no node is up."""
    group = k8s.ray_groups(ray_of(f"gpu/{kind}"))["gpu"]
    resources, labels = type_constraint(kind.upper(), ())
    assert (resources, labels) == ({}, group["labels"])


def test_proxies_ask_for_what_the_steady_group_has():
    (amount,) = k8s.ray_groups(ray_of("gpu/l4"))["steady"]["resources"].items()
    assert amount[0] == STEADY
    assert float(amount[1]) > STEADY_SHARE * 1000


def test_a_trainer_that_is_taken_away_tells_ray_first():
    spec = k8s.ray_groups(ray_of("gpu/l4"))["gpu"]["template"]["spec"]
    shell, option, script = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, option) == ("/bin/bash", "-c")
    tell, _, pause = script.partition(" && ")
    words = shlex.split(tell)
    assert words[:1] + words[2:4] == ["timeout", "ray", "drain-node"]
    given = drain_node.make_context("drain-node", words[4:]).params
    assert given["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    told, waited = int(words[1]), int(pause.removeprefix("sleep "))
    assert waited <= given["deadline_remaining_seconds"]
    assert told + waited < spec["terminationGracePeriodSeconds"]


def test_each_variant_of_the_gpu_asks_for_its_own_nodes():
    groups = {
        name: k8s.ray_groups(ray_of(f"gpu/{name}"))["gpu"]["template"]["spec"]
        for name in ("l4", "a100", "h100")
    }
    chosen = {name: spec["nodeSelector"] for name, spec in groups.items()}
    assert chosen == {name: {"lorchestra.io/gpu": name} for name in groups}
    sizes = [spec["containers"][0]["resources"]["limits"]["memory"] for spec in groups.values()]
    assert len(set(sizes)) == 3


def test_heads_and_steady_workers_avoid_spot_nodes():
    for overlay in (*k8s.SWEEPS, *k8s.RAYS):
        groups = k8s.ray_groups(ray_of(overlay))
        for name in ("head", "steady"):
            spec = groups[name]["template"]["spec"]
            assert "tolerations" not in spec
            needed = json.dumps(spec["affinity"]["nodeAffinity"])
            assert "requiredDuringScheduling" in needed
            for sign in ("gke-spot", "SPOT", "karpenter.sh/capacity-type", "scalesetpriority"):
                assert sign in needed, (overlay, name, sign)


@pytest.mark.parametrize("overlay", k8s.SWEEPS)
def test_the_job_runs_the_sweep_of_its_name(overlay, tmp_path):
    items = k8s.manifests(overlay)
    job = job_of(overlay)
    name = job["metadata"]["name"]
    file = k8s.of_kind(items, "ConfigMap")[f"sweep-{name}"]
    # A retry must not read another file than the first attempt.
    assert file["immutable"] is True
    path = tmp_path / "sweep.yaml"
    path.write_text(file["data"]["sweep.yaml"])
    if overlay.startswith("local-cpu"):
        local = file["data"]["sweep.yaml"].replace("/opt/lorchestra", str(k8s.ROOT))
        path.write_text(local)
    spec = SweepSpec.from_yaml(path)
    assert spec.name == name
    program, command, sweep, option, storage = job["spec"]["entrypoint"].split()
    assert (program, command, sweep) == ("lorchestra", "run", "/etc/lorchestra/sweep.yaml")
    assert option == "--storage"
    assert storage.startswith("s3://")
    assert storage.endswith(f"/sweeps/{name}")
    # KubeRay's deadline ends everything without a report; the budget must come first.
    assert spec.budget.wall_clock_s is not None
    assert spec.budget.wall_clock_s < job["spec"]["activeDeadlineSeconds"]


@pytest.mark.parametrize("overlay", k8s.SWEEPS)
def test_the_sweep_file_is_where_the_entrypoint_reads_it(overlay):
    groups = k8s.ray_groups(ray_of(overlay))
    name = job_of(overlay)["metadata"]["name"]
    for group, spec in ((one, groups[one]["template"]["spec"]) for one in groups):
        mounts = {one["mountPath"]: one["name"] for one in spec["containers"][0]["volumeMounts"]}
        volumes = {one["name"]: one for one in spec["volumes"]}
        if group == "head":
            volume = volumes[mounts["/etc/lorchestra"]]
            assert volume["configMap"] == {"name": f"sweep-{name}"}
            (place,) = [
                one["value"]
                for one in spec["containers"][0]["env"]
                if one["name"] == REQUESTS_VARIABLE
            ]
            requests = volumes[mounts[place]]["configMap"]
            assert requests == {"name": f"requests-{name}", "optional": True}
        else:
            assert not any(path.startswith("/etc/lorchestra") for path in mounts)


def test_the_demo_of_the_cluster_is_the_demo_of_the_laptop():
    text = k8s.of_kind(k8s.manifests("local-cpu/sweep"), "ConfigMap")
    ours = yaml.safe_load(text["sweep-wordnet-classes"]["data"]["sweep.yaml"])
    theirs = yaml.safe_load((k8s.ROOT / "sweeps" / "quickstart.yaml").read_text())
    different = {name for name in ours | theirs if ours.get(name) != theirs.get(name)}
    assert different == {"data", "space", "budget"}
    places = {
        name: path.removeprefix("/opt/lorchestra/sweeps/") for name, path in ours["data"].items()
    }
    assert places == theirs["data"]
    del ours["space"]["base.quantization"], theirs["space"]["base.quantization"]
    assert ours["space"] == theirs["space"]


@pytest.mark.parametrize("variant", ["l4", "a100", "h100"])
def test_the_ray_of_a_sweep_and_the_interactive_one_differ_in_its_files_alone(
    variant,
):
    sweep, interactive = ray_of(f"gpu/{variant}"), ray_of("gpu/interactive")
    head = sweep["headGroupSpec"]["template"]["spec"]
    (container,), own = head["containers"], ("sweep-file", "requests", REQUESTS_VARIABLE)
    for place, name in ((head, "volumes"), (container, "volumeMounts"), (container, "env")):
        place[name] = [one for one in place[name] if one["name"] not in own]
    assert sweep["headGroupSpec"] == interactive["headGroupSpec"]
    assert (sweep == interactive) == (variant == "l4")
