"""Watching a sweep to its end, and its status and log on the way."""

import json
import threading
import time

import pytest

from orchestrator.cli import main
from orchestrator.cluster import following
from orchestrator.cluster.api import connect
from orchestrator.cluster.driver_log import SUBMITTER
from orchestrator.cluster.following import follow_job
from orchestrator.cluster.looking import show_log
from orchestrator.errors import ClusterError

CLUSTER = "tiny-x2k7q"
HEAD = f"{CLUSTER}-head-abcde"
PULLING = {
    "phase": "Pending",
    "containerStatuses": [
        {
            "name": "ray-head", "image": "registry.test/lorchestra:1", "imageID": "",
            "ready": False, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off: not found"}},
        }
    ],
}  # fmt: skip


@pytest.fixture
def submitted(place, write_sweep, capsys):
    """A namespace with the sweep `tiny`."""
    assert main(["submit", write_sweep(), *place.options]) == 0
    capsys.readouterr()
    return place


def follow(place, name="tiny"):
    """The lines that following tells, and the state or error at its end."""
    lines = []
    try:
        return lines, follow_job(connect(place.namespace, place.kubeconfig), name, lines.append, 1)
    except ClusterError as error:
        return lines, error


def later(action, *arguments, **settings):
    """Do something while the test watches."""
    thread = threading.Timer(1.0, action, arguments, settings)
    thread.start()
    return thread


