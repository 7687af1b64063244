"""Trials' specs in the log, told by what differs from the first trial's.

A spec has some sixty fields, of which a trial changes a few. The first `trial_started` of a log
has the whole `spec`; a later one has `changed` in its place, the fields whose values differ:

    {"event": "trial_started", "trial": 7, ..., "changed": {"lora": {"rank": 4}, "seed": 7}}
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

WHOLE, CHANGED = "spec", "changed"
"""Fields of a line: a whole spec, or the values that differ."""


class FirstSpec:
    """The spec of a log's first trial, as far as the log was read or written."""

    def __init__(self) -> None:
        self._first: Mapping[str, Any] | None = None

    def learn(self, spec: Mapping[str, Any]) -> None:
        """Keep the spec if it is the first one."""
        if self._first is None:
            self._first = spec

    def shorten(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values of a `trial_started` line, with `changed` in place of `spec` if possible."""
        first, spec = self._first, values[WHOLE]
        if first is None or not _is_alike(first, spec):
            return values
        changed = {}
        for name, value in spec.items():
            if value == first[name]:
                continue
            if isinstance(value, Mapping):
                value = {key: one for key, one in value.items() if one != first[name][key]}
            changed[name] = value
        return {**{name: one for name, one in values.items() if name != WHOLE}, CHANGED: changed}

    def restore(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a `trial_started` line, with the whole `spec`.

        Raises:
            ValueError: No trial with a whole spec is before this line, or `changed` is no part of
                a spec.
        """
        if CHANGED not in values:
            return dict(values)
        changed = values[CHANGED]
        if self._first is None:
            raise ValueError("no trial with a whole spec is before it")
        if not isinstance(changed, Mapping) or not changed.keys() <= self._first.keys():
            raise ValueError(f"{CHANGED} is no part of a spec")
        spec = copy.deepcopy(dict(self._first))
        for name, value in changed.items():
            is_section = isinstance(spec[name], Mapping)
            if is_section and not isinstance(value, Mapping):
                raise ValueError(f"{CHANGED}.{name} is no section of a spec")
            spec[name] = {**spec[name], **value} if is_section else value
        return {**{name: one for name, one in values.items() if name != CHANGED}, WHOLE: spec}


def _is_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two specs have the same sections with the same fields."""
    return one.keys() == other.keys() and all(
        isinstance(value, Mapping) == isinstance(other[name], Mapping)
        and (not isinstance(value, Mapping) or value.keys() == other[name].keys())
        for name, value in one.items()
    )
