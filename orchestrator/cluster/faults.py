"""What the API server refuses or fails at, as one sentence with a remedy.

The statuses and reasons are those of Kubernetes' API conventions (kubernetes/community,
contributors/devel/sig-architecture/api-conventions.md, "Response Status Kind").
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import ClusterError
from orchestrator.wording import one_line, shorten

NEEDED_KUBERAY = "1.7"
_UNDECLARED = re.compile(r"\.([\w.\[\]\"=,-]+): field not declared in schema")
_UNKNOWN = re.compile(r'unknown field "([^"]+)"')
_UNTYPED = "failed to create typed patch object"
"""What a server-side apply says of a value of another type than the schema's."""

_OWNERS = re.compile(r'conflicts? with "([^"]+)"')
_GUIDE = "k8s/README.md"


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An answer of the API server that is no success.

    Attributes:
        status: HTTP status.
        reason: Kubernetes' reason, such as `Forbidden`; empty if the answer has none.
        message: Its message.
        causes: Fields and messages of an invalid object.
        retry_after_s: Seconds that the server asks to wait; `None` if it does not say.
    """

    status: int
    reason: str
    message: str
    causes: tuple[tuple[str, str], ...] = ()
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return f"{self.status} {self.reason}: {self.message}".strip()

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (429, 500, 502, 503, 504) and not unknown_fields(self.message)


class Refused(Exception):  # noqa: N818  a ClusterError takes its place where a command ends
    """The API server answered with a refusal, which is the only argument."""

    @property
    def answer(self) -> Refusal:
        """The answer."""
        found: Refusal = self.args[0]
        return found


class Absent(Refused):
    """The object of a request is not there."""


class Unreachable(Exception):  # noqa: N818
    """The API server did not answer, or the connection broke; the argument is the reason."""


def read_refusal(status: int, body: Any) -> Refusal:
    """The refusal in an answer's body, which may be a `Status`, text or nothing."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        return Refusal(status=status, reason="", message=shorten(one_line(text), 300))
    details = values.get("details") or {}
    causes = tuple(
        (str(one.get("field", "")), str(one.get("message", "")))
        for one in details.get("causes") or ()
    )
    return Refusal(
        status=status,
        reason=str(values.get("reason") or ""),
        message=str(values.get("message") or ""),
        causes=causes,
        retry_after_s=details.get("retryAfterSeconds"),
    )


def unknown_fields(message: str) -> tuple[str, ...]:
    """Fields that the cluster's schema of a kind lacks, as a message names them."""
    found = _UNDECLARED.findall(message) + _UNKNOWN.findall(message)
    return tuple(dict.fromkeys(found))


def explain(refused: Refusal, doing: str, namespace: str) -> ClusterError:
    """The error for a refusal.

    Args:
        refused: The answer.
        doing: What was asked for, such as `RayJob wordnet-classes`.
        namespace: The namespace.
    """
    fields = unknown_fields(refused.message)
    if fields:
        return _too_old(doing, fields)
    if "exceeded quota" in refused.message or "LimitRange" in refused.message:
        return _quota(refused, doing, namespace)
    if _UNTYPED in refused.message:
        return _invalid(refused, doing, namespace)
    told = {
        401: _unknown_user,
        403: _forbidden,
        404: _missing,
        409: _conflict,
        422: _invalid,
    }.get(refused.status, _other)
    return told(refused, doing, namespace)


def no_kinds(namespace: str) -> ClusterError:
    """The error for a cluster without KubeRay."""
    return ClusterError(
        f"RayJob: the cluster does not know the kind ray.io/v1 RayJob; allowed: a cluster with "
        f"KubeRay {NEEDED_KUBERAY} or newer. Install it (kubectl apply --server-side -k "
        f"k8s/operator), then submit into {namespace} again."
    )


def _too_old(doing: str, fields: tuple[str, ...]) -> ClusterError:
    return ClusterError(
        f"{doing}: the cluster's kind RayJob has no {', '.join(fields[:3])}; allowed: KubeRay "
        f"{NEEDED_KUBERAY} or newer, whose kinds have it. Upgrade the operator with its kinds "
        "(kubectl apply --server-side -k k8s/operator), or correct the overlay."
    )


def _quota(refused: Refusal, doing: str, namespace: str) -> ClusterError:
    return ClusterError(
        f"{doing}: a quota of namespace {namespace} is used up ({one_line(refused.message)}); "
        "allowed: what `kubectl describe resourcequota` shows as left. Let another sweep end, "
        "delete RayJobs that have ended, or ask for a larger quota."
    )


def _unknown_user(refused: Refusal, doing: str, _namespace: str) -> ClusterError:
    return ClusterError(
        f"{doing}: the API server does not know this user ({refused}); allowed: a user whose "
        "login has not expired. Log in to the cluster again, or name another --context."
    )


def _forbidden(refused: Refusal, doing: str, namespace: str) -> ClusterError:
    if "denied the request" in refused.message:
        return ClusterError(
            f"{doing}: a policy of the cluster refused it ({one_line(refused.message)}); allowed: "
            "what the policy says. Change the overlay, or ask the cluster's administrators."
        )
    return ClusterError(
        f"{doing}: this user may not do that ({one_line(refused.message)}); allowed: users with "
        f"the Role sweep-submitter in namespace {namespace}. Ask for a RoleBinding to it, or name "
        "another --context or --namespace."
    )


def _missing(refused: Refusal, doing: str, namespace: str) -> ClusterError:
    if "namespaces" in refused.message:
        return ClusterError(
            f"--namespace: got {namespace!r}, which the cluster does not have; allowed: a "
            f"namespace with the platform of {_GUIDE}. Apply the platform, or name another "
            "namespace."
        )
    return ClusterError(
        f"{doing}: it is not there ({one_line(refused.message)}); allowed: a submitted sweep. "
        "`kubectl get rayjobs` lists them."
    )


def _conflict(refused: Refusal, doing: str, _namespace: str) -> ClusterError:
    fields = ", ".join(field for field, _ in refused.causes[:3]) or "some of its fields"
    owners = ", ".join(dict.fromkeys(_OWNERS.findall(refused.message)))
    if not owners:
        return ClusterError(
            f"{doing}: it changed meanwhile ({one_line(refused.message)}); allowed: one change at "
            "a time. Run the same command again."
        )
    return ClusterError(
        f"{doing}: {fields} was set by {owners}; allowed: fields that no other program has "
        "changed. Wait for the sweep's end and use lorchestra resume, or delete the RayJob and "
        "submit the sweep again: it continues from its storage."
    )


def _invalid(refused: Refusal, doing: str, _namespace: str) -> ClusterError:
    told = "; ".join(f"{field}: {message}" for field, message in refused.causes[:3])
    told = told or refused.message.rpartition("): ")[2]
    return ClusterError(
        f"{doing}: the cluster's schema refuses it ({one_line(told)}); "
        f"allowed: what KubeRay {NEEDED_KUBERAY} takes. Correct the overlay, or upgrade KubeRay."
    )


def _other(refused: Refusal, doing: str, _namespace: str) -> ClusterError:
    return ClusterError(
        f"{doing}: the API server refused the request ({one_line(str(refused))}); allowed: a "
        "cluster that answers. Run the same command again, and look at the server if it stays so."
    )
