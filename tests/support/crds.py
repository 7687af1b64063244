"""Strict JSON schemas from CustomResourceDefinitions."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator

_NOT_CHECKED = ("default", "description", "format")


def strict(schema: Any) -> Any:
    """An OpenAPI schema as a JSON schema that refuses properties it does not list.

    The API server drops such properties silently, so that a misspelt field does nothing.
    """
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        pattern = schema.get("pattern", "")
        return {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": pattern}]}
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            found[key] = {name: strict(one) for name, one in value.items()}
        elif key not in _NOT_CHECKED and not key.startswith("x-"):
            found[key] = strict(value)
    is_open = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if "properties" in found and "additionalProperties" not in found and not is_open:
        found["additionalProperties"] = False
    return found


@functools.cache
def definitions(folder: Path) -> dict[str, Any]:
    """The `spec` of each CustomResourceDefinition in a folder, by kind."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    files = sorted(folder.glob("ray.io_*.yaml"))
    specs = [yaml.load(file.read_text(), Loader=loader)["spec"] for file in files]
    return {spec["names"]["kind"]: spec for spec in specs}


@functools.cache
def validators(folder: Path) -> dict[tuple[str, str], Draft7Validator]:
    """Validators of all versions of the kinds in a folder of CRDs, by apiVersion and kind."""
    found = {}
    for spec in definitions(folder).values():
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            # The API server's own: CRDs only say that it is an object.
            schema["properties"]["metadata"] = {"type": "object"}
            name = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
            found[name] = Draft7Validator(schema)
    return found


def problems(validator: Draft7Validator, item: Any) -> list[str]:
    """What a validator finds, each with the path to it."""
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for error in validator.iter_errors(item)
    ]
