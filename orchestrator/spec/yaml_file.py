"""Reading of a YAML file as a mapping; errors name the line.

A short file can describe a huge value: aliases multiply, brackets nest. So size and depth are
checked on the parser's events, before any value is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import SweepSpecError
from orchestrator.spec.complaint import complaint, remedy_for_path

MAX_BYTES = 200_000
MAX_VALUES = 10_000
"""Most values in a file, where each alias counts as often as its anchor has values."""
MAX_DEPTH = 24
MAX_TEXT = 20_000
"""Most characters of one value."""
_MAX_DIGITS = 40

_PLAIN_TAGS = {
    "!",
    *(
        f"tag:yaml.org,2002:{name}"
        for name in ("str", "int", "float", "bool", "null", "seq", "map")
    ),
}


class _UniqueKeyLoader(yaml.SafeLoader):
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
        value: int = super().construct_yaml_int(node)
        return value


_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:int", _UniqueKeyLoader.construct_yaml_int)


def load_mapping(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Raises:
        SweepSpecError: The file is missing, is not YAML or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SweepSpecError(
            f"sweep file: cannot read {str(path)!r} ({error}); allowed: a readable UTF-8 YAML "
            f"file. {remedy_for_path(path)}"
        ) from error
    try:
        _require_bounded(text, path)
        # The loader is a SafeLoader: it builds plain values only.
        values = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        place = _place(path, error.problem_mark or error.context_mark)
        raise SweepSpecError(
            f"{place}: {error.problem}; allowed: YAML. Correct the file there."
        ) from error
    except yaml.YAMLError as error:
        raise SweepSpecError(f"{path}: {error}; allowed: YAML. Correct the file.") from error
    if not isinstance(values, dict):
        raise complaint(str(path), values, "a mapping of settings", "Start with `name: my-sweep`.")
    return values


def _require_bounded(text: str, path: Path) -> None:
    """Refuse a text whose value is too large or nests too deeply.

    Raises:
        SweepSpecError: A bound is exceeded, or a tag stands for more than a plain value.
        YAMLError: The text is not YAML.
    """
    size = len(text.encode(errors="replace"))
    if size > MAX_BYTES:
        raise complaint(
            str(path),
            f"{size:,} bytes",
            f"{MAX_BYTES:,} bytes",
            "Put rows into files of their own.",
        )
    for event, depth, values in _measure(text, path):
        _require_plain(event, path)
        if depth > MAX_DEPTH:
            raise _refuse(event, path, f"values nest {depth} deep", f"{MAX_DEPTH} levels")
        if values > MAX_VALUES:
            allowed = f"{MAX_VALUES:,} values, where an alias counts with all it stands for"
            raise _refuse(event, path, f"more than {MAX_VALUES:,} values", allowed)


def _measure(text: str, path: Path) -> Iterator[tuple[yaml.Event, int, int]]:
    """Each event of a text, with the depth and the number of values up to there."""
    containers: list[tuple[str | None, int]] = []  # anchor, and number of values before
    sizes: dict[str | None, int] = {}
    values = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in dict(containers):
                raise _refuse(event, path, f"*{event.anchor} contains itself", "plain values")
            values += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            values += 1
        if isinstance(event, yaml.CollectionStartEvent):
            containers.append((event.anchor, values - 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = containers.pop()
            sizes[anchor] = values - before
        yield event, len(containers), values


def _require_plain(event: yaml.Event, path: Path) -> None:
    tag = getattr(event, "tag", None) or "!"
    if tag not in _PLAIN_TAGS:
        raise _refuse(event, path, f"the tag {tag[:60]!r}", "values without a tag")
    value = getattr(event, "value", "")
    if len(value) > MAX_TEXT:
        shown = f"a text of {len(value):,} characters ({value[:20]}…)"
        raise _refuse(event, path, shown, f"{MAX_TEXT:,} characters")


def _refuse(event: yaml.Event, path: Path, flaw: str, allowed: str) -> SweepSpecError:
    place = _place(path, event.start_mark)
    return SweepSpecError(f"{place}: got {flaw}; allowed: {allowed}. Correct the file there.")


def _place(path: Path, mark: Any) -> str:
    """File, line and column of a mark of PyYAML, if there is one."""
    return f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
