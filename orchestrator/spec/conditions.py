"""Conditions on several settings: when a knob is searched, and what no trial may have.

lora.dropout: {uniform: [0.0, 0.1], when: {lora.rank: [8, 16]}}
forbid: [{lora.rank: 16, lora.targets: [all-linear, mlp]}]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, get_args, get_origin

from orchestrator.spec.complaint import complaint, unknown
from orchestrator.spec.distributions import Distribution, parse_value
from trainables.spec import TARGET_GROUPS


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Settings with allowed values; the condition holds if all settings match."""

    allowed: Mapping[str, tuple[Any, ...]]

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether each setting is present with an allowed value."""
        return all(
            name in values and values[name] in options for name, options in self.allowed.items()
        )

    def fails(self, values: Mapping[str, Any], absent: Iterable[str]) -> bool:
        """Whether the condition cannot hold for any values of the unknown settings."""
        return any(
            name in absent or (name in values and values[name] not in options)
            for name, options in self.allowed.items()
        )

    def __str__(self) -> str:
        return " with ".join(
            f"{name} {' or '.join(map(str, options))}" for name, options in self.allowed.items()
        )


def parse_condition(where: str, written: object, hints: Mapping[str, Any]) -> Condition:
    """Check a condition as written.

    Args:
        where: Dotted name for messages, such as `forbid[0]`.
        written: Value in the sweep file.
        hints: Types of the settings that the condition may name.

    Raises:
        SweepSpecError: A name is unknown, or a value is not valid for its setting.
    """
    if not isinstance(written, Mapping) or not written:
        raise complaint(
            where,
            written,
            "settings with a value or a list of values each",
            "Write it as {lora.rank: 16, lora.targets: [mlp, all-linear]}.",
        )
    allowed = {}
    for name, value in written.items():
        if name not in hints:
            raise unknown(where, str(name), hints)
        place, hint = f"{where}.{name}", hints[name]
        options = _options(value, hint)
        if not options:
            raise complaint(place, value, "a value or a list of values", "List at least one.")
        allowed[name] = tuple(parse_value(place, option, hint) for option in options)
    return Condition(allowed=allowed)


def require_taken(
    where: str,
    condition: Condition,
    knobs: Mapping[str, Distribution],
    otherwise: Mapping[str, Any],
) -> None:
    """Refuse a condition on a value that the knob never takes.

    Args:
        where: Dotted name for messages.
        condition: Condition to check; settings that are not searched may have any value.
        knobs: The searched knobs.
        otherwise: Values of knobs in configurations that do not search the knob.

    Raises:
        SweepSpecError: A value in the condition is never taken.
    """
    for name, options in condition.allowed.items():
        knob = knobs.get(name)
        if knob is None:
            continue
        if knob.size is None:
            raise complaint(
                f"{where}.{name}",
                options[0] if len(options) == 1 else list(options),
                "a knob of choices or whole numbers",
                "A continuous range rarely gives an exact value: use choices instead.",
            )
        for option in options:
            if not knob.holds(option) and (name, option) not in otherwise.items():
                raise complaint(
                    f"{where}.{name}",
                    option,
                    f"what space.{name} takes ({knob.allowed})",
                    "Correct the value, or add it to the knob.",
                )


def parents_first(needs: Mapping[str, Iterable[str]], where: str) -> tuple[str, ...]:
    """Topological order: each name after the names it depends on.

    Raises:
        SweepSpecError: Names depend on each other; `where` is the key with the dependency.
    """
    graph = {name: [each for each in needs[name] if each in needs] for name in needs}
    try:
        return tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = list(reversed(error.args[1]))
        raise complaint(
            f"space.{circle[0]}{where}",
            " needs ".join(circle),
            "settings without a circle of dependencies",
            "Remove one of these dependencies.",
        ) from error


def _options(written: object, hint: Any) -> Sequence[Any]:
    """The listed values; a single list of layer names counts as one value."""
    if not isinstance(written, list | tuple):
        return [written]
    takes_lists = any(get_origin(option) is tuple for option in get_args(hint))
    names_layers = any(isinstance(each, str) and each not in TARGET_GROUPS for each in written)
    return [written] if takes_lists and names_layers else written
