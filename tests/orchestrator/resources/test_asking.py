"""What the autoscaler answers, as its messages say it."""

import pytest
from ray.core.generated.autoscaler_pb2 import (
    AutoscalingState,
    ClusterResourceState,
    GangResourceRequest,
    GetClusterStatusReply,
    PendingInstance,
    PendingInstanceRequest,
)

from orchestrator.resources.asking import Answer, read_answer


def build_reply(seen=7, **state):
    return GetClusterStatusReply(
        autoscaling_state=AutoscalingState(
            autoscaler_state_version=3, last_seen_cluster_resource_state_version=seen, **state
        ),
        cluster_resource_state=ClusterResourceState(cluster_resource_state_version=9),
    )


def refusing(*groups):
    return [GangResourceRequest(details=f"{group}:PACK|PENDING") for group in groups]


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (GetClusterStatusReply(), Answer()),
        (build_reply(6), Answer(has_autoscaler=True)),
        (build_reply(), Answer(has_autoscaler=True, is_read=True)),
        (
            build_reply(infeasible_gang_resource_requests=refusing("ab", "ef")),
            Answer(has_autoscaler=True, is_read=True, refused=1),
        ),
        (
            build_reply(
                pending_instance_requests=[PendingInstanceRequest(count=2)],
                pending_instances=[PendingInstance()],
            ),
            Answer(has_autoscaler=True, is_read=True, launching=3),
        ),
    ],
    ids=["no-autoscaler", "not-read", "read", "refused", "launching"],
)
def test_an_answer_is_about_the_own_requests(reply, answer):
    assert read_answer(reply, ["ab", "cd"], asked_in=7) == answer
