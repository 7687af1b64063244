"""What `--json` prints: the registry's values as one JSON document for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from registry import AdapterVersion

_LEFT_OUT = ("examples",)
"""Fields with an entry for each row."""


def to_json(value: object) -> str:
    """A value of the registry as an indented JSON text.

    Fields keep their names; times are ISO 8601 texts; a number that is not finite is null.
    """
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def version_fields(version: AdapterVersion) -> dict[str, Any]:
    """The fields of a version, with its reference, form and kept steps."""
    return {
        "ref": str(version.ref),
        **{one.name: getattr(version, one.name) for one in dataclasses.fields(version)},
        "form": version.form,
        "checkpoints": version.checkpoints,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, AdapterVersion):
        value = version_fields(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if dataclasses.is_dataclass(value):
        names = [one.name for one in dataclasses.fields(value) if one.name not in _LEFT_OUT]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value
