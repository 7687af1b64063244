"""Changes of a sweep file on the command line: `--set lora.rank=16`.

The value is YAML, so that a distribution is written as in the file:
`--set 'space.optim.learning_rate={log_uniform: [1e-5, 1e-3]}'`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.errors import SweepSpecError
from orchestrator.sweepfile.reading import YamlText
from orchestrator.wording import refusal

_OPTION = "--set"
_WHOLE_KEYS = ("space",)
"""Sections whose keys are themselves dotted names: `space.lora.rank` is the key `lora.rank`."""
_COMPUTED = {"lora.alpha": "lora.alpha_per_rank"}
"""Settings that a knob of another name decides, too."""


@dataclass(frozen=True)
class Change:
    """One changed field of a sweep file.

    Attributes:
        field: Its dotted name.
        value: The plain value.
        written: The option's text, for messages.
    """

    field: str
    value: Any
    written: str

    @property
    def keys(self) -> list[str]:
        """The keys from the top of the file to the field."""
        section, _, rest = self.field.partition(".")
        if section in _WHOLE_KEYS:
            return [section, rest] if rest else [section]
        return self.field.split(".")

    def taken_from(self, values: Mapping[str, Any]) -> Change:
        """The same change with the value that a mapping of sections has for the field."""
        value: Any = values
        for key in self.keys:
            value = value[key]
        return replace(self, value=value)


def add_set_option(parser: argparse.ArgumentParser) -> None:
    """Add `--set` to a command that reads a sweep file; `options.set` is a list of texts."""
    parser.add_argument(
        _OPTION,
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the file, such as lora.rank=16 (value in YAML); repeatable",
    )


def parse_changes(written: Sequence[str]) -> tuple[Change, ...]:
    """The changes from texts such as `lora.rank=16`.

    Raises:
        SweepSpecError: A text has no field or value, the value is not YAML, or a field is changed
            twice.
    """
    changes = tuple(map(_parse_change, written))
    for i, change in enumerate(changes):
        if change.field in [earlier.field for earlier in changes[:i]]:
            raise SweepSpecError(
                f"{_OPTION} {change.field}: given twice; allowed: each field once. Remove one."
            )
    return changes


def _parse_change(written: str) -> Change:
    field, sign, value = written.partition("=")
    field = field.strip()
    if not (sign and value.strip()) or not all(field.split(".")):
        raise SweepSpecError(
            refusal(
                _OPTION,
                written,
                "FIELD=VALUE, such as lora.rank=16",
                "Write null for no value, and quote the option in the shell.",
            )
        )
    return Change(field, YamlText(f"{_OPTION} {field}", value).value(), written)


def apply_changes(values: Mapping[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    """A sweep's plain values with the changes; the given values stay as they are.

    Raises:
        SweepSpecError: A change would have no effect, as the space searches the setting.
    """
    changed = dict(values)
    for change in changes:
        changed = _with(changed, change.keys, change.value)
    for change in changes:
        _require_effect(change, changed.get("space"))
    return changed


def _with(values: Mapping[Any, Any], keys: Sequence[str], value: Any) -> dict[Any, Any]:
    key, *rest = keys
    inner = values.get(key)
    if not rest:
        return {**values, key: value}
    return {**values, key: _with(inner if isinstance(inner, Mapping) else {}, rest, value)}


def _require_effect(change: Change, space: Any) -> None:
    """Refuse a fixed value for a setting that every trial takes from the space."""
    knobs = space if isinstance(space, Mapping) else {}
    for name in filter(None, (change.field, _COMPUTED.get(change.field))):
        written = knobs.get(name)
        if written is not None and not (isinstance(written, Mapping) and "when" in written):
            raise SweepSpecError(
                refusal(
                    f"{_OPTION} {change.field}",
                    change.value,
                    "settings that space does not search",
                    f"To fix it in all trials, change its knob: {_OPTION} space.{name}=…",
                    flaw=f"which has no effect, as space.{name} decides it",
                )
            )


def show_change(error: SweepSpecError, changes: Sequence[Change]) -> SweepSpecError | None:
    """The error with the change that it is about; `None` if it is about none of them."""
    field = str(error).partition(": ")[0]
    for change in changes:
        if f"{field}.".startswith(f"{change.field}.") or f"{change.field}.".startswith(
            f"{field}."
        ):
            return SweepSpecError(f"{error}\nfrom {_OPTION} {change.written}")
    return None
