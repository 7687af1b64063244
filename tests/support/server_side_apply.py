"""Server-side apply as Kubernetes documents it: owned fields, conflicts, fields that are given up.

https://kubernetes.io/docs/reference/using-api/server-side-apply/: the merge follows the schema
(`x-kubernetes-list-type`, `x-kubernetes-list-map-keys`, `x-kubernetes-map-type`), a field that
another manager owns with another value is a conflict, and a field that its only manager applies no
more is removed. Fields are paths here, not the API's `fieldsV1`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

Path = tuple[Any, ...]
Object = dict[str, Any]
Owners = dict[tuple[str, str], set[Path]]
"""Paths by field manager and operation, `Apply` or `Update`."""

_NEVER_OWNED = {("apiVersion",), ("kind",)}
_METADATA = {
    "x-kubernetes-preserve-unknown-fields": True,
    "properties": {
        "labels": {"additionalProperties": {}},
        "annotations": {"additionalProperties": {}},
    },
}


class UntypedError(ValueError):
    """A field is not in the schema or has another type; the argument is path and reason."""


_TYPES = {"integer": "numeric (int or float)", "number": "numeric (int or float)",
          "string": "string", "boolean": "boolean"}  # fmt: skip


class ConflictError(Exception):
    """Other managers own fields with other values; the argument maps paths to managers."""


def with_metadata(schema: Object) -> Object:
    """A schema of a kind with what the API server adds to it."""
    return {**schema, "properties": {**schema["properties"], "metadata": _METADATA}}


def leaves(value: Any, schema: Object, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The owned fields of an object, each with its value.

    Raises:
        UntypedError: The schema lacks a field, or wants another type.
    """
    children = None if _is_atomic(value, schema) else list(_children(value, schema, path))
    if not children:
        _require_type(value, schema, path)
        yield path, value
        return
    for key, child, inner in children:
        yield from leaves(child, inner, (*path, key))


def owned(item: Object, schema: Object) -> dict[Path, Any]:
    """Owned fields of a whole object; its name and type are nobody's."""
    return {
        path: value
        for path, value in leaves(item, schema)
        if path
        and path not in _NEVER_OWNED
        and (path[0] != "metadata" or path[1:2] in (("labels",), ("annotations",)))
        and not (path[0] == "metadata" and len(path) < 3)
    }


def apply(
    live: Object, wanted: Object, schema: Object, owners: Owners, manager: str, *, force: bool
) -> tuple[Object, Owners]:
    """The object and its owners after an apply.

    Raises:
        ConflictError: Another manager owns a field with another value.
        UntypedError: The schema lacks a field, or wants another type.
    """
    asked = owned(wanted, schema)
    present = owned(live, schema)
    me = (manager, "Apply")
    conflicts: dict[Path, str] = {}
    for other, fields in owners.items():
        if other == me:
            continue
        for path in fields & asked.keys():
            if present.get(path) != asked[path]:
                conflicts[path] = other[0]
    if conflicts and not force:
        raise ConflictError(conflicts)
    kept = {other: fields - conflicts.keys() for other, fields in owners.items() if other != me}
    others = set().union(*kept.values()) if kept else set()
    merged = copy.deepcopy(live)
    for path in owners.get(me, set()) - asked.keys() - others:
        _remove(merged, path)
    merged = _merge(merged, wanted, schema)
    kept[me] = set(asked)
    return merged, {other: fields for other, fields in kept.items() if fields}


def update(live: Object, changed: Object, schema: Object, owners: Owners, manager: str) -> Owners:
    """The owners after another kind of change: who changes a field owns it."""
    before, after = owned(live, schema), owned(changed, schema)
    mine = {path for path, value in after.items() if path not in before or before[path] != value}
    gone = before.keys() - after.keys()
    kept = {other: fields - mine - gone for other, fields in owners.items()}
    me = (manager, "Update")
    kept[me] = kept.get(me, set()) | mine
    return {other: fields for other, fields in kept.items() if fields}


def show(path: Path) -> str:
    """`.spec.containers[name="x"].image`."""
    text = ""
    for step in path:
        if isinstance(step, tuple):
            text += "[" + ",".join(f'{key}="{value}"' for key, value in step) + "]"
        else:
            text += f".{step}"
    return text


def with_defaults(value: Any, schema: Object) -> Any:
    """A value with the schema's defaults."""
    if isinstance(value, dict):
        found = {}
        for key, inner in value.items():
            found[key] = with_defaults(inner, schema.get("properties", {}).get(key, {}))
        for key, inner in schema.get("properties", {}).items():
            if key not in found and "default" in inner:
                found[key] = copy.deepcopy(inner["default"])
        return found
    if isinstance(value, list):
        return [with_defaults(one, schema.get("items", {})) for one in value]
    return value


def _require_type(value: Any, schema: Object, path: Path) -> None:
    wanted = schema.get("type")
    if isinstance(value, bool):
        found = "boolean"
    else:
        found = {str: "string", int: "integer", float: "number"}.get(type(value), wanted)
    if wanted in _TYPES and found != wanted and not (wanted == "number" and found == "integer"):
        raise UntypedError(f"{show(path)}: expected {_TYPES[wanted]}, got {found}")


def _is_atomic(value: Any, schema: Object) -> bool:
    if isinstance(value, dict):
        return schema.get("x-kubernetes-map-type") == "atomic"
    return not isinstance(value, list) or schema.get("x-kubernetes-list-type") not in (
        "map", "set",
    )  # fmt: skip


def _children(value: Any, schema: Object, path: Path) -> Iterator[tuple[Any, Any, Object]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield key, child, _schema_of(key, schema, (*path, key))
    else:
        for child in value:
            yield _key(child, schema), child, schema.get("items", {})


def _schema_of(key: str, schema: Object, path: Path) -> Object:
    found = schema.get("properties", {}).get(key)
    if found is not None:
        return dict(found)
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        return extra
    if schema.get("x-kubernetes-preserve-unknown-fields") or "properties" not in schema:
        return {}
    raise UntypedError(f"{show(path)}: field not declared in schema")


def _key(item: Any, schema: Object) -> Path:
    if schema.get("x-kubernetes-list-type") == "set":
        return (("", item),)
    fields = schema["items"]["properties"]
    return tuple(
        (name, item.get(name, fields.get(name, {}).get("default")))
        for name in schema["x-kubernetes-list-map-keys"]
    )


def _merge(live: Any, wanted: Any, schema: Object) -> Any:
    if _is_atomic(wanted, schema) or type(live) is not type(wanted):
        return copy.deepcopy(wanted)
    if isinstance(wanted, dict):
        return {
            **live,
            **{
                key: _merge(live.get(key), value, _schema_of(key, schema, (key,)))
                for key, value in wanted.items()
            },
        }
    had = {_key(one, schema): one for one in live}
    asked = {_key(one, schema): one for one in wanted}
    items = schema.get("items", {})
    merged = [_merge(had.get(key), one, items) for key, one in asked.items()]
    return [one for key, one in had.items() if key not in asked] + merged


def _remove(item: Any, path: Path) -> None:
    """Remove a field, and what becomes empty around it."""
    step, *rest = path
    if isinstance(step, tuple):
        place = next(
            (i for i, one in enumerate(item)
             if all((one.get(key, value) if key else one) == value for key, value in step)), None
        )  # fmt: skip
        if place is None:
            return
        if rest:
            _remove(item[place], tuple(rest))
        if not rest or item[place] == {}:
            del item[place]
    elif step in item:
        if rest:
            _remove(item[step], tuple(rest))
        if not rest or item[step] in ({}, []):
            del item[step]
