"""`lorchestra cancel`, `stop` and `resume` of a submitted sweep, and the Role of submitters."""

import json
import threading

import pytest

from orchestrator.cli import main
from orchestrator.cluster.driver_log import SUBMITTER
from orchestrator.journal.requests import MountedRequests, Request
from tests.support.clusters import SUBMITTER as ACCOUNT
from tests.support.clusters import rights

RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "rayClusterName": "tiny-x"}


@pytest.fixture
def submitted(place, write_sweep, capsys):
    """A namespace with the sweep `tiny`, whose driver runs."""
    assert main(["submit", write_sweep(), *place.options]) == 0
    place.set_status("tiny", **RUNNING)
    capsys.readouterr()
    return place


def heard(place, folder, monkeypatch):
    """What a driver reads from the requests of the sweep, mounted as a kubelet does."""
    for key, text in place.get("configmaps", "requests-tiny").get("data", {}).items():
        (folder / key).write_text(text)
    monkeypatch.setenv("LORCHESTRA_REQUESTS", str(folder))
    return MountedRequests().read_new()


def test_a_cancelled_driver_hears_it_and_no_attempt_follows(
    submitted, tmp_path, monkeypatch, capsys
):
    assert main(["cancel", "tiny", *submitted.options]) == 0
    assert "sweep tiny is told to end" in capsys.readouterr().out
    # KubeRay compares the limit with the failed attempts when the driver ends with code 1.
    assert submitted.get("rayjobs", "tiny")["spec"]["backoffLimit"] == 0
    assert heard(submitted, tmp_path, monkeypatch) == [Request(kind="cancel")]
    assert main(["cancel", "tiny", *submitted.options]) == 0
    assert "is being cancelled" in capsys.readouterr().out
    assert main(["resume", "tiny", *submitted.options]) == 1
    assert "allowed: a sweep that has ended" in capsys.readouterr().err
    submitted.set_status("tiny", jobDeploymentStatus="Failed", jobStatus="FAILED", failed=1)
    assert main(["status", "tiny", *submitted.options, "--follow"]) == 1
    assert "sweep tiny: cancelled" in capsys.readouterr().out
    assert main(["cancel", "tiny", *submitted.options]) == 2
    assert "which has ended: cancelled; allowed: a sweep without an end" in capsys.readouterr().err


def test_trials_are_stopped_one_by_one(submitted, tmp_path, monkeypatch, capsys):
    for trial in ("5", "3", "5"):
        assert main(["stop", "tiny", trial, *submitted.options]) == 0
    assert main(["cancel", "tiny", *submitted.options]) == 0
    assert "trial 5 is told to stop" in capsys.readouterr().out
    assert heard(submitted, tmp_path, monkeypatch) == [
        Request(kind="cancel"),
        Request(kind="stop", trial=3),
        Request(kind="stop", trial=5),
    ]
    assert main(["stop", "tiny", "-1", *submitted.options]) == 2


def test_a_sweep_without_a_driver_is_cancelled_by_its_deletion(submitted, write_sweep, capsys):
    submitted.set_status("tiny", jobDeploymentStatus="Initializing", jobStatus="")
    assert main(["cancel", "tiny", *submitted.options]) == 0
    assert "no driver was running it, and its RayJob is deleted" in capsys.readouterr().out
    assert submitted.names("rayjobs") == set()
    assert main(["submit", write_sweep(), *submitted.options]) == 0
    assert submitted.names("rayjobs") == {"tiny"}


def test_a_cancelled_sweep_is_resumed_as_it_was_submitted(submitted, capsys):
    before = submitted.get("rayjobs", "tiny")
    assert main(["cancel", "tiny", *submitted.options]) == 0
    submitted.set_status("tiny", jobDeploymentStatus="Failed", jobStatus="FAILED", failed=1)
    assert main(["resume", "tiny", *submitted.options]) == 0
    assert "continues from s3://lorchestra/sweeps/tiny" in capsys.readouterr().out
    after = submitted.get("rayjobs", "tiny")
    assert after["spec"] == before["spec"]
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert "annotations" not in after["metadata"]
    assert not after.get("status")
    assert "requests-tiny" not in submitted.names("configmaps")


