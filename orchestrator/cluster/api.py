"""The API server of a cluster: the few requests that submitting and watching a sweep need.

The official client reads the kubeconfig, logs in and encrypts. Objects are plain JSON here: what
is asked for is what k8s/base/platform/accounts.yaml allows a submitter.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from orchestrator.cluster.faults import (
    Absent,
    Refused,
    Unreachable,
    explain,
    no_kinds,
    read_refusal,
)
from orchestrator.errors import ClusterError, SweepSpecError
from orchestrator.wording import last_line, one_line, refusal

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

Manifest = dict[str, Any]
Kind = Literal["RayJob", "ConfigMap", "Pod", "Event"]

RAY_API = "/apis/ray.io/v1"
_PATHS: Mapping[Kind, str] = {
    "RayJob": f"{RAY_API}/namespaces/{{}}/rayjobs",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Event": "/api/v1/namespaces/{}/events",
}
_APPLY, _MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
_CONNECT_S, _READ_S = 10.0, 60.0
_LAST_LINES = 10_000
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class Kube:
    """A namespace of a cluster.

    Attributes:
        namespace: The namespace.
        server: Address of the API server.
    """

    def __init__(self, client: ApiClient, namespace: str) -> None:
        self._client = client
        self.namespace = namespace
        self.server = str(client.configuration.host)

    # -------------------------------------------------------------------------- requests

    def require_rayjobs(self) -> None:
        """Refuse a cluster without KubeRay's kinds.

        Raises:
            ClusterError: The cluster has no RayJobs, or does not answer.
        """
        try:
            found = self._ask("GET", RAY_API)
        except Refused as refused:
            if refused.answer.status == 404:
                raise no_kinds(self.namespace) from refused
            raise explain(refused.answer, "RayJob", self.namespace) from refused
        except Unreachable as error:
            raise self.unreachable(error) from error
        if not any(one.get("name") == "rayjobs" for one in found.get("resources", ())):
            raise no_kinds(self.namespace)

    def get(self, kind: Kind, name: str) -> Manifest | None:
        """An object; `None` if there is none of that name.

        Raises:
            ClusterError: The server refuses or does not answer.
        """
        try:
            return self._told(f"{kind} {name}", "GET", self._path(kind, name))
        except Absent:
            return None

    def apply(
        self, kind: Kind, item: Manifest, manager: str, *, is_trial: bool = False
    ) -> Manifest:
        """Create or change an object by server-side apply; never takes fields from others.

        Args:
            kind: Its kind.
            item: The fields that the manager wants.
            manager: Name of the field manager.
            is_trial: Whether nothing is stored (`dryRun=All`).

        Raises:
            ClusterError: The server refuses or does not answer.
        """
        name = item["metadata"]["name"]
        query = {"fieldManager": manager, "fieldValidation": "Strict"}
        if is_trial:
            query["dryRun"] = "All"
        return self._changed(kind, name, "PATCH", query, item, _APPLY)

    def merge(self, kind: Kind, name: str, change: Manifest, manager: str) -> Manifest:
        """Change some fields of an object (JSON merge patch).

        Raises:
            ClusterError: The object is gone, or the server refuses or does not answer.
        """
        return self._changed(kind, name, "PATCH", {"fieldManager": manager}, change, _MERGE)

    def delete(self, kind: Kind, name: str) -> bool:
        """Delete an object and what it owns; whether it was there."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        path = self._path(kind, name)
        try:
            self._told(f"{kind} {name}", "DELETE", path, {}, body, "application/json")
        except Absent:
            return False
        return True

    def list(self, kind: Kind, **selectors: str) -> list[Manifest]:
        """Objects of a kind, such as `labelSelector="ray.io/cluster=x"`.

        Raises:
            Refused: The server refuses.
            Unreachable: The server does not answer.
        """
        found = self._ask("GET", self._path(kind), selectors)
        return list(found.get("items") or ())

    def read(self, kind: Kind, name: str) -> Manifest:
        """An object, for loops that go on after a fault.

        Raises:
            Refused: The object is gone (404), or the server refuses.
            Unreachable: The server does not answer.
        """
        return self._ask("GET", self._path(kind, name))

    def log(self, pod: str, container: str, since_s: int | None) -> str:
        """Lines of a container, each behind its time.

        Args:
            pod: The pod.
            container: The container.
            since_s: Seconds back; `None` for the last ten thousand lines.

        Raises:
            Refused: The container has not started (400), or the server refuses.
            Unreachable: The server does not answer.
        """
        query = {"container": container, "timestamps": "true"}
        # No limit of bytes: it would cut off the newest lines.
        part = ("tailLines", _LAST_LINES) if since_s is None else ("sinceSeconds", since_s)
        query[part[0]] = str(part[1])
        response = self._open("GET", f"{self._path('Pod', pod)}/log", query)
        return _body(response).decode(errors="replace")

    def watch(self, kind: Kind, name: str, version: str, wait_s: float) -> Iterator[Manifest]:
        """Changes of one object after a version, until the server ends the watch.

        Args:
            kind: Its kind.
            name: Its name.
            version: The `resourceVersion` that is known.
            wait_s: Seconds after which the server ends the watch.

        Yields:
            Watch events: `type` and `object`.

        Raises:
            Refused: The version is too old (410), or the server refuses.
            Unreachable: The connection broke.
        """
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(wait_s))),
        }
        response = self._open("GET", self._path(kind), query, wait_s + _READ_S)
        try:
            for line in _lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    code = int(status.get("code") or 500)
                    raise Refused(read_refusal(code, json.dumps(status)))
                yield event
        except ValueError as error:
            raise Unreachable(f"the watch broke in mid-line: {one_line(str(error))}") from error
        finally:
            response.release_conn()
            response.close()

    def unreachable(self, error: Unreachable) -> ClusterError:
        """The error for a server that does not answer."""
        return ClusterError(
            f"cluster: {self.server} does not answer ({error}); allowed: a cluster that this "
            "machine reaches. Start it, connect to its network, or name another --context."
        )

    # -------------------------------------------------------------------------- transport

    def _path(self, kind: Kind, name: str = "") -> str:
        path = _PATHS[kind].format(self.namespace)
        return f"{path}/{name}" if name else path

    def _changed(
        self,
        kind: Kind,
        name: str,
        method: str,
        query: Mapping[str, str],
        body: Manifest,
        media: str,
    ) -> Manifest:
        doing = f"{kind} {name}"
        try:
            return self._told(doing, method, self._path(kind, name), query, body, media)
        except Absent as absent:
            raise explain(absent.answer, doing, self.namespace) from absent

    def _told(self, doing: str, method: str, path: str, *request: Any) -> Manifest:
        """The answer to a request whose faults end the command."""
        try:
            return self._ask(method, path, *request)
        except Refused as refused:
            answer = refused.answer
            if answer.status == 404 and "namespaces" not in answer.message:
                if answer.reason or not path.startswith(RAY_API):
                    raise Absent(answer) from refused
                raise no_kinds(self.namespace) from refused  # text, as no handler has the path
            raise explain(answer, doing, self.namespace) from refused
        except Unreachable as error:
            raise self.unreachable(error) from error

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        media: str = "application/json",
    ) -> Manifest:
        response = self._open(method, path, query or {}, _READ_S, body, media)
        values = json.loads(_body(response))
        return values if isinstance(values, dict) else {}

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        read_s: float = _READ_S,
        body: Manifest | None = None,
        media: str = "application/json",
    ) -> Any:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return self._client.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": media},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=(_CONNECT_S, read_s),
            )
        except ApiException as error:
            if not error.status:  # the client's word for a failed handshake
                raise Unreachable(one_line(str(error.reason))) from error
            raise Refused(read_refusal(error.status, error.body)) from error
        except (HTTPError, OSError) as error:
            raise Unreachable(_cause(error)) from error


