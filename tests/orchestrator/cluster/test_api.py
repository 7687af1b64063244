"""The API server as the commands use it; a real one has to answer as the stand-in does."""

import threading

import pytest

from orchestrator.cluster.api import connect
from orchestrator.cluster.faults import Refused
from orchestrator.errors import ClusterError
from tests.support import server_side_apply as ssa


@pytest.fixture
def kube(place):
    return connect(place.namespace, place.kubeconfig)


def config_map(kube, data, **fields):
    metadata = {"name": "notes", "namespace": kube.namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data, **fields}


def test_managers_own_their_keys(kube):
    kube.apply("ConfigMap", config_map(kube, {"a": "1", "b": "2"}), "one")
    both = kube.apply("ConfigMap", config_map(kube, {"b": "2", "c": "3"}), "two")
    assert both["data"] == {"a": "1", "b": "2", "c": "3"}
    # A key that its manager gives up goes, unless another one owns it, too.
    left = kube.apply("ConfigMap", config_map(kube, {}), "one")
    assert left["data"] == {"b": "2", "c": "3"}
    with pytest.raises(ClusterError, match=r"\.data\.b was set by two"):
        kube.apply("ConfigMap", config_map(kube, {"b": "9"}), "one")
    assert kube.get("ConfigMap", "notes")["data"] == {"b": "2", "c": "3"}


def test_an_apply_without_a_change_keeps_the_version(kube):
    first = kube.apply("ConfigMap", config_map(kube, {"a": "1"}), "one")
    again = kube.apply("ConfigMap", config_map(kube, {"a": "1"}), "one")
    other = kube.apply("ConfigMap", config_map(kube, {"a": "2"}), "one")
    versions = [one["metadata"]["resourceVersion"] for one in (first, again, other)]
    assert versions[0] == versions[1] != versions[2]


def test_a_trial_stores_nothing(kube):
    kube.apply("ConfigMap", config_map(kube, {"a": "1"}), "one", is_trial=True)
    assert kube.get("ConfigMap", "notes") is None
    with pytest.raises(Refused) as caught:
        kube.read("ConfigMap", "notes")
    assert (caught.value.answer.status, caught.value.answer.reason) == (404, "NotFound")


def test_an_immutable_file_stays(kube):
    kube.apply("ConfigMap", config_map(kube, {"a": "1"}, immutable=True), "one")
    with pytest.raises(ClusterError, match="immutable"):
        kube.apply("ConfigMap", config_map(kube, {"a": "2"}, immutable=True), "one")
    assert kube.delete("ConfigMap", "notes")
    assert not kube.delete("ConfigMap", "notes")


def test_a_watch_gives_what_changes_after_a_version(kube, place):
    job = {
        "apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "tiny"},
        "spec": {"entrypoint": "true", "backoffLimit": 1},
    }  # fmt: skip
    made = place.admin.ask("POST", place.path("rayjobs"), job)
    changing = threading.Timer(0.5, place.set_status, ["tiny"], {"jobStatus": "RUNNING"})
    changing.start()
    seen = []
    for event in kube.watch("RayJob", "tiny", made["metadata"]["resourceVersion"], 10):
        seen.append(event)
        if event["type"] != "BOOKMARK":
            break
    changing.join()
    assert seen[-1]["type"] == "MODIFIED"
    assert seen[-1]["object"]["status"]["jobStatus"] == "RUNNING"
    assert list(kube.watch("RayJob", "other", made["metadata"]["resourceVersion"], 1))[1:] == []


def test_another_kind_of_change_takes_the_field_over(kube, place):
    """What `cancel` does to `backoffLimit`, and what the next `submit` is told of it."""
    job = {
        "apiVersion": "ray.io/v1", "kind": "RayJob",
        "metadata": {"name": "tiny", "namespace": kube.namespace},
        "spec": {"entrypoint": "true", "backoffLimit": 6},
    }  # fmt: skip
    kube.apply("RayJob", job, "one")
    changed = kube.merge("RayJob", "tiny", {"spec": {"backoffLimit": 0}}, "two")
    assert changed["spec"]["backoffLimit"] == 0
    assert changed["metadata"]["generation"] == 2
    with pytest.raises(ClusterError, match=r"\.spec\.backoffLimit was set by two"):
        kube.apply("RayJob", job, "one")
    with pytest.raises(ClusterError, match="RayJob other: it is not there"):
        kube.merge("RayJob", "other", {"spec": {"backoffLimit": 0}}, "two")


# ----------------------------------------------------------------- the stand-in's lists, by schema

ITEM = {"properties": {"name": {"type": "string"}, "port": {"type": "integer"}}}
LISTS = {
    "properties": {
        "spec": {
            "properties": {
                "keyed": {
                    "items": ITEM,
                    "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                },
                "whole": {"items": ITEM, "x-kubernetes-list-type": "atomic"},
            }
        }
    }
}  # fmt: skip


def applied(live, wanted, owners, manager):
    return ssa.apply(live, {"spec": wanted}, LISTS, owners, manager, force=False)


def test_lists_merge_by_their_keys_or_not_at_all():
    live, owners = applied({}, {"keyed": [{"name": "a", "port": 1}]}, {}, "one")
    live, owners = applied(live, {"keyed": [{"name": "b", "port": 2}]}, owners, "two")
    assert [one["name"] for one in live["spec"]["keyed"]] == ["a", "b"]
    with pytest.raises(ssa.ConflictError) as caught:
        applied(live, {"keyed": [{"name": "a", "port": 9}]}, owners, "two")
    assert [ssa.show(path) for path in caught.value.args[0]] == ['.spec.keyed[name="a"].port']
    live, owners = applied(live, {}, owners, "one")
    assert live["spec"]["keyed"] == [{"name": "b", "port": 2}]
    live, owners = applied(live, {"whole": [{"name": "a"}]}, owners, "one")
    with pytest.raises(ssa.ConflictError):
        applied(live, {"whole": [{"name": "b"}]}, owners, "two")
    with pytest.raises(ssa.UntypedError, match=r"\.spec\.other: field not declared in schema"):
        applied(live, {"other": 1}, owners, "one")
