"""YAML as a sweep file uses it: plain values, each key once, and `1e-4` is a number."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

_MAX_DIGITS = 40

_FLOAT = "tag:yaml.org,2002:float"
EXPONENT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
"""Numbers with an exponent, as YAML 1.2 has them: YAML 1.1 wants a dot and a sign, too."""


class SweepLoader(yaml.SafeLoader):
    """Loader that refuses a repeated key; PyYAML would silently keep the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that the mapping already has."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Refuse a number with too many digits, as Python converts them in quadratic time."""
        if len(node.value) > _MAX_DIGITS:
            raise yaml.constructor.ConstructorError(
                problem=f"a whole number has {len(node.value)} digits",
                problem_mark=node.start_mark,
            )
        value: int = self._construct_tagged(super().construct_yaml_int, node, "whole number")
        return value

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """Refuse a text with the tag of a number."""
        value: float = self._construct_tagged(super().construct_yaml_float, node, "number")
        return value

    def construct_yaml_bool(self, node: yaml.ScalarNode) -> bool:
        """Refuse a text with the tag of a boolean."""
        value: bool = self._construct_tagged(super().construct_yaml_bool, node, "boolean")
        return value

    def construct_yaml_timestamp(self, node: yaml.ScalarNode) -> Any:
        """Read what looks like a day but is none, such as 2026-02-31, as text."""
        try:
            return super().construct_yaml_timestamp(node)
        except ValueError:
            return node.value

    @staticmethod
    def _construct_tagged(
        construct: Callable[[yaml.ScalarNode], Any], node: yaml.ScalarNode, noun: str
    ) -> Any:
        # Without a tag, the resolver gives only texts that can be read.
        try:
            return construct(node)
        except (ValueError, LookupError) as error:
            raise yaml.constructor.ConstructorError(
                problem=f"{node.value[:40]!r} has the tag of a {noun}",
                problem_mark=node.start_mark,
            ) from error


class SweepDumper(yaml.SafeDumper):
    """Dumper whose text `SweepLoader` reads as the same values."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent the items of a list below their key."""
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value that occurs twice in both places."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Write a text with line breaks or control characters in one line, with escapes."""
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


SweepLoader.add_constructor("tag:yaml.org,2002:int", SweepLoader.construct_yaml_int)
SweepLoader.add_constructor(_FLOAT, SweepLoader.construct_yaml_float)
SweepLoader.add_constructor("tag:yaml.org,2002:bool", SweepLoader.construct_yaml_bool)
SweepLoader.add_constructor("tag:yaml.org,2002:timestamp", SweepLoader.construct_yaml_timestamp)
SweepDumper.add_representer(str, SweepDumper.represent_str)
for _kind in (SweepLoader, SweepDumper):
    _kind.add_implicit_resolver(_FLOAT, EXPONENT, list("-+.0123456789"))
