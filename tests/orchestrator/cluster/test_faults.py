"""What the API server says, in sentences with a remedy. The messages are those of real servers."""

import json

import pytest

from orchestrator.cluster.faults import explain, read_refusal, unknown_fields


def refusal(code, message, reason="", **details):
    status = {"kind": "Status", "message": message, "reason": reason, "details": details}
    return read_refusal(code, json.dumps(status).encode())


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            refusal(500, "failed to create typed patch object (lo/x; ray.io/v1, Kind=RayJob): "
                    '.spec.rayClusterSpec.workerGroupSpecs[groupName="gpu"].priority: field not '
                    "declared in schema"),
            'has no spec.rayClusterSpec.workerGroupSpecs[groupName="gpu"].priority; allowed: Kub',
        ),
        (
            refusal(400, 'strict decoding error: unknown field "spec.preRunningDeadlineSeconds"'),
            "has no spec.preRunningDeadlineSeconds; allowed: KubeRay 1.7",
        ),
        (
            refusal(403, 'admission webhook "x" denied the request: no GPUs', "Forbidden"),
            'a policy of the cluster refused it (admission webhook "x" denied',
        ),
        (
            refusal(404, 'namespaces "lo" not found', "NotFound"),
            "--namespace: got 'lo', which the cluster does not have",
        ),
        (
            refusal(409, "Operation cannot be fulfilled on rayjobs: the object has been modified"),
            "it changed meanwhile",
        ),
        (
            refusal(409, "Apply failed with 2 conflicts: conflicts with \"kubectl\" using v1:\n"
                    "- .spec.a\n- .spec.b", "Conflict",
                    causes=[{"field": ".spec.a"}, {"field": ".spec.b"}]),
            ".spec.a, .spec.b was set by kubectl",
        ),
        (
            refusal(422, "is invalid", causes=[{"field": "spec.x", "message": "too long"}]),
            "schema refuses it (spec.x: too long)",
        ),
        (read_refusal(418, b"<html>\nteapot"), "refused the request (418 : <html> teapot)"),
    ],
)  # fmt: skip
def test_an_answer_becomes_a_sentence(answer, told):
    text = str(explain(answer, "RayJob x", "lo"))
    assert told in text
    assert "; allowed: " in text
    assert "\n" not in text


def test_what_may_work_later_is_known():
    assert refusal(429, "slow down", retryAfterSeconds=3).is_transient
    assert refusal(429, "slow down", retryAfterSeconds=3).retry_after_s == 3
    assert read_refusal(503, b"").is_transient
    assert not refusal(403, "no").is_transient
    assert not refusal(500, ".spec.x: field not declared in schema").is_transient
    assert unknown_fields("nothing of the kind") == ()