def test_only_an_ended_or_suspended_sweep_is_resumed(submitted, capsys):
    assert main(["resume", "tiny", *submitted.options]) == 0
    assert "has not ended: its driver runs" in capsys.readouterr().out
    submitted.admin.merge(submitted.path("rayjobs", "tiny"), {"spec": {"suspend": True}})
    assert main(["resume", "tiny", *submitted.options]) == 0
    assert submitted.get("rayjobs", "tiny")["spec"]["suspend"] is False
    submitted.set_status("tiny", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert main(["resume", "tiny", *submitted.options]) == 0
    assert "has completed; nothing was started" in capsys.readouterr().out


def test_a_rayjob_that_hears_no_requests_is_told(submitted, capsys):
    item = submitted.get("rayjobs", "tiny")
    head = item["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    head["volumes"] = [one for one in head["volumes"] if one["name"] != "requests"]
    change = {"spec": {"rayClusterSpec": item["spec"]["rayClusterSpec"]}}
    submitted.admin.merge(submitted.path("rayjobs", "tiny"), change)
    assert main(["cancel", "tiny", *submitted.options]) == 1
    assert "does not mount ConfigMap requests-tiny" in capsys.readouterr().err


def test_requests_are_read_once_and_other_files_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("LORCHESTRA_REQUESTS", raising=False)
    assert MountedRequests().read_new() == []
    monkeypatch.setenv("LORCHESTRA_REQUESTS", str(tmp_path))
    mounted = MountedRequests()
    (tmp_path / "stop-1.json").write_text(json.dumps({"kind": "stop", "trial": 1}))
    (tmp_path / "broken.json").write_text("{")
    assert mounted.read_new() == [Request(kind="stop", trial=1)]
    assert "broken.json is not a request" in caplog.text
    assert mounted.read_new() == []


def test_the_role_of_submitters_is_what_the_commands_use(own_server, write_sweep, capsys):
    """Each right is used, and without any other the commands work."""
    place = own_server()
    command = ["submit", write_sweep(), *place.options]
    assert main(command) == 0
    assert main(command) == 0
    place.add_pod("tiny-x-head-1", "tiny-x", "headgroup", phase="Running")
    place.server.cluster.logs["tiny-x-head-1", SUBMITTER] = "2026-11-28T10:00:00Z hello\n"
    place.set_status("tiny", **RUNNING)
    for words in (["status", "tiny"], ["logs", "tiny"], ["stop", "tiny", "1"], ["cancel", "tiny"]):
        assert main([*words, *place.options]) == 0, words
    place.set_status("tiny", jobDeploymentStatus="Failed", jobStatus="FAILED")
    assert main(["resume", "tiny", *place.options]) == 0
    assert main(["cancel", "tiny", *place.options]) == 0
    assert main(command) == 0
    end = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    ending = threading.Timer(1.5, place.set_status, ["tiny"], end)
    ending.start()
    assert main(["status", "tiny", *place.options, "--follow"]) == 0
    ending.join()
    (role,) = [one for one in rights("any") if one["kind"] == "Role"]
    allowed = {
        (verb, group, resource)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert set(place.server.cluster.calls) <= allowed
    # `kubectl get rayjobs` and `kubectl wait` are in k8s/README.md.
    assert allowed - set(place.server.cluster.calls) == {("list", "ray.io", "rayjobs")}
    assert not any("secrets" in rule["resources"] for rule in role["rules"])
    assert not any("exec" in one for rule in role["rules"] for one in rule["resources"])
    assert place.get("serviceaccounts", ACCOUNT)["automountServiceAccountToken"] is False
