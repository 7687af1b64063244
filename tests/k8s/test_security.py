"""The pods of all overlays, those of Ray's kinds included, before a security linter."""

import json
import os
import shutil
import subprocess

import pytest
import yaml

from tests.support import manifests as k8s

CHECKOV_MISSING = "needs checkov in an environment of its own: make .checkov/bin/checkov"
EXPLAINED = {
    "CKV_K8S_15": (
        "imagePullPolicy Always: tags of this project never move, and a registry that is away "
        "must not keep a worker from starting on a node that has the image.",
        ("",),
    ),
    "CKV_K8S_35": (
        "secrets as files: boto3, MLflow and the clients of the hub and of PostgreSQL read "
        "variables; KubeRay gives Ray's token as one.",
        ("",),
    ),
    "CKV_K8S_38": (
        "service account tokens: the autoscaler in the head's pod asks the API server for pods.",
        ("-head",),
    ),
    "CKV_K8S_40": ("high user ids: 999 is the user of PostgreSQL's image.", ("postgres",)),
    "CKV_K8S_43": (
        "images by digest: who pushes the image knows its digest and can set it in the overlay "
        "(`images: digest`); none is made up here.",
        ("",),
    ),
}
"""Findings that stay: why, and the ends of the names of the resources that may have them."""


def checkov():
    own = k8s.ROOT / ".checkov" / "bin" / "checkov"
    found = str(own) if own.is_file() else shutil.which("checkov")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(CHECKOV_MISSING)
        pytest.skip(CHECKOV_MISSING)
    return found


def plain(overlay):
    """Manifests with the pod templates of Ray's kinds as Pods: linters do not look there."""
    items = k8s.manifests(overlay)
    yield from (one for one in items if not one["apiVersion"].startswith(("ray.io", "kueue")))
    for owner, spec in k8s.ray_specs(items).items():
        for name, group in k8s.ray_groups(spec).items():
            template = group["template"]
            metadata = {"name": f"{owner}-{name}", "namespace": "lorchestra"}
            yield {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": template["metadata"] | metadata,
                "spec": template["spec"],
            }


def findings(folder):
    """What checkov says about a folder: the number of checks passed, and those that failed."""
    command = [checkov(), "--directory", folder, "--framework", "kubernetes", "--skip-download"]
    command += ["--quiet", "--compact", "--output", "json"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    report = json.loads(said.stdout)
    failed = {(one["check_id"], one["resource"]) for one in report["results"]["failed_checks"]}
    assert report["summary"]["parsing_errors"] == 0
    return report["summary"]["passed"], failed


def test_no_finding_is_unexplained(tmp_path):
    for overlay in k8s.ALL:
        file = tmp_path / f"{overlay.replace('/', '-')}.yaml"
        file.write_text(yaml.safe_dump_all(plain(overlay)))
    passed, failed = findings(tmp_path)
    assert passed > 1000
    unexplained = {
        (check, resource)
        for check, resource in failed
        if not resource.endswith(EXPLAINED.get(check, ("", ()))[1])
    }
    assert unexplained == set()
    # An explanation that nothing needs any more would hide the next finding.
    assert {check for check, _ in failed} == set(EXPLAINED)


def test_a_pod_with_too_many_rights_is_found(tmp_path):
    pod = next(one for one in plain("gpu/l4") if one["kind"] == "Pod")
    pod["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(pod))
    _, failed = findings(tmp_path)
    assert {"CKV_K8S_16", "CKV_K8S_20", "CKV_K8S_22"} <= {check for check, _ in failed}
