"""Comparison of versions, made from their records and evaluations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from mlflow import MlflowClient

from registry.errors import RefError
from registry.evaluations.comparison import Comparison, Difference, Score
from registry.evaluations.improvement import difference_interval, least_rows
from registry.evaluations.sides import Side, form_place, read_sides
from registry.evaluations.significance import obstacle
from registry.versions.refs import AdapterRef

_IDENTITY = ("base.", "quantization", "lora.", "data.", "seed", "steps", "optim.", "serving.form")


def compare(
    client: MlflowClient, refs: Sequence[str | AdapterRef], *, confidence: float = 0.95
) -> Comparison:
    """Compare two or more versions.

    Scores come from the newest evaluations, with intervals over rows. A version without an
    evaluation has the scores recorded at registration, without intervals.

    Args:
        client: Of the server.
        refs: Versions or kept earlier steps, each once.
        confidence: Level of the intervals.

    Raises:
        AdapterNotFoundError: There is no such version.
        IntegrityError: A kept evaluation was changed or lost.
        RefError: A reference cannot be read, there are fewer than two, or two name one version.
        TrackingError: The server cannot be used.
    """
    if not 0.5 <= confidence < 1:
        raise RefError(
            f"confidence: got {confidence}; allowed: 0.5 <= level < 1. Leave it out for 0.95."
        )
    if len(refs) < 2:
        raise RefError(
            f"compare: got {', '.join(map(str, refs)) or 'no adapter'}; allowed: two or more "
            "versions. Name another, such as NAME@champion."
        )
    sides = read_sides(client, refs)
    differing, shared = _identities(sides)
    return Comparison(
        adapters=tuple(side.name for side in sides),
        confidence=confidence,
        differing=differing,
        shared=shared,
        scores=tuple(_scores(sides, confidence)),
        differences=tuple(
            difference
            for first, second in itertools.combinations(sides, 2)
            for difference in _differences(first, second, confidence)
        ),
        costs=tuple(cost for side in sides for cost in side.costs()),
        notes=tuple(_notes(sides)),
    )


def _identities(
    sides: Sequence[Side],
) -> tuple[dict[str, tuple[str | None, ...]], dict[str, str]]:
    """Identity tags with different values, and those with the same value in all versions."""

    def place(tag: str) -> tuple[int, str]:
        return next(i for i, start in enumerate(_IDENTITY) if tag.startswith(start)), tag

    tags = []
    for side in sides:
        kept = {k: v for k, v in side.version.tags.items() if k.startswith(_IDENTITY)}
        step = {} if side.ref.step is None else {"steps": str(side.ref.step)}
        tags.append(kept | {"serving.form": side.version.form} | step)
    names = dict.fromkeys(name for one in tags for name in one)
    values = {name: tuple(one.get(name) for one in tags) for name in sorted(names, key=place)}
    differing = {name: found for name, found in values.items() if len(set(found)) > 1}
    shared = {
        name: found[0]
        for name, found in values.items()
        if name not in differing and found[0] is not None
    }
    return differing, shared


def _scores(sides: Sequence[Side], confidence: float) -> list[Score]:
    scores = [score for side in sides for score in side.scores(confidence)]
    order = list(dict.fromkeys(score.measure for score in scores))
    names = [side.name for side in sides]
    return sorted(
        scores,
        key=lambda one: (
            form_place(one.form), one.data, one.digest, order.index(one.measure),
            names.index(one.adapter),
        ),
    )  # fmt: skip


def _differences(first: Side, second: Side, confidence: float) -> Iterator[Difference]:
    ours, theirs = first.latest(), second.latest()
    common = sorted(
        (key for key in ours if key in theirs), key=lambda key: (form_place(key[0]), key[1])
    )
    if not common:
        yield Difference(
            first=first.name, second=second.name, reason=_reason_for_none(first, second)
        )
    for key in common:
        form, digest, measure = key
        one, other = ours[key], theirs[key]
        reason = obstacle(other, one, measure)
        reason = reason.replace("the candidate", second.name).replace("the champion", first.name)
        found = None if reason else difference_interval(other, one, measure, confidence=confidence)
        if found is not None and not math.isfinite(found.estimate):
            found, reason = None, "a row has no number"
        if found is not None and math.isinf(found.low):
            least = least_rows(confidence)
            found, reason = None, f"{one.data.rows} rows are too few: {least} are needed"
        yield Difference(
            first=first.name,
            second=second.name,
            form=form,
            data=one.data.name,
            digest=digest,
            measure=measure,
            mode=one.measures[measure].formula.mode,
            interval=found,
            reason=reason,
        )


def _reason_for_none(first: Side, second: Side) -> str:
    """Reason why two versions have no evaluations to compare."""
    lacking = [side.name for side in (first, second) if not side.evaluations]
    if lacking:
        return f"no evaluation of {' and of '.join(lacking)}; evaluate with `adapters evaluate`"
    data = [
        _listed(
            f"{one.data.name} {one.data.digest.removeprefix('sha256:')[:8]}"
            for one in side.evaluations
        )
        for side in (first, second)
    ]
    digests = [{one.data.digest for one in side.evaluations} for side in (first, second)]
    if not digests[0] & digests[1]:
        return f"different data: {first.name} has {data[0]}, {second.name} has {data[1]}"
    forms = [_listed(one.form for one in side.evaluations) for side in (first, second)]
    return (
        f"no rows in the same form by the same measure: {first.name} has {forms[0]}, "
        f"{second.name} has {forms[1]}"
    )


def _listed(words: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def _notes(sides: Sequence[Side]) -> Iterator[str]:
    for side in sides:
        if not side.evaluations:
            yield (
                f"{side.name} was not evaluated: its scores were recorded at registration, "
                "without intervals."
            )
        if side.version.retired:
            yield f"{side.name} is retired: {side.version.retired}."
    for first, second in itertools.combinations(sides, 2):
        if first.version.digest_at(first.ref.step) == second.version.digest_at(second.ref.step):
            yield f"{first.name} and {second.name} are the same adapter."
