"""A side of a comparison: a version with its evaluations, and the scores and costs of both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mlflow import MlflowClient

from registry.errors import RefError
from registry.evaluations.comparison import TRAINING, Cost, Score
from registry.evaluations.evaluation import Evaluation
from registry.evaluations.evaluation_runs import list_evaluations
from registry.evaluations.significance import interval
from registry.versions.refs import AdapterRef
from registry.versions.versions import AdapterVersion, get_version
from trainables.contract import COSTS, SERVING_FORMS, Mode

_SPLITS = {"test_": "test", "eval_": "validation"}
# Direction of each recorded metric that counts as a score.
_RECORDED: Mapping[str, Mode] = {"loss": "min", "accuracy": "max", "token_accuracy": "max"}


@dataclass(frozen=True, kw_only=True)
class Side:
    """A version with its evaluations.

    Attributes:
        ref: The version by its number, or one of its earlier steps.
        version: The version.
        evaluations: Evaluations of the version or the step, newest first.
    """

    ref: AdapterRef
    version: AdapterVersion
    evaluations: Sequence[Evaluation]

    @property
    def name(self) -> str:
        """The reference as text."""
        return str(self.ref)

    def latest(self) -> dict[tuple[str, str, str], Evaluation]:
        """The newest evaluation by form, digest of the rows and measure."""
        found: dict[tuple[str, str, str], Evaluation] = {}
        for evaluation in self.evaluations:
            for measure in evaluation.measures:
                found.setdefault((evaluation.form, evaluation.data.digest, measure), evaluation)
        return found

    def scores(self, confidence: float) -> Iterator[Score]:
        """Scores of the newest evaluations, then the recorded scores."""
        for (form, digest, measure), evaluation in self.latest().items():
            found = interval(evaluation, measure, confidence)
            kind = evaluation.measures[measure]
            yield Score(
                adapter=self.name,
                form=form,
                data=evaluation.data.name,
                digest=digest,
                rows=evaluation.data.rows,
                measure=measure,
                mode=kind.formula.mode,
                value=kind.value,
                low=found.low if math.isfinite(found.low) else None,
                high=found.high if math.isfinite(found.high) else None,
            )
        yield from self.recorded_scores()

    def recorded_scores(self) -> Iterator[Score]:
        """Scores recorded at registration, without measures evaluated later."""
        if self.ref.step is not None:
            return  # recorded numbers belong to the end of training
        evaluated = self.latest()
        for name, value in self.version.metrics.items():
            split, measure = _SPLITS.get(name[:5]), name[5:]
            if split is None or measure not in _RECORDED:
                continue
            digest = self.version.tags.get(f"data.{split}", "")
            if ("trained", digest, measure) not in evaluated:
                yield Score(
                    adapter=self.name,
                    form="trained",
                    data=split,
                    digest=digest,
                    rows=None,
                    measure=measure,
                    mode=_RECORDED[measure],
                    value=value,
                    is_recorded=True,
                )

    def costs(self) -> Iterator[Cost]:
        """Costs of training, then of the newest evaluation for each form and set of rows."""
        metrics = self.version.metrics if self.ref.step is None else {}
        if "trainable_params" in metrics or "peak_memory_gib" in metrics:
            yield Cost(
                adapter=self.name,
                form=TRAINING,
                tokens_per_s=metrics.get("tokens_per_s"),
                peak_memory_gib=metrics.get("peak_memory_gib"),
                trainable_params=metrics.get("trainable_params"),
            )
        seen = set()
        for one in sorted(self.evaluations, key=lambda each: form_place(each.form)):
            if (one.form, one.data.name) not in seen:
                seen.add((one.form, one.data.name))
                taken = {name: getattr(one, name) for name in COSTS}
                yield Cost(adapter=self.name, form=one.form, data=one.data.name, **taken)


def read_sides(client: MlflowClient, refs: Sequence[str | AdapterRef]) -> list[Side]:
    """The versions of references, in their order, with their evaluations.

    Raises:
        RefError: Two references name one version.
    """
    sides = []
    for parsed in map(AdapterRef.parse, refs):
        version = get_version(client, parsed)
        exact = replace(version.ref, step=parsed.step)
        evaluations = list_evaluations(client, exact)
        sides.append(Side(ref=exact, version=version, evaluations=evaluations))
    seen: dict[str, str] = {}
    for ref, side in zip(refs, sides, strict=True):
        if side.name in seen:
            raise RefError(
                f"compare: got {seen[side.name]} and {ref}, which are both {side.name}; allowed: "
                "each version once. Leave one out."
            )
        seen[side.name] = str(ref)
    return sides


def form_place(form: str) -> int:
    """Place of a serving form in tables."""
    return SERVING_FORMS.index(form) if form in SERVING_FORMS else len(SERVING_FORMS)
