"""Settings that decide memory and time alone, not a trial's result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEMORY_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "base": ("dense",),
    "optim": ("gradient_checkpointing",),
}
"""Names by section. No digest covers them, and they may change when a sweep is continued."""

MEMORY_NAMES = tuple(
    f"{section}.{one}" for section, names in MEMORY_SETTINGS.items() for one in names
)
"""The same settings by dotted name."""


def deciding_settings(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a section of any version, without its `MEMORY_SETTINGS`."""
    left_out = MEMORY_SETTINGS.get(section, ())
    return {name: value for name, value in values.items() if name not in left_out}
