"""A stand-in for Kubernetes' API server: real HTTP, and the API's semantics as documented.

Kept: resource versions, watches with 410 and bookmarks, server-side apply with field managers,
merge patches, the status subresource, dry runs, finalizers, generation, RBAC by Roles, tokens of
ServiceAccounts, immutable ConfigMaps, object-count quotas, and admission by the schemas of
KubeRay's CustomResourceDefinitions. Not kept: CEL rules, controllers, schemas of Kubernetes' own
kinds.

The log of a pod is what a test writes to `logs`; a real server would ask a kubelet for it.
"""

from __future__ import annotations

import copy
import json
import re
import secrets
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from jsonschema import Draft7Validator

from tests.support import server_side_apply as ssa
from tests.support.crds import definitions, strict

Object = dict[str, Any]
ADMIN = "admin"
_ROUTE = re.compile(
    r"/(?:api/v1|apis/(?P<group>[\w.-]+)/v1)(?:/namespaces/(?P<namespace>[\w.-]+))?"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[\w.:-]+))?(?:/(?P<sub>status|log|token))?"
)
_CONFIGMAP = {
    "properties": {
        "apiVersion": {}, "kind": {}, "immutable": {},
        "data": {"additionalProperties": {}}, "binaryData": {"additionalProperties": {}},
    }
}  # fmt: skip
_KINDS = {
    "namespaces": ("", "Namespace"),
    "configmaps": ("", "ConfigMap"),
    "pods": ("", "Pod"),
    "events": ("", "Event"),
    "serviceaccounts": ("", "ServiceAccount"),
    "resourcequotas": ("", "ResourceQuota"),
    "roles": ("rbac.authorization.k8s.io", "Role"),
    "rolebindings": ("rbac.authorization.k8s.io", "RoleBinding"),
    "rayjobs": ("ray.io", "RayJob"),
    "rayclusters": ("ray.io", "RayCluster"),
}
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Failure(Exception):  # noqa: N818
    """An answer that is no success: code, reason, message, details."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None):
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details

    def status(self) -> Object:
        return {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
            "details": self.details or {},
        }  # fmt: skip


@dataclass
class Request:
    """A request as the API understands it."""

    user: str
    method: str
    group: str
    namespace: str
    plural: str
    name: str
    sub: str
    query: dict[str, str]
    media: str
    body: Any

    @property
    def verb(self) -> str:
        if self.method != "GET":
            return _VERBS[self.method]
        if self.query.get("watch") in ("true", "1"):
            return "watch"
        return "get" if self.name else "list"

    @property
    def resource(self) -> str:
        return f"{self.plural}/{self.sub}" if self.sub else self.plural

    @property
    def qualified(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


@dataclass
class Faults:
    """What goes wrong on purpose.

    Attributes:
        broken_watches: Watches to come that end in the middle of a line.
        unavailable: Requests to come that get 503.
        without_kuberay: Whether the cluster lacks KubeRay's kinds.
    """

    broken_watches: int = 0
    unavailable: int = 0
    without_kuberay: bool = False


@dataclass
class Cluster:
    """The state behind the server.

    Attributes:
        calls: Verb, API group and resource of each request by a ServiceAccount.
        logs: Text of a container by pod and container.
        faults: What goes wrong on purpose.
    """

    crds: Path
    removed: tuple[str, ...] = ()
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    logs: dict[tuple[str, str], str] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.owners: dict[tuple[str, str, str], ssa.Owners] = {}
        self.history: list[tuple[int, str, str, Object]] = []
        self.version, self.oldest = 100, 0
        self.tokens = {"admin-token": ADMIN}
        self.schemas: dict[str, Object] = {"ConfigMap": ssa.with_metadata(_CONFIGMAP)}
        self.validators: dict[str, Draft7Validator] = {}
        for kind, spec in definitions(self.crds).items():
            (version,) = [one for one in spec["versions"] if one["name"] == "v1"]
            schema = copy.deepcopy(version["schema"]["openAPIV3Schema"])
            for name in self.removed:
                schema["properties"]["spec"]["properties"].pop(name, None)
            self.schemas[kind] = ssa.with_metadata(schema)
            checked = strict(schema)
            checked["properties"]["metadata"] = {"type": "object"}
            self.validators[kind] = Draft7Validator(checked)

    # ------------------------------------------------------------------------ authorization

    def authorize(self, request: Request) -> None:
        if request.user == ADMIN:
            return
        self.calls.append((request.verb, request.group, request.resource))
        if not any(self.allows(rule, request) for rule in self.rules_for(request)):
            name = f' "{request.name}"' if request.name else ""
            raise Failure(
                403, "Forbidden",
                f'{request.qualified}{name} is forbidden: User "{request.user}" cannot '
                f'{request.verb} resource "{request.resource}" in API group "{request.group}" '
                f'in the namespace "{request.namespace}"',
            )  # fmt: skip

    def rules_for(self, request: Request) -> list[Object]:
        found = []
        for (plural, namespace, _), binding in self.objects.items():
            if plural != "rolebindings" or namespace != request.namespace:
                continue
            users = {
                f"system:serviceaccount:{one.get('namespace', namespace)}:{one['name']}"
                for one in binding["subjects"]
            }
            role = self.objects.get(("roles", namespace, binding["roleRef"]["name"]))
            if request.user in users and role is not None:
                found += role["rules"]
        return found

    @staticmethod
    def allows(rule: Object, request: Request) -> bool:
        names = rule.get("resourceNames")
        return (
            request.group in rule["apiGroups"]
            and request.resource in rule["resources"]
            and request.verb in rule["verbs"]
            and (not names or request.name in names)
        )

    # ------------------------------------------------------------------------------ objects

    def find(self, request: Request) -> Object:
        found = self.objects.get((request.plural, request.namespace, request.name))
        if found is None:
            raise not_found(request.qualified, request.name)
        return found

    def list(self, request: Request) -> tuple[list[Object], int]:
        found = [
            item
            for (plural, namespace, _), item in sorted(self.objects.items())
            if plural == request.plural
            and namespace == request.namespace
            and selected(item, request.query)
        ]
        return found, self.version

    def create(self, request: Request, item: Object, owners: ssa.Owners) -> Object:
        name = item["metadata"]["name"]
        self._require_namespace(request)
        item = self._admitted(request, {key: one for key, one in item.items() if key != "status"})
        key = (request.plural, request.namespace, name)
        if key in self.objects:
            raise Failure(409, "AlreadyExists", f'{request.qualified} "{name}" already exists')
        self._require_quota(request)
        item["metadata"] |= {
            "uid": str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1,
            "namespace": request.namespace,
        }  # fmt: skip
        if not request.namespace:
            item["metadata"].pop("namespace")
        return self._store(request, key, item, owners, "ADDED")

    def change(self, request: Request, item: Object, owners: ssa.Owners) -> Object:
        key = (request.plural, request.namespace, request.name)
        live = self.objects[key]
        if request.sub == "status":
            item = {**live, "status": item.get("status", {})}
        elif "status" in live and request.plural in ("rayjobs", "rayclusters"):
            item = {**item, "status": live["status"]}
        item = self._admitted(request, item)
        if live.get("immutable") and (item.get("data"), item.get("immutable")) != (
            live.get("data"), True
        ):  # fmt: skip
            why = "field is immutable when `immutable` is set"
            message = f'ConfigMap "{request.name}" is invalid: data: Forbidden: {why}'
            causes = [{"field": "data", "message": why}]
            raise Failure(422, "Invalid", message, {"causes": causes})
        own = ("uid", "creationTimestamp", "generation", "resourceVersion", "managedFields")
        item["metadata"] |= {key: live["metadata"][key] for key in own if key in live["metadata"]}
        if item.get("spec") != live.get("spec"):
            item["metadata"]["generation"] += 1
        if item == live and owners == self.owners.get(key):
            return live
        if item["metadata"].get("deletionTimestamp") and not item["metadata"].get("finalizers"):
            return self._store(request, key, item, owners, "DELETED")
        return self._store(request, key, item, owners, "MODIFIED")

    def delete(self, request: Request) -> Object:
        live = self.find(request)
        key = (request.plural, request.namespace, request.name)
        if live["metadata"].get("finalizers"):
            item = copy.deepcopy(live)
            item["metadata"].setdefault("deletionTimestamp", now())
            return self._store(request, key, item, self.owners[key], "MODIFIED")
        return self._store(request, key, copy.deepcopy(live), {}, "DELETED")

    def compact(self) -> None:
        """Forget all changes so far, so that a watch from an earlier version gets 410."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            self.history.clear()

    def _store(
        self, request: Request, key: tuple[str, str, str], item: Object, owners: ssa.Owners,
        event: str,
    ) -> Object:  # fmt: skip
        if request.query.get("dryRun") == "All":
            return item
        with self.changed:
            self.version += 1
            item["metadata"]["resourceVersion"] = str(self.version)
            item["metadata"]["managedFields"] = [
                {"manager": manager, "operation": operation, "fieldsType": "FieldsV1"}
                for manager, operation in owners
            ]
            if event == "DELETED":
                self.objects.pop(key, None)
                self.owners.pop(key, None)
            else:
                self.objects[key], self.owners[key] = item, owners
            self.history.append((self.version, event, key[0], copy.deepcopy(item)))
            self.changed.notify_all()
        return item

    def _require_namespace(self, request: Request) -> None:
        if request.namespace and ("namespaces", "", request.namespace) not in self.objects:
            raise not_found("namespaces", request.namespace)

    def _require_quota(self, request: Request) -> None:
        counted = f"count/{request.qualified}"
        for (plural, namespace, name), quota in self.objects.items():
            limit = quota.get("spec", {}).get("hard", {}).get(counted)
            if plural != "resourcequotas" or namespace != request.namespace or limit is None:
                continue
            used = sum(key[:2] == (request.plural, namespace) for key in self.objects)
            if used >= int(limit):
                raise Failure(
                    403, "Forbidden",
                    f'{request.qualified} is forbidden: exceeded quota: {name}, requested: '
                    f"{counted}=1, used: {counted}={used}, limited: {counted}={limit}",
                )  # fmt: skip

    def _admitted(self, request: Request, item: Object) -> Object:
        """An object with defaults, checked by the schema of its kind."""
        kind = item["kind"]
        validator = self.validators.get(kind)
        if validator is None:
            return copy.deepcopy(item)
        item = ssa.with_defaults(copy.deepcopy(item), self.schemas[kind])
        causes = []
        for error in validator.iter_errors(item):
            where = ".".join(map(str, error.absolute_path))
            if error.validator == "additionalProperties":
                unknown = set(error.instance) - set(error.schema["properties"])
                fields = ", ".join(f'unknown field "{where}.{one}"' for one in sorted(unknown))
                if request.query.get("fieldValidation") == "Strict":
                    raise Failure(400, "BadRequest", f"strict decoding error: {fields}")
                continue
            causes.append({"field": where, "message": f"Invalid value: {error.message[:200]}"})
        if causes:
            told = ", ".join(f"{one['field']}: {one['message']}" for one in causes)
            name = item["metadata"].get("name", "")
            message = f'{kind}.{request.group} "{name}" is invalid: {told}'
            raise Failure(422, "Invalid", message, {"causes": causes})
        return item


