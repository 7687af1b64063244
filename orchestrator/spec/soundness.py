"""Checks of a search space: its values make trials, and the algorithm can search it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.errors import SweepSpecError
from orchestrator.spec.complaint import complaint, require
from orchestrator.spec.distributions import Choice, Distribution, Range
from orchestrator.spec.sections import ObjectiveSpec, SearchSpec
from orchestrator.spec.settings import assemble
from orchestrator.spec.space import MAX_LISTED, SearchSpace

_MIXES = 64
"""Number of random configurations to try with a value that fails with the fixed settings."""

_MAX_DRAWN = 1000
"""Number of random configurations to check for an allowed one, in a space that is not listed."""


def require_sound(space: SearchSpace) -> None:
    """Refuse a space with an impossible value or without an allowed configuration.

    A value is tried with the fixed settings first. If this fails, the value is tried with other
    values of other knobs; it stays if a combination works.

    Raises:
        SweepSpecError: A value is impossible, or no configuration is allowed.
    """
    for name, knob in space.knobs.items():
        context = _activation(space, name)
        for value in knob.samples():
            _require_works(space, name, {**context, name: value})
    _require_any(space)


def require_searchable(
    space: SearchSpace, written: Mapping[str, Any], search: SearchSpec, objective: ObjectiveSpec
) -> None:
    """Refuse a space that the algorithm cannot search, and start points that cannot be tried.

    Args:
        space: Search space of the sweep.
        written: The space as written, for messages.
        search: Algorithm and start points.
        objective: Objectives of the sweep.

    Raises:
        SweepSpecError: The space, the objective or a start point does not fit the algorithm.
    """
    if search.algorithm == "grid":
        _require_grid(space, written)
    if search.algorithm == "cmaes":
        _require_ranges(space, search, objective)
    for i, point in enumerate(search.start):
        where = f"search.start[{i}]"
        knobs = space.settle(point, where)
        if set(space.active(knobs)) == knobs.keys():
            refused = space.refuse(knobs)
            require(not refused, where, point, f"what may be tried ({refused})", "Change a value.")


def _require_grid(space: SearchSpace, written: Mapping[str, Any]) -> None:
    """Refuse a space whose configurations cannot be listed."""
    for name, knob in space.knobs.items():
        require(
            knob.size is not None,
            f"space.{name}",
            written[name],
            "choice or int, for search.algorithm grid",
            "List the values to try, or search with tpe or random.",
        )
    require(
        len(space.knobs) > 0 and space.size is not None,
        "space",
        dict(written),
        f"1 to {MAX_LISTED} configurations for search.algorithm grid",
        "Offer fewer choices, or search with tpe or random.",
    )


def _require_ranges(space: SearchSpace, search: SearchSpec, objective: ObjectiveSpec) -> None:
    """Refuse several objectives, and a space without ranges that `cmaes` learns from."""
    require(
        not objective.also,
        "search.algorithm",
        search.algorithm,
        "gp, nsga2, tpe, random or grid with objective.also",
        "cmaes takes one objective: take out objective.also, or search with nsga2.",
    )
    ranges = [
        name
        for name, knob in space.knobs.items()
        if isinstance(knob, Range) and name not in space.conditions
    ]
    require(
        len(ranges) >= 2,
        "search.algorithm",
        search.algorithm,
        "gp, nsga2, tpe, random or grid for a space with less than two ranges",
        "cmaes learns from ranges without `when` only: add some, or search with tpe.",
    )


def _activation(space: SearchSpace, name: str) -> dict[str, Any]:
    """Values of other knobs that make a knob active."""
    condition = space.conditions.get(name)
    if condition is None:
        return {}
    needed = _ancestors(space, name)
    parents = [each for each in space.order if each in needed]
    for known in space.expand(parents, only=condition.allowed):
        if condition.holds(known):
            return known
    raise complaint(
        f"space.{name}.when",
        dict(condition.allowed),
        "values that its knobs can have together, given their own conditions",
        "Correct one of the conditions.",
    )


def _ancestors(space: SearchSpace, name: str) -> set[str]:
    """Knobs that a knob's conditions depend on, directly or indirectly."""
    found: set[str] = set()
    todo = [name]
    while todo:
        condition = space.conditions.get(todo.pop())
        parents = set(condition.allowed) - found if condition is not None else set()
        found |= parents
        todo += parents
    return found


