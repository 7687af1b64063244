"""Bounds on a YAML text, checked before any of its values is built.

A short file can describe a huge value: aliases multiply, brackets nest. So size and depth are
checked on the parser's events.
"""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from orchestrator.errors import SweepSpecError
from orchestrator.sweepfile.places import Place

MAX_BYTES = 200_000
MAX_VALUES = 10_000
"""Most values in a file, where each alias counts as often as its anchor has values."""
MAX_DEPTH = 24
MAX_TEXT = 20_000
"""Most characters of one value."""

_PLAIN_TAGS = {
    "!",
    *(
        f"tag:yaml.org,2002:{name}"
        for name in ("str", "int", "float", "bool", "null", "seq", "map")
    ),
}


def require_bounded(text: str, name: str) -> None:
    """Refuse a text whose value is too large or nests too deeply.

    Args:
        text: The YAML text.
        name: Its file or option, for messages.

    Raises:
        SweepSpecError: A bound is exceeded, or a tag stands for more than a plain value.
        YAMLError: The text is not YAML.
    """
    size = len(text.encode(errors="replace"))
    if size > MAX_BYTES:
        raise SweepSpecError(
            f"{name}: got {size:,} bytes; allowed: {MAX_BYTES:,} bytes. Put rows into files of "
            "their own."
        )
    for event, depth, values in _measure(text, name):
        _require_plain(event, name)
        if depth > MAX_DEPTH:
            raise _refuse(event, name, f"values nest {depth} deep", f"{MAX_DEPTH} levels")
        if values > MAX_VALUES:
            allowed = f"{MAX_VALUES:,} values, where an alias counts with all it stands for"
            raise _refuse(event, name, f"more than {MAX_VALUES:,} values", allowed)


def _measure(text: str, name: str) -> Iterator[tuple[yaml.Event, int, int]]:
    """Each event of a text, with the depth and the number of values up to there."""
    containers: list[tuple[str | None, int]] = []  # anchor, and number of values before
    sizes: dict[str | None, int] = {}
    values = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in dict(containers):
                raise _refuse(event, name, f"*{event.anchor} contains itself", "plain values")
            values += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            values += 1
        if isinstance(event, yaml.CollectionStartEvent):
            containers.append((event.anchor, values - 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = containers.pop()
            sizes[anchor] = values - before
        yield event, len(containers), values


def _require_plain(event: yaml.Event, name: str) -> None:
    tag = getattr(event, "tag", None) or "!"
    if tag not in _PLAIN_TAGS:
        raise _refuse(event, name, f"the tag {tag[:60]!r}", "values without a tag")
    value = getattr(event, "value", "")
    if len(value) > MAX_TEXT:
        shown = f"a text of {len(value):,} characters ({value[:20]}…)"
        raise _refuse(event, name, shown, f"{MAX_TEXT:,} characters")


def _refuse(event: yaml.Event, name: str, flaw: str, allowed: str) -> SweepSpecError:
    place = Place.of(event.start_mark)
    return SweepSpecError(
        f"{name}, {place}: got {flaw}; allowed: {allowed}. Correct the file there."
    )