def selected(item: Object, query: dict[str, str]) -> bool:
    """Whether label and field selectors choose an object; equality alone."""
    labels = item["metadata"].get("labels") or {}
    for term in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = term.replace("==", "=").partition("=")
        if labels.get(key) != value:
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, value = term.replace("==", "=").partition("=")
        found: Any = item
        for step in path.split("."):
            found = (found or {}).get(step)
        if (found or "") != value:
            return False
    return True


def not_found(resource: str, name: str) -> Failure:
    return Failure(
        404, "NotFound", f'{resource} "{name}" not found',
        {"name": name, "kind": resource.partition(".")[0]},
    )  # fmt: skip


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def merged(target: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    found = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), value)
    return found


class Handler(BaseHTTPRequestHandler):
    """Turns HTTP into requests of the API."""

    protocol_version = "HTTP/1.1"
    cluster: Cluster
    connections: set[socket.socket]

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def setup(self) -> None:
        super().setup()
        self.connections.add(self.connection)

    def finish(self) -> None:
        self.connections.discard(self.connection)
        with suppress(OSError):  # the client or `close` was faster
            super().finish()

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        try:
            self._serve(body)
        except Failure as failure:
            self._send(failure.code, failure.status())

    def _serve(self, body: Any) -> None:
        cluster, url = self.cluster, urlsplit(self.path)
        if cluster.faults.unavailable:
            cluster.faults.unavailable -= 1
            raise Failure(503, "ServiceUnavailable", "the server is currently unable", {})
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in cluster.tokens:
            raise Failure(401, "Unauthorized", "Unauthorized")
        if url.path == "/apis/ray.io/v1" and not cluster.faults.without_kuberay:
            names = [{"name": name, "namespaced": True} for name in ("rayjobs", "rayclusters")]
            self._send(200, {"kind": "APIResourceList", "resources": names})
            return
        if url.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            self._review(cluster.tokens[token], body)
            return
        route = _ROUTE.fullmatch(url.path)
        if route is None or (route["group"] == "ray.io" and cluster.faults.without_kuberay):
            self._send_text(404, "404 page not found\n")
            return
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        request = Request(
            user=cluster.tokens[token], method=self.command, group=route["group"] or "",
            namespace=route["namespace"] or "", plural=route["plural"], name=route["name"] or "",
            sub=route["sub"] or "", query=query, body=body,
            media=(self.headers.get("Content-Type") or "").partition(";")[0],
        )  # fmt: skip
        if request.plural not in _KINDS or _KINDS[request.plural][0] != request.group:
            self._send_text(404, "404 page not found\n")
            return
        cluster.authorize(request)
        with cluster.changed:
            getattr(self, f"_{request.verb}")(request)

    def _review(self, user: str, body: Object) -> None:
        asked = body["spec"]["resourceAttributes"]
        methods = {verb: method for method, verb in _VERBS.items()}
        request = Request(
            user=user, method=methods.get(asked["verb"], "GET"), group=asked.get("group", ""),
            namespace=asked["namespace"], plural=asked["resource"], query={}, body=None, media="",
            name="x" if asked["verb"] == "get" else "", sub=asked.get("subresource", ""),
        )  # fmt: skip
        with self.cluster.changed:
            rules = self.cluster.rules_for(request)
            is_allowed = any(self.cluster.allows(rule, request) for rule in rules)
        self._send(201, {"kind": "SelfSubjectAccessReview", "status": {"allowed": is_allowed}})

    def _get(self, request: Request) -> None:
        item = self.cluster.find(request)
        if request.sub != "log":
            self._send(200, item)
            return
        text = self.cluster.logs.get((request.name, request.query.get("container", "")))
        if text is None:
            message = f'container in pod "{request.name}" is waiting to start: ContainerCreating'
            raise Failure(400, "BadRequest", message)
        self._send_text(200, text)

    def _list(self, request: Request) -> None:
        items, version = self.cluster.list(request)
        kind = _KINDS[request.plural][1]
        self._send(
            200,
            {"kind": f"{kind}List", "metadata": {"resourceVersion": str(version)}, "items": items},
        )

    def _create(self, request: Request) -> None:
        if request.sub == "token":
            token = secrets.token_hex(16)
            user = f"system:serviceaccount:{request.namespace}:{request.name}"
            self.cluster.tokens[token] = user
            self._send(201, {"kind": "TokenRequest", "status": {"token": token}})
            return
        item = dict(request.body)
        item.setdefault("kind", _KINDS[request.plural][1])
        if "name" not in item["metadata"]:
            generated = item["metadata"].pop("generateName") + secrets.token_hex(3)
            item = {**item, "metadata": {**item["metadata"], "name": generated}}
        self._send(201, self.cluster.create(request, item, {}))

    def _patch(self, request: Request) -> None:
        cluster, manager = self.cluster, request.query.get("fieldManager", "unknown")
        key = (request.plural, request.namespace, request.name)
        live = cluster.objects.get(key)
        kind = _KINDS[request.plural][1]
        if request.media == "application/apply-patch+yaml":
            self._apply(request, live, kind)
            return
        if request.media != "application/merge-patch+json":
            raise Failure(415, "UnsupportedMediaType", request.media)
        if live is None:
            raise not_found(request.qualified, request.name)
        item = merged(live, request.body)
        wanted = request.body.get("metadata", {}).get("resourceVersion")
        if wanted not in (None, live["metadata"]["resourceVersion"]):
            raise Failure(409, "Conflict", "the object has been modified")
        owners = cluster.owners.get(key, {})
        if kind in cluster.schemas and not request.sub:
            owners = ssa.update(live, item, cluster.schemas[kind], owners, manager)
        self._send(200, cluster.change(request, item, owners))

    def _apply(self, request: Request, live: Object | None, kind: str) -> None:
        cluster, schema = self.cluster, self.cluster.schemas[kind]
        if "fieldManager" not in request.query:
            raise Failure(422, "Invalid", "fieldManager: Required value: is required for apply")
        manager, force = request.query["fieldManager"], request.query.get("force") == "true"
        owners = cluster.owners.get((request.plural, request.namespace, request.name), {})
        try:
            item, owners = ssa.apply(
                live or {"metadata": {}}, request.body, schema, owners, manager, force=force
            )
        except ssa.UntypedError as error:
            message = (
                f"failed to create typed patch object ({request.namespace}/{request.name}; "
                f"{request.group}/v1, Kind={kind}): {error}"
            )
            raise Failure(500, "", message) from error
        except ssa.ConflictError as error:
            found = error.args[0]
            causes = [
                {
                    "reason": "FieldManagerConflict", "field": ssa.show(path),
                    "message": f'conflict with "{owner}" using {request.group}/v1',
                }
                for path, owner in found.items()
            ]  # fmt: skip
            told = ", ".join(
                f'conflict with "{owner}": {ssa.show(p)}' for p, owner in found.items()
            )
            message = f"Apply failed with {len(found)} conflict(s): {told}"
            raise Failure(409, "Conflict", message, {"causes": causes}) from error
        if live is None:  # needs the right to create, too
            cluster.authorize(replace(request, method="POST"))
            self._send(201, cluster.create(request, item, owners))
        else:
            self._send(200, cluster.change(request, item, owners))

    def _delete(self, request: Request) -> None:
        self._send(200, self.cluster.delete(request))

    def _watch(self, request: Request) -> None:
        cluster = self.cluster
        since = int(request.query.get("resourceVersion") or 0)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if since < cluster.oldest:
            gone = Failure(410, "Expired", f"too old resource version: {since}")
            self._chunk(json.dumps({"type": "ERROR", "object": gone.status()}) + "\n")
            self._chunk("")
            return
        if cluster.faults.broken_watches:
            cluster.faults.broken_watches -= 1
            self._chunk('{"type": "MODIFIED", "object": {"kind": "Ra')
            self.close_connection = True
            self.connection.shutdown(2)
            return
        end = time.monotonic() + float(request.query.get("timeoutSeconds") or 60)
        while time.monotonic() < end:
            for version, kind, plural, item in list(cluster.history):
                is_here = item["metadata"].get("namespace", "") == request.namespace
                if version > since and plural == request.plural and is_here:
                    since = version
                    if selected(item, request.query):
                        self._chunk(json.dumps({"type": kind, "object": item}) + "\n")
            cluster.changed.wait(min(0.2, max(0.0, end - time.monotonic())))
        metadata = {"resourceVersion": str(cluster.version)}
        mark = {"kind": _KINDS[request.plural][1], "metadata": metadata}
        self._chunk(json.dumps({"type": "BOOKMARK", "object": mark}) + "\n")
        self._chunk("")

    # -------------------------------------------------------------------------- transport

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _send(self, code: int, item: Object) -> None:
        self._send_bytes(code, json.dumps(item).encode(), "application/json")

    def _send_text(self, code: int, text: str) -> None:
        self._send_bytes(code, text.encode(), "text/plain")

    def _send_bytes(self, code: int, data: bytes, media: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class ApiServer:
    """A running stand-in.

    Attributes:
        cluster: The state behind it.
        address: Its address.
    """

    def __init__(self, crds: Path, removed: tuple[str, ...] = ()) -> None:
        self.cluster = Cluster(crds=crds, removed=removed)
        self._connections: set[socket.socket] = set()
        settings = {"cluster": self.cluster, "connections": self._connections}
        handler = type("OwnHandler", (Handler,), settings)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # clients break off watches on purpose
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def kubeconfig(self, token: str = "admin-token") -> Object:
        """A kubeconfig for a user's token."""
        return {
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": self.address}}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "user"}}],
        }  # fmt: skip