def _require_works(space: SearchSpace, name: str, knobs: Mapping[str, Any]) -> None:
    """Refuse a knob's value if no combination with it makes a trial."""
    problem = _problem(space, knobs)
    mixes = (mix for mix in _mixes(space, name, knobs) if name in space.active(mix))
    if not problem or any(not _problem(space, mix) for mix in mixes):
        return
    if problem == _problem_of_fixed(space):
        raise SweepSpecError(problem)
    shown = ", ".join(f"{each} {value!r}" for each, value in knobs.items())
    if problem.startswith("space."):
        raise SweepSpecError(problem)
    if any(problem.startswith(f"{each}:") for each in knobs):
        raise SweepSpecError(f"space.{problem}")
    raise SweepSpecError(f"space.{name}: with {shown}: {problem}")


def _problem(space: SearchSpace, knobs: Mapping[str, Any]) -> str:
    """Reason why the knobs make no trial, without regard to `forbid`; empty if they do."""
    try:
        assemble(space.fixed, space.changes(knobs))
    except SweepSpecError as error:
        return str(error)
    return ""


def _problem_of_fixed(space: SearchSpace) -> str:
    """Reason why the fixed settings alone make no trial; empty if they do."""
    try:
        assemble(space.fixed, {})
    except SweepSpecError as error:
        return str(error)
    return ""


def _mixes(space: SearchSpace, name: str, knobs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Configurations with a knob's value: random others, then every value of each other knob."""
    others = {each: knob for each, knob in space.knobs.items() if each not in knobs}
    generator = random.Random(0)
    for _ in range(_MIXES):
        drawn = {each: _draw(knob, generator) for each, knob in others.items()}
        yield {**drawn, **knobs}
    for other, knob in others.items():
        for value in knob.samples():
            yield {**knobs, **_activation(space, other), other: value, name: knobs[name]}


def _random_configurations(space: SearchSpace, count: int) -> Iterator[dict[str, Any]]:
    generator = random.Random(0)
    for _ in range(count):
        drawn = {name: _draw(knob, generator) for name, knob in space.knobs.items()}
        yield {name: drawn[name] for name in space.active(drawn)}


def _draw(knob: Distribution, generator: random.Random) -> Any:
    if isinstance(knob, Choice):
        return generator.choice(knob.values)
    if knob.is_whole:
        return knob.decode(generator.randint(int(knob.low), int(knob.high)))
    return knob.decode(generator.uniform(knob.low, knob.high))


def _require_any(space: SearchSpace) -> None:
    """Refuse a space if every checked configuration is refused."""
    listed = space.expand(space.order) if space.is_finite else iter(())
    checked = itertools.chain(
        itertools.islice(listed, MAX_LISTED), _random_configurations(space, _MAX_DRAWN)
    )
    first: dict[str, Any] | None = None
    for knobs in checked:
        if not space.refuse(knobs):
            return
        first = knobs if first is None else first
    refused = space.refuse(first or {})
    if not refused.startswith("forbid"):
        shown = ", ".join(f"{name} {value!r}" for name, value in (first or {}).items())
        prefix = f"space: no combination makes a trial; with {shown}: " if shown else ""
        raise SweepSpecError(f"{prefix}{refused}")
    raise complaint(
        "forbid",
        [str(rule) for rule in space.forbidden],
        "rules that leave a configuration to try",
        "Remove a rule, or offer more values in `space`.",
    )
