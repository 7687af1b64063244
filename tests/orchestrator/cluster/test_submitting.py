"""`lorchestra submit`: what is applied, what is refused, and with which words."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import main
from orchestrator.cluster.submitting import MANAGER
from tests.support.clusters import SUBMITTER, rights


def said(capsys):
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured


def complaint(capsys, command, code):
    assert main(command) == code
    error = said(capsys).err
    assert error.startswith("lorchestra: ")
    return error


def test_a_sweep_becomes_a_config_map_and_a_rayjob(place, write_sweep, capsys):
    file = write_sweep()
    assert main(["submit", file, *place.options, "--sweeps", "s3://bucket/sweeps"]) == 0
    told = said(capsys).out
    assert "RayJob tiny was created; storage: s3://bucket/sweeps/tiny" in told
    assert f"kubectl -n {place.namespace} port-forward service/mlflow 5000" in told
    assert f"lorchestra status tiny --namespace {place.namespace} --follow" in told
    config_map = place.get("configmaps", "sweep-tiny")
    assert config_map["immutable"] is True
    assert config_map["data"]["sweep.yaml"] == Path(file).read_text()
    job = place.get("rayjobs", "tiny")
    assert job["spec"]["entrypoint"].endswith("--storage s3://bucket/sweeps/tiny")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    volumes = {one["name"]: one.get("configMap") for one in head["volumes"]}
    assert volumes["sweep-file"] == {"name": "sweep-tiny"}
    assert volumes["requests"] == {"name": "requests-tiny", "optional": True}
    (owner,) = job["metadata"]["managedFields"]
    assert (owner["manager"], owner["operation"]) == (MANAGER, "Apply")


def test_the_same_sweep_again_changes_nothing(place, write_sweep, capsys):
    command = ["submit", write_sweep(), *place.options]
    assert main(command) == 0
    before = place.get("rayjobs", "tiny")
    # Other words for the same settings.
    write_sweep(lora={"rank": 8}, seed=0)
    assert main(command) == 0
    assert "RayJob tiny is there and unchanged" in said(capsys).out
    assert place.get("rayjobs", "tiny") == before


def test_another_sweep_under_an_old_name_is_refused_by_field(place, write_sweep, capsys):
    assert main(["submit", write_sweep(), *place.options]) == 0
    changed = write_sweep(optim={"steps": 40, "learning_rate": 0.001})
    told = complaint(capsys, ["submit", changed, *place.options], 2)
    assert "name: sweep tiny was submitted" in told
    assert "optim.steps was 20, is 40" in told
    assert "optim.learning_rate was" in told
    # The RayJob's end does not free the name.
    place.admin.ask("DELETE", place.path("rayjobs", "tiny"))
    told = complaint(capsys, ["submit", changed, *place.options], 2)
    assert "optim.steps was 20, is 40" in told
    assert place.names("rayjobs") == set()


def test_an_ended_sweep_continues_with_a_larger_budget(place, write_sweep, capsys):
    assert main(["submit", write_sweep(), *place.options]) == 0
    before = place.get("rayjobs", "tiny")["metadata"]["uid"]
    command = ["submit", write_sweep(budget={"trials": 9}), *place.options]
    told = complaint(capsys, command, 2)
    assert "has not ended, and budget.trials was 2, is 9; allowed" in told
    place.set_status("tiny", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert main(command) == 0
    assert "RayJob tiny was created; it continues, and budget.trials was 2, is 9" in (
        said(capsys).out
    )
    assert "trials: 9" in place.get("configmaps", "sweep-tiny")["data"]["sweep.yaml"]
    assert place.get("rayjobs", "tiny")["metadata"]["uid"] != before


def test_settings_of_the_cluster_may_change(place, write_sweep, capsys):
    assert main(["submit", write_sweep(), *place.options]) == 0
    options = [*place.options, "--image", "registry.test/lorchestra:2"]
    assert main(["submit", write_sweep(), *options]) == 0
    assert "RayJob tiny was changed" in said(capsys).out
    spec = place.get("rayjobs", "tiny")["spec"]["rayClusterSpec"]
    images = {
        one["template"]["spec"]["containers"][0]["image"]
        for one in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    }
    assert images == {"registry.test/lorchestra:2"}


def test_an_ended_sweep_is_not_started_again(place, write_sweep, capsys):
    command = ["submit", write_sweep(), *place.options]
    assert main(command) == 0
    place.set_status("tiny", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert main(command) == 0
    assert "sweep tiny has completed; nothing was started" in said(capsys).out
    place.set_status("tiny", jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed")
    assert main(command) == 0
    assert f"continue it with: lorchestra resume tiny --namespace {place.namespace}" in (
        said(capsys).out
    )


def test_fields_that_another_program_set_are_not_taken(place, write_sweep, capsys):
    command = ["submit", write_sweep(), *place.options]
    assert main(command) == 0
    path = f"{place.path('rayjobs', 'tiny')}?fieldManager=the-neighbour"
    place.admin.merge(path, {"spec": {"backoffLimit": 1}})
    told = complaint(capsys, command, 1)
    assert "RayJob tiny: .spec.backoffLimit was set by the-neighbour" in told
    assert place.get("rayjobs", "tiny")["spec"]["backoffLimit"] == 1


@pytest.mark.parametrize(
    ("field", "value"), [("backoffLimit", "many"), ("preRunningDeadlineSeconds", 0)]
)
def test_what_the_schema_refuses_is_told_by_field(
    place, write_sweep, capsys, tmp_path, field, value
):
    overlay = changed_overlay(capsys, place, write_sweep, tmp_path, field, value)
    told = complaint(capsys, ["submit", write_sweep(), *place.options, "--overlay", overlay], 1)
    assert "RayJob tiny: the cluster's schema refuses it" in told
    assert f"spec.{field}: " in told
    assert place.names("configmaps") <= {
        "kube-root-ca.crt"
    }  # nothing is left of half a submission


def test_a_field_that_kuberay_lacks_says_that_it_is_too_old(place, write_sweep, capsys, tmp_path):
    overlay = changed_overlay(capsys, place, write_sweep, tmp_path, "ofNextYear", 1)
    told = complaint(capsys, ["submit", write_sweep(), *place.options, "--overlay", overlay], 1)
    assert "kind RayJob has no spec.ofNextYear; allowed: KubeRay 1.7 or newer" in told
    assert place.names("rayjobs") == set()


def changed_overlay(capsys, place, write_sweep, tmp_path, field, value):
    """A file with the RayJob of the default overlay and another value of a field."""
    capsys.readouterr()
    assert main(["submit", write_sweep(), *place.options, "--dry-run"]) == 0
    _, job = yaml.safe_load_all(capsys.readouterr().out)
    job["spec"][field] = value
    file = tmp_path / "overlay.yaml"
    file.write_text(yaml.safe_dump(job))
    return str(file)


@pytest.mark.parametrize(
    ("resources", "verb", "told"),
    [
        (["rayjobs"], "create", "cannot create resource"),
        (["rayjobs"], "patch", 'cannot patch resource "rayjobs"'),
        (["configmaps"], "get", 'cannot get resource "configmaps"'),
    ],
)
def test_a_missing_right_is_named(place, write_sweep, capsys, resources, verb, told):
    (role,) = [one for one in rights(place.namespace) if one["kind"] == "Role"]
    for rule in role["rules"]:
        if rule["resources"] == resources:
            rule["verbs"].remove(verb)
    place.admin.merge(place.path("roles", SUBMITTER), {"rules": role["rules"]})
    place.await_right(verb, resources[0], is_given=False)
    error = complaint(capsys, ["submit", write_sweep(), *place.options], 1)
    assert "this user may not do that" in error
    assert told in error
    assert f"Role sweep-submitter in namespace {place.namespace}" in error
    assert place.names("rayjobs") == set()


def test_a_namespace_of_others_is_refused(place, write_sweep, capsys):
    options = [*place.options, "--namespace", "kube-system"]
    error = complaint(capsys, ["submit", write_sweep(), *options], 1)
    assert 'cannot get resource "configmaps"' in error
    assert "another --context or --namespace" in error


def test_a_quota_of_rayjobs_is_named(place, write_sweep, capsys):
    if place.server is None:
        pytest.skip("a quota counts where a controller fills its status")
    hard = {"hard": {"count/rayjobs.ray.io": "0"}}
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "few"},
        "spec": hard,
    }
    place.admin.ask("POST", place.path("resourcequotas"), quota)
    error = complaint(capsys, ["submit", write_sweep(), *place.options], 1)
    assert f"a quota of namespace {place.namespace} is used up" in error
    assert "used: count/rayjobs.ray.io=0, limited: count/rayjobs.ray.io=0" in error


def test_a_rayjob_that_is_being_deleted_is_waited_for(place, write_sweep, capsys):
    command = ["submit", write_sweep(), *place.options]
    assert main(command) == 0
    path = place.path("rayjobs", "tiny")
    place.admin.merge(path, {"metadata": {"finalizers": ["ray.io/rayjob-finalizer"]}})
    place.admin.ask("DELETE", path)
    assert "RayJob tiny: it is being deleted" in complaint(capsys, command, 1)
    place.admin.merge(path, {"metadata": {"finalizers": None}})
    assert main(command) == 0


# ------------------------------------------------------------------- without a cluster that works


def test_a_cluster_without_kuberay_is_told(own_server, write_sweep, capsys):
    place = own_server()
    place.server.cluster.faults.without_kuberay = True
    error = complaint(capsys, ["submit", write_sweep(), *place.options], 1)
    assert "does not know the kind ray.io/v1 RayJob; allowed: a cluster with KubeRay 1.7" in error
    assert "k8s/operator" in error


def test_an_old_kuberay_is_told_with_the_fields_it_lacks(own_server, write_sweep, capsys):
    place = own_server(removed=("preRunningDeadlineSeconds",))
    error = complaint(capsys, ["submit", write_sweep(), *place.options], 1)
    assert "has no spec.preRunningDeadlineSeconds; allowed: KubeRay 1.7 or newer" in error


def test_a_server_that_is_away_is_told_with_its_address(own_server, write_sweep, capsys):
    place = own_server()
    place.server.close()
    error = complaint(capsys, ["submit", write_sweep(), *place.options], 1)
    assert f"cluster: {place.server.address} does not answer (" in error
    assert "Connection refused" in error


def test_an_expired_login_is_told(own_server, write_sweep, capsys):
    place = own_server()
    place.server.cluster.tokens.clear()
    error = complaint(capsys, ["submit", write_sweep(), *place.options], 1)
    assert "does not know this user (401 Unauthorized" in error


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--kubeconfig", "nowhere.yaml"], "--kubeconfig: got 'nowhere.yaml'"),
        (["--kubeconfig", "broken.yaml"], "--kubeconfig: got 'broken.yaml'"),
        (["--kubeconfig", "empty.yaml", "--context", "prod"], "--context: got 'prod'"),
        (["--namespace", "My_Space"], "--namespace: got 'My_Space'"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_named(
    tmp_path, monkeypatch, write_sweep, capsys, options, told
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("{")
    (tmp_path / "empty.yaml").write_text("apiVersion: v1\nkind: Config\n")
    command = ["submit", write_sweep(), "--namespace", "lorchestra", *options]
    assert told in complaint(capsys, command, 2)


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch, write_sweep):
    script = "import sys; sys.modules['kubernetes'] = None; from orchestrator.cli import main; "
    words = ["submit", write_sweep(), "--namespace", "lorchestra"]
    command = [sys.executable, "-c", f"{script}sys.exit(main({words}))"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "kubernetes is not installed" in done.stderr
    assert "Run: pip install 'lorchestra[submit]'" in done.stderr


def test_a_dry_run_needs_no_cluster(tmp_path, monkeypatch, write_sweep, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    command = ["submit", write_sweep(budget={"trials": 2, "wall_clock_s": 200_000}), "--namespace",
               "far", "--dry-run", "--set", "optim.steps=40"]  # fmt: skip
    assert main(command) == 0
    told = said(capsys)
    config_map, job = yaml.safe_load_all(told.out)
    assert yaml.safe_load(config_map["data"]["sweep.yaml"])["optim"] == {"steps": 40}
    assert job["metadata"] == {"name": "tiny", "namespace": "far"}
    # The budget ends a sweep before KubeRay's deadline does.
    assert job["spec"]["activeDeadlineSeconds"] > 200_000
    assert "Search: 2 trials of up to 40 steps" in told.err