def test_a_sweep_is_followed_to_its_end(submitted):
    def operate():
        submitted.set_status("tiny", jobDeploymentStatus="Initializing", rayClusterName=CLUSTER)
        submitted.add_pod(HEAD, CLUSTER, "headgroup", phase="Running")
        time.sleep(1.2)
        submitted.set_status("tiny", jobDeploymentStatus="Running", jobStatus="RUNNING")
        submitted.warn(HEAD, "Pod", "Evicted", "too much in spill")
        submitted.warn("another", "Pod", "Evicted", "of another sweep")
        time.sleep(1.5)
        submitted.set_status("tiny", jobDeploymentStatus="Retrying", jobStatus="", failed=1)
        time.sleep(1.5)
        submitted.set_status("tiny", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")

    thread = later(operate)
    lines, end = follow(submitted)
    thread.join()
    assert end.is_completed
    told = [
        "sweep tiny: submitted; KubeRay has not begun with it",
        f"sweep tiny: starts the cluster {CLUSTER}",
        f"head {HEAD}: Running",
        f"sweep tiny: its driver runs on the cluster {CLUSTER}",
        f"warning: {HEAD}: Evicted: too much in spill",
        "sweep tiny: attempt 1 of 7 failed; a new cluster continues the sweep",
        "sweep tiny: completed",
    ]
    assert [line for line in lines if line in told] == told
    assert not any("another" in line for line in lines)


def test_a_failed_sweep_ends_with_its_reason(submitted, capsys):
    submitted.set_status(
        "tiny", jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed",
        message="Job entrypoint command failed", rayClusterName=CLUSTER, failed=7,
    )  # fmt: skip
    submitted.warn("tiny", "RayJob", "FailedToCreateRayCluster", "exceeded quota: sweeps")
    _, error = follow(submitted)
    assert "sweep tiny: failed (AppFailed: Job entrypoint command failed)" in str(error)
    assert "FailedToCreateRayCluster: exceeded quota: sweeps" in str(error)
    assert "run lorchestra resume" in str(error)
    assert main(["status", "tiny", *submitted.options, "--follow"]) == 1


def test_an_image_that_cannot_be_pulled_ends_the_watch_with_the_image(submitted):
    submitted.set_status("tiny", jobDeploymentStatus="Initializing", rayClusterName=CLUSTER)
    submitted.add_pod(HEAD, CLUSTER, "headgroup", **PULLING)
    lines, error = follow(submitted)
    assert f"head {HEAD}: Pending, ImagePullBackOff" in lines
    assert (
        f"image: pod {HEAD} cannot pull registry.test/lorchestra:1 (ImagePullBackOff: Back-off"
        in str(error)
    )
    assert "Push it, or submit the sweep with another --image" in str(error)


def test_a_refusal_of_kuberay_is_told(submitted):
    submitted.set_status(
        "tiny", jobDeploymentStatus="ValidationFailed", reason="ValidationFailed",
        message="The RayJob spec is invalid: backoffLimit",
    )  # fmt: skip
    _, error = follow(submitted)
    assert "KubeRay refuses it (ValidationFailed: The RayJob spec is invalid" in str(error)


def test_a_deleted_rayjob_ends_the_watch(submitted):
    thread = later(submitted.admin.ask, "DELETE", submitted.path("rayjobs", "tiny"))
    _, error = follow(submitted)
    thread.join()
    assert "its RayJob in namespace" in str(error)
    assert "was deleted" in str(error)


def test_the_status_of_a_sweep_as_text_and_json(submitted, capsys):
    submitted.set_status("tiny", jobDeploymentStatus="Running", jobStatus="RUNNING",
                         rayClusterName=CLUSTER, failed=2)  # fmt: skip
    submitted.add_pod(HEAD, CLUSTER, "headgroup", phase="Running")
    submitted.add_pod(f"{CLUSTER}-gpu-worker-1", CLUSTER, "gpu", phase="Pending", conditions=[
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
         "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}])  # fmt: skip
    assert main(["status", "tiny", *submitted.options]) == 0
    told = capsys.readouterr().out
    assert f"sweep tiny in {submitted.namespace}: its driver runs on the cluster {CLUSTER}" in told
    assert "storage: s3://lorchestra/sweeps/tiny" in told
    assert "attempts: 2 of 7 failed" in told
    assert (
        "Pending, no node fits (0/3 nodes are available: 3 Insufficient nvidia.com/gpu.)" in told
    )
    assert main(["status", "tiny", *submitted.options, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["deployment_status"] == "Running"
    assert {pod["group"] for pod in values["pods"]} == {"head", "gpu"}


def test_a_sweep_that_is_not_there_is_refused(place, capsys):
    for command in (["status", "tiny"], ["logs", "tiny"], ["cancel", "tiny"], ["resume", "tiny"]):
        assert main([*command, *place.options]) == 2
        told = capsys.readouterr().err
        assert (
            "NAME: got 'tiny', which has none; allowed: a sweep with a RayJob in namespace "
            f"{place.namespace}" in told
        )
    assert main(["status", "x" * 48, *place.options]) == 2
    assert "of 48 characters; allowed: 1 to 47 of a-z" in capsys.readouterr().err


def test_a_queue_and_a_missing_operator_are_told(submitted, monkeypatch):
    from orchestrator.cluster.state import read_job

    item = submitted.get("rayjobs", "tiny")
    item["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    assert "operator has not looked at it" in read_job(item).describe()
    item["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "sweeps"}
    item["spec"]["suspend"] = True
    assert read_job(item).describe() == "waits in the queue sweeps"


# --------------------------------------------------------- the driver's log, which a kubelet gives


@pytest.fixture
def driven(own_server, write_sweep, capsys):
    """A stand-in with the sweep `tiny`, whose driver runs."""
    place = own_server()
    assert main(["submit", write_sweep(), *place.options]) == 0
    place.set_status("tiny", jobDeploymentStatus="Running", rayClusterName=CLUSTER)
    place.add_pod(HEAD, CLUSTER, "headgroup", phase="Running")
    capsys.readouterr()
    return place


def write_log(place, *lines):
    """The log of the driver's container; the container counts seconds from its start."""
    place.server.cluster.logs[HEAD, SUBMITTER] = "".join(
        f"2026-11-28T10:00:0{i}.000000000Z {line}\n" for i, line in enumerate(lines)
    )


def test_the_drivers_lines_are_told_once_and_its_complaint_at_the_end(driven):
    begun = ["lorchestra: sweep tiny, 2 trials", "\x1b[32msearching\x1b[0m"]
    write_log(driven, *begun)

    def fail():
        error = "lorchestra: s3://lorchestra/sweeps/tiny: cannot be written (AccessDenied)"
        write_log(driven, *begun, error)
        driven.set_status("tiny", jobDeploymentStatus="Failed", jobStatus="FAILED")

    thread = later(fail)
    lines, error = follow(driven)
    thread.join()
    assert lines.count("searching") == 1
    assert "its driver said: s3://lorchestra/sweeps/tiny: cannot be written" in str(error)


def test_logs_print_what_is_there_and_say_when_nothing_is(driven, capsys):
    assert main(["logs", "tiny", *driven.options]) == 2
    assert "which has no driver now: its driver runs" in capsys.readouterr().err
    write_log(driven, "one", "two")
    assert main(["logs", "tiny", *driven.options]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    lines = []
    ending = later(
        driven.set_status, "tiny", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED"
    )
    kube = connect(driven.namespace, driven.kubeconfig)
    assert show_log(kube, "tiny", lines.append, is_followed=True, pause_s=0.5) == 0
    ending.join()
    assert lines == ["one", "two"]
    assert main(["status", "tiny", *driven.options]) == 0
    assert "the driver's last lines, of 2:\n    one\n    two\n" in capsys.readouterr().out


def test_broken_and_expired_watches_go_on(driven, monkeypatch):
    monkeypatch.setattr(following, "_RETRY_S", 0.1)
    cluster = driven.server.cluster
    cluster.faults.broken_watches = 2

    def disturb():
        cluster.compact()
        cluster.faults.unavailable = 2
        time.sleep(1.0)
        driven.server.cluster.faults.unavailable = 0
        driven.set_status("tiny", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")

    thread = later(disturb)
    lines, end = follow(driven)
    thread.join()
    assert end.is_completed
    assert len(lines) == len(set(lines))
    assert cluster.faults.broken_watches == 0


def test_a_server_that_stays_away_ends_the_watch(driven, monkeypatch):
    monkeypatch.setattr(following, "_RETRY_S", 0.1)
    monkeypatch.setattr(following, "MAX_OUTAGE_S", 1.0)
    thread = later(driven.server.close)
    _, error = follow(driven)
    thread.join()
    assert "does not answer" in str(error)


def test_a_right_that_is_lost_meanwhile_is_told(driven):
    path = driven.path("roles", "sweep-submitter")
    thread = later(driven.admin.merge, path, {"rules": []})
    _, error = follow(driven)
    thread.join()
    assert "sweep tiny: this user may not do that" in str(error)
