"""A namespace of a cluster with the platform's Role, and the hands of its administrator.

With `LORCHESTRA_TEST_KUBECONFIG`, the cluster is a real one: the kubeconfig's user may do
everything, KubeRay's CustomResourceDefinitions are installed, and its operator does not run, as
the tests write the status that it would write. Without the variable, the cluster is
`tests.support.apiserver`.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support import manifests as k8s
from tests.support.apiserver import ApiServer

Object = dict[str, Any]
VARIABLE = "LORCHESTRA_TEST_KUBECONFIG"
SUBMITTER = "sweep-submitter"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"


class Admin:
    """Requests of an administrator, as plain JSON."""

    def __init__(self, kubeconfig: Path) -> None:
        from kubernetes import client, config

        settings = client.Configuration()
        settings.retries = False
        config.load_kube_config(str(kubeconfig), client_configuration=settings)
        self._client = client.ApiClient(settings)

    def ask(self, method: str, path: str, body: Any = None, media: str = "") -> Object:
        answer = self._client.call_api(
            path, method, body=body, auth_settings=["BearerToken"], _preload_content=False,
            header_params={"Content-Type": media or "application/json"},
            _return_http_data_only=True, _request_timeout=30,
        )  # fmt: skip
        return json.loads(answer.data)

    def merge(self, path: str, body: Object) -> Object:
        return self.ask("PATCH", path, body, "application/merge-patch+json")


@dataclass(frozen=True)
class Place:
    """A namespace and a submitter's kubeconfig.

    Attributes:
        namespace: The namespace.
        kubeconfig: Kubeconfig of the ServiceAccount `sweep-submitter`.
        admin: The administrator.
        server: The stand-in; `None` for a real server.
    """

    namespace: str
    kubeconfig: Path
    admin: Admin
    server: ApiServer | None

    @property
    def options(self) -> list[str]:
        """Options of a command."""
        return ["--namespace", self.namespace, "--kubeconfig", str(self.kubeconfig)]

    def path(self, plural: str, name: str = "") -> str:
        groups = {"rayjobs": "/apis/ray.io/v1", "roles": _RBAC, "rolebindings": _RBAC}
        path = f"{groups.get(plural, '/api/v1')}/namespaces/{self.namespace}/{plural}"
        return f"{path}/{name}" if name else path

    def await_right(self, verb: str, plural: str, *, is_given: bool = True) -> None:
        """Wait until the server has taken in a change of the submitter's Role."""
        submitter = Admin(self.kubeconfig)
        asked = {"namespace": self.namespace, "verb": verb, "resource": plural}
        asked["group"] = "ray.io" if plural == "rayjobs" else ""
        review = {
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }  # fmt: skip
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        end = time.monotonic() + 30
        while submitter.ask("POST", path, review)["status"]["allowed"] != is_given:
            assert time.monotonic() < end, "the Role did not take effect"
            time.sleep(0.1)

    def get(self, plural: str, name: str) -> Object:
        return self.admin.ask("GET", self.path(plural, name))

    def names(self, plural: str) -> set[str]:
        items = self.admin.ask("GET", self.path(plural))["items"]
        return {one["metadata"]["name"] for one in items}

    def set_status(self, name: str, **status: Any) -> None:
        """Write the status of a RayJob as KubeRay's operator does."""
        self.admin.merge(f"{self.path('rayjobs', name)}/status", {"status": status})

    def add_pod(self, name: str, cluster: str, group: str, **status: Any) -> None:
        """Add a pod of a RayCluster, as KubeRay's operator and a kubelet do."""
        labels = {"ray.io/cluster": cluster, "ray.io/group": group}
        labels["ray.io/node-type"] = "head" if group == "headgroup" else "worker"
        container = {
            "name": f"ray-{labels['ray.io/node-type']}", "image": "registry.test/lorchestra:1",
        }  # fmt: skip
        spec = {
            "serviceAccountName": SUBMITTER, "automountServiceAccountToken": False,
            # No scheduler takes it, so that no kubelet writes its status.
            "containers": [container], "schedulerName": "of-the-test",
        }  # fmt: skip
        metadata = {"name": name, "labels": labels}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        self.admin.ask("POST", self.path("pods"), pod)
        if status:
            self.admin.merge(f"{self.path('pods', name)}/status", {"status": status})

    def warn(self, about: str, kind: str, reason: str, message: str) -> None:
        """Add an event of type Warning."""
        event = {
            "apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": reason,
            "message": message, "metadata": {"name": f"{about}.{secrets.token_hex(6)}"},
            "involvedObject": {"kind": kind, "name": about, "namespace": self.namespace},
            "firstTimestamp": "2026-11-28T10:00:00Z", "lastTimestamp": "2026-11-28T10:00:00Z",
            "source": {"component": "test"},
        }  # fmt: skip
        self.admin.ask("POST", self.path("events"), event)


def open_place(folder: Path, server: ApiServer | None) -> Place:
    """A new namespace with the submitter's account, Role and binding of the platform."""
    if server is None:
        admin_config = Path(os.environ[VARIABLE])
    else:
        admin_config = folder / "admin.yaml"
        admin_config.write_text(yaml.safe_dump(server.kubeconfig()))
    admin, namespace = Admin(admin_config), f"lorchestra-test-{secrets.token_hex(4)}"
    named = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    admin.ask("POST", "/api/v1/namespaces", named)
    place = Place(namespace, folder / "submitter.yaml", admin, server)
    for item in rights(namespace):
        plural = f"{item['kind'].lower()}s"
        admin.ask("POST", place.path(plural), item)
    place.kubeconfig.write_text(yaml.safe_dump(_config_of(place, admin_config)))
    place.await_right("get", "configmaps")
    return place


def rights(namespace: str) -> list[Object]:
    """The ServiceAccount, Role and RoleBinding of submitters, for a namespace."""
    found = []
    for kind in ("ServiceAccount", "Role", "RoleBinding"):
        item = k8s.of_kind(k8s.manifests("local-cpu"), kind)[SUBMITTER]
        item["metadata"]["namespace"] = namespace
        for subject in item.get("subjects", ()):
            subject["namespace"] = namespace
        found.append(item)
    return found


def _config_of(place: Place, admin_config: Path) -> Object:
    """The administrator's kubeconfig with a token of the ServiceAccount in place of the user."""
    request = {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"expirationSeconds": 3600},
    }  # fmt: skip
    path = f"{place.path('serviceaccounts', SUBMITTER)}/token"
    token = place.admin.ask("POST", path, request)["status"]["token"]
    config = yaml.safe_load(admin_config.read_text())
    current = config["current-context"]
    context = next(one for one in config["contexts"] if one["name"] == current)["context"]
    cluster = next(one for one in config["clusters"] if one["name"] == context["cluster"])
    return {
        **config,
        "clusters": [cluster],
        "users": [{"name": "submitter", "user": {"token": token}}],
        "contexts": [{"name": current, "context": {**context, "user": "submitter"}}],
    }  # fmt: skip
