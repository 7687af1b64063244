"""Records of wrong shape: a JSON value with one value replaced or taken out."""

import copy
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_HUGE = "@a number of 401 digits@"
_WRONG: tuple[Any, ...] = (
    [1], {}, {"a": [1]}, "", "x", "nan", "y" * 5000, None, True, -1, 0, 2.5, 1e308, 10**30,
    float("nan"), float("inf"), _HUGE,
)  # fmt: skip


def mutations(record: Any) -> Iterator[tuple[str, str]]:
    """What was changed, and the JSON text, for each value of a record and each kind of change."""
    for path in _paths(record):
        where = ".".join(map(str, path))
        for wrong in _WRONG:
            yield f"{where}={str(wrong)[:12]}", _as_json(_changed(record, path, wrong))
        yield f"{where} missing", _as_json(_changed(record, path))


def sample(cases: Sequence[T], size: int) -> list[T]:
    """The same cases at every call."""
    return random.Random(7).sample(list(cases), min(size, len(cases)))


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else ()
    for name, inner in enumerate(value) if isinstance(value, list) else items:
        yield from _paths(inner, (*at, name))


def _changed(record: Any, path: tuple[Any, ...], *new: Any) -> Any:
    changed = copy.deepcopy(record)
    owner = changed
    for part in path[:-1]:
        owner = owner[part]
    if new:
        owner[path[-1]] = new[0]
    else:
        del owner[path[-1]]
    return changed


def _as_json(value: Any) -> str:
    return json.dumps(value).replace(json.dumps(_HUGE), "1" + "0" * 400)
