"""Comparison of versions, made from their records and evaluations."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlflow import MlflowClient

from registry.errors import RefError
from registry.evaluations.comparison import TRAINING, Comparison, Cost, Difference, Score
from registry.evaluations.evaluation import Evaluation
from registry.evaluations.evaluation_runs import list_evaluations
from registry.evaluations.improvement import difference_interval, least_rows
from registry.evaluations.significance import interval, obstacle
from registry.versions.refs import AdapterRef
from registry.versions.versions import AdapterVersion, get_version
from trainables.contract import COSTS, SERVING_FORMS, Mode

_IDENTITY = ("base.", "quantization", "lora.", "data.", "seed", "steps", "optim.", "serving.form")
_SPLITS = {"test_": "test", "eval_": "validation"}
# Direction of each recorded metric that counts as a score.
_RECORDED: Mapping[str, Mode] = {"loss": "min", "accuracy": "max", "token_accuracy": "max"}


@dataclass(frozen=True, kw_only=True)
class _Side:
    """A version with its evaluations."""

    ref: AdapterRef
    version: AdapterVersion
    evaluations: list[Evaluation]

    @property
    def name(self) -> str:
        return str(self.ref)

    def latest(self) -> dict[tuple[str, str, str], Evaluation]:
        """The newest evaluation by form, digest of the rows and measure."""
        found: dict[tuple[str, str, str], Evaluation] = {}
        for evaluation in self.evaluations:  # the newest first
            for measure in evaluation.measures:
                found.setdefault((evaluation.form, evaluation.data.digest, measure), evaluation)
        return found


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
    sides = _read_sides(client, refs)
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
        costs=tuple(cost for side in sides for cost in _costs(side)),
        notes=tuple(_notes(sides)),
    )


def _read_sides(client: MlflowClient, refs: Sequence[str | AdapterRef]) -> list[_Side]:
    """The versions with their evaluations.

    Raises:
        RefError: Two references name one version.
    """
    sides = []
    for parsed in map(AdapterRef.parse, refs):
        version = get_version(client, parsed)
        exact = dataclasses.replace(version.ref, step=parsed.step)
        evaluations = list_evaluations(client, exact)
        sides.append(_Side(ref=exact, version=version, evaluations=evaluations))
    seen: dict[str, str] = {}
    for ref, side in zip(refs, sides, strict=True):
        if side.name in seen:
            raise RefError(
                f"compare: got {seen[side.name]} and {ref}, which are both {side.name}; allowed: "
                "each version once. Leave one out."
            )
        seen[side.name] = str(ref)
    return sides


def _identities(
    sides: Sequence[_Side],
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


def _scores(sides: Sequence[_Side], confidence: float) -> list[Score]:
    scores: list[Score] = []
    for side in sides:
        latest = side.latest()
        for (form, digest, measure), evaluation in latest.items():
            found = interval(evaluation, measure, confidence)
            kind = evaluation.measures[measure]
            scores.append(
                Score(
                    adapter=side.name,
                    form=form,
                    data=evaluation.data.name,
                    digest=digest,
                    rows=evaluation.data.rows,
                    measure=measure,
                    mode=kind.formula.mode,
                    value=kind.value,
                    low=_finite(found.low),
                    high=_finite(found.high),
                )
            )
        scores += _recorded_scores(side, set(latest))
    order = list(dict.fromkeys(score.measure for score in scores))
    names = [side.name for side in sides]
    return sorted(
        scores,
        key=lambda one: (
            _form_place(one.form), one.data, one.digest, order.index(one.measure),
            names.index(one.adapter),
        ),
    )  # fmt: skip


def _recorded_scores(side: _Side, evaluated: set[tuple[str, str, str]]) -> Iterator[Score]:
    """Scores recorded at registration, without measures evaluated later."""
    if side.ref.step is not None:
        return  # recorded numbers belong to the end of training
    for name, value in side.version.metrics.items():
        split = _SPLITS.get(name[:5])
        mode = _RECORDED.get(name[5:])
        if split is None or mode is None:
            continue
        digest = side.version.tags.get(f"data.{split}", "")
        if ("trained", digest, name[5:]) not in evaluated:
            yield Score(
                adapter=side.name,
                form="trained",
                data=split,
                digest=digest,
                rows=None,
                measure=name[5:],
                mode=mode,
                value=value,
                is_recorded=True,
            )


def _differences(first: _Side, second: _Side, confidence: float) -> Iterator[Difference]:
    ours, theirs = first.latest(), second.latest()
    common = sorted(
        (key for key in ours if key in theirs), key=lambda key: (_form_place(key[0]), key[1])
    )
    if not common:
        yield Difference(first=first.name, second=second.name, reason=_why_nothing(first, second))
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


def _why_nothing(first: _Side, second: _Side) -> str:
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


def _costs(side: _Side) -> Iterator[Cost]:
    metrics = side.version.metrics if side.ref.step is None else {}
    if "trainable_params" in metrics or "peak_memory_gib" in metrics:
        yield Cost(
            adapter=side.name,
            form=TRAINING,
            tokens_per_s=metrics.get("tokens_per_s"),
            peak_memory_gib=metrics.get("peak_memory_gib"),
            trainable_params=metrics.get("trainable_params"),
        )
    seen = set()
    for one in sorted(side.evaluations, key=lambda each: _form_place(each.form)):
        if (one.form, one.data.name) not in seen:  # the newest of each comes first
            seen.add((one.form, one.data.name))
            taken = {name: getattr(one, name) for name in COSTS}
            yield Cost(adapter=side.name, form=one.form, data=one.data.name, **taken)


def _notes(sides: Sequence[_Side]) -> Iterator[str]:
    for side in sides:
        if not side.evaluations:
            yield (
                f"{side.name} was not evaluated: its scores are those recorded when it was "
                "registered, without intervals."
            )
        if side.version.retired:
            yield f"{side.name} is retired: {side.version.retired}."
    for first, second in itertools.combinations(sides, 2):
        if first.version.digest_at(first.ref.step) == second.version.digest_at(second.ref.step):
            yield f"{first.name} and {second.name} are the same adapter."


def _form_place(form: str) -> int:
    return SERVING_FORMS.index(form) if form in SERVING_FORMS else len(SERVING_FORMS)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