def connect(namespace: str, kubeconfig: Path | None = None, context: str | None = None) -> Kube:
    """The namespace of a cluster, from a kubeconfig, or from the pod that this runs in.

    Args:
        namespace: The namespace.
        kubeconfig: A kubeconfig file; `$KUBECONFIG`, else `~/.kube/config`, when not given.
        context: A context of it; the current one when not given.

    Raises:
        SweepSpecError: There is no such file or context, or the namespace is no name.
        ClusterError: The package kubernetes is missing.
    """
    if _NAMESPACE.fullmatch(namespace) is None:
        allowed = "1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends"
        remedy = "Name the namespace of the platform, such as lorchestra."
        raise SweepSpecError(refusal("--namespace", namespace, allowed, remedy))
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise ClusterError(
            "cluster: the Python package kubernetes is not installed; allowed: version 35 or 36. "
            "Run: pip install 'lorchestra[submit]'"
        ) from error
    settings = client.Configuration()
    settings.retries = False
    try:
        if kubeconfig is None and context is None and _is_in_pod():
            config.load_incluster_config(client_configuration=settings)
        else:
            file = None if kubeconfig is None else str(kubeconfig)
            config.load_kube_config(file, context, settings, persist_config=False)
    except (
        config.ConfigException,
        yaml.YAMLError,
        OSError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise _no_kubeconfig(kubeconfig, context, error) from error
    return Kube(client.ApiClient(settings), namespace)


def _is_in_pod() -> bool:
    has_file = Path(os.environ.get("KUBECONFIG") or "~/.kube/config").expanduser().is_file()
    return not has_file and "KUBERNETES_SERVICE_HOST" in os.environ


def _no_kubeconfig(
    kubeconfig: Path | None, context: str | None, error: Exception
) -> SweepSpecError:
    option = "--context" if context is not None else "--kubeconfig"
    value = context or (str(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG", "nothing"))
    return SweepSpecError(
        refusal(
            option,
            value,
            "a kubeconfig with the context of a cluster, in the option, in $KUBECONFIG or in "
            "~/.kube/config",
            "See whether `kubectl get pods` works with it.",
            flaw=f"which cannot be used ({one_line(last_line(error))})",
        )
    )


def _lines(response: Any) -> Iterator[str]:
    """Whole lines of a streamed answer; a line that breaks off is not yielded.

    Raises:
        Unreachable: The connection broke.
    """
    from urllib3.exceptions import HTTPError

    rest = b""
    try:
        for chunk in response.stream(amt=None, decode_content=False):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines if line.strip())
    except (HTTPError, OSError) as error:
        raise Unreachable(_cause(error)) from error


def _body(response: Any) -> bytes:
    from urllib3.exceptions import HTTPError

    try:
        return bytes(response.data)
    except (HTTPError, OSError) as error:
        raise Unreachable(_cause(error)) from error
    finally:
        response.release_conn()


def _cause(error: BaseException) -> str:
    """The reason at the bottom of an error of the connection."""
    reason = getattr(error, "reason", None)
    text = one_line(str(reason if isinstance(reason, BaseException) else error))
    return re.sub(r"^<[^>]*>: |^.*?\): ", "", text) or type(error).__name__
