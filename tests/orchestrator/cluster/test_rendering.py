"""The RayJob of a sweep: that of k8s/, with the sweep's name, storage and image."""

import pytest
import yaml

from orchestrator.cluster.rendering import render, require_job_name, storage_of
from orchestrator.cluster.sweep_file import read_sweep_file
from orchestrator.cluster.templates import OVERLAYS, load_template, template_file
from orchestrator.errors import SweepSpecError
from tests.support import manifests as k8s
from tests.support.kuberay import refusals

IMAGE = "registry.test/lorchestra:1"


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_packaged_rayjobs_are_those_of_the_overlays(name):
    overlay = OVERLAYS[name]
    (job,) = k8s.of_kind(k8s.manifests(overlay.folder), "RayJob").values()
    # `python k8s/make_templates.py` writes them.
    assert yaml.safe_load(template_file(overlay).read_text()) == job


def test_every_sweep_of_the_overlays_can_be_submitted():
    assert sorted(one.folder for one in OVERLAYS.values()) == sorted(k8s.SWEEPS)
    files = {one.file for one in OVERLAYS.values()}
    assert {file.name for file in template_file(OVERLAYS["kueue"]).parent.iterdir()} == files


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_rendered_rayjob_is_the_overlays_with_other_names(name, write_sweep):
    template = load_template(name)
    text = yaml.safe_dump(template)
    sweep = read_sweep_file(write_path(write_sweep))
    rendered = render(template, sweep, "far", "s3://bucket/sweeps", IMAGE)
    assert yaml.safe_dump(template) == text
    assert refusals(rendered.job) == []
    assert rendered.storage == storage_of(rendered.job) == "s3://bucket/sweeps/tiny"
    old, storage = template["metadata"]["name"], storage_of(template)
    there = yaml.safe_dump(rendered.job).replace("sweep-tiny", f"sweep-{old}")
    there = there.replace("requests-tiny", f"requests-{old}").replace(rendered.storage, storage)
    back = yaml.safe_load(there)
    for job in (back, template):
        for container in containers(job):
            container["image"] = ""
    assert back["spec"] == template["spec"]
    assert rendered.job["metadata"].get("labels") == template["metadata"].get("labels")


def containers(job):
    ray = job["spec"]["rayClusterSpec"]
    for group in (ray["headGroupSpec"], *ray["workerGroupSpecs"]):
        yield from group["template"]["spec"]["containers"]


def write_path(write_sweep, **changes):
    from pathlib import Path

    return Path(write_sweep(**changes))


def refused(write_sweep, overlay="local-cpu", sweeps="s3://bucket/sweeps", image=IMAGE, **changes):
    sweep = read_sweep_file(write_path(write_sweep, **changes))
    with pytest.raises(SweepSpecError) as caught:
        render(load_template(overlay), sweep, "far", sweeps, image)
    return str(caught.value)


def test_examples_of_an_overlay_are_not_submitted(write_sweep):
    assert "--sweeps: got 's3://example-bucket/sweeps', the example of the overlay" in refused(
        write_sweep, "gpu", None
    )
    told = refused(write_sweep, "gpu", image=None)
    assert "--image: got 'registry.example.com/lorchestra:" in told
    assert (
        "the example of the overlay; allowed: an image that the cluster's nodes can pull" in told
    )


@pytest.mark.parametrize("image", ["", "has space", "UPPER CASE:x", "x:y:z"])
def test_an_image_that_is_no_name_is_refused(write_sweep, image):
    assert f"--image: got '{image}'" in refused(write_sweep, image=image)


@pytest.mark.parametrize("sweeps", ["runs", "/data/sweeps", "s3://", "gs://bucket/x", "s3://B/x"])
def test_a_place_that_no_node_reaches_is_refused(write_sweep, sweeps):
    assert f"--sweeps: got '{sweeps}'; allowed: s3://BUCKET/FOLDER" in refused(
        write_sweep, sweeps=sweeps
    )


def test_a_mounted_disk_can_hold_the_sweeps(write_sweep):
    template = load_template("local-cpu")
    head = template["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    claim = {"claimName": "sweep-storage"}
    head["volumes"].append({"name": "sweep-storage", "persistentVolumeClaim": claim})
    mount = {"name": "sweep-storage", "mountPath": "/storage"}
    head["containers"][0]["volumeMounts"].append(mount)
    sweep = read_sweep_file(write_path(write_sweep))
    assert (
        render(template, sweep, "far", "/storage/sweeps", None).storage == "/storage/sweeps/tiny"
    )


@pytest.mark.parametrize(
    ("name", "near"),
    [("a" * 48, "a" * 47), ("5b", "b"), ("My.Sweep", "my-sweep"), ("a-", "a"), ("a_b", "a-b")],
)
def test_a_name_that_kuberay_refuses_is_told_before(name, near):
    with pytest.raises(SweepSpecError, match="1 to 47 of a-z, 0-9") as caught:
        require_job_name("name", name)
    assert f"Use {near}." in str(caught.value)
    require_job_name("name", near)


# ------------------------------------------------------------------------ an overlay of the user's


def test_a_folder_or_file_of_ones_own_is_an_overlay(tmp_path, monkeypatch):
    folder = k8s.OVERLAYS / "gpu" / "h100"
    monkeypatch.setenv("PATH", f"{k8s.Path(k8s.kubectl()).parent}")
    assert load_template(str(folder)) == load_template("gpu/h100")
    file = tmp_path / "mine.yaml"
    file.write_text(k8s.text_of("gpu/h100"))
    assert load_template(str(file)) == load_template("gpu/h100")


def test_an_overlay_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.yaml").write_text("kind: ConfigMap\n")
    (tmp_path / "broken.yaml").write_text("{")
    monkeypatch.setenv("PATH", f"{k8s.Path(k8s.kubectl()).parent}")
    for name, told in (
        ("gpu/l5", "--overlay: got 'gpu/l5'; allowed: local-cpu, gpu/l4"),
        (tmp_path / "empty", "which kubectl refuses"),
        (tmp_path / "none.yaml", "which has 0 such RayJobs"),
        (tmp_path / "broken.yaml", "which is not YAML"),
    ):
        with pytest.raises(SweepSpecError) as caught:
            load_template(str(name))
        assert told in str(caught.value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SweepSpecError, match="and there is no kubectl"):
        load_template(str(tmp_path / "empty"))
