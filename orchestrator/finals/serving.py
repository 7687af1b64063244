"""The finalists in every serving form: what is served should be what was measured.

Each finalist's adapter is loaded as a server would load it and scored row by row. The scores are
kept beside its bundle, one file for each form, until the registry takes them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from orchestrator.finals.standings import has_test_rows, rank_finalists
from orchestrator.hosts.scoring import Scored, ScoringOrder, WorkerShape, read_files, score
from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.journal.layout import evaluation_file
from orchestrator.journal.recording import SweepRecord
from orchestrator.journal.storage import SweepStorage
from orchestrator.spec.finals_sections import forms_of
from orchestrator.spec.sweep import SweepSpec
from registry.evaluation import Evaluation
from registry.significance import Interval, interval, obstacle, paired_bootstrap
from trainables.answers import metric_digests
from trainables.contract import ServingForm
from trainables.spec import TrialSpec

logger = logging.getLogger(__name__)

_TRAINED = "trained"


def score_finalists(
    spec: SweepSpec,
    record: SweepRecord,
    storage: SweepStorage,
    shape: WorkerShape,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Score the adapter of each finalist in each serving form that the record lacks.

    A form that cannot be scored is recorded with its error and not tried again, unless its worker
    died: that can have been the machine. The workers' time counts as the sweep's.
    """
    orders = {
        str(trial.number): _order(spec, trial, forms, storage)
        for trial, forms in _wanted(spec, record.history)
        if storage.has_bundle(trial.number)
    }
    compared = {key for key, order in orders.items() if _TRAINED in order.forms}
    results = score(orders, shape)
    started = time.monotonic()
    for scored in _trained_first(results, compared):
        elapsed, started = time.monotonic() - started, time.monotonic()
        record.add("usage", cpu_s=elapsed * shape.all_cpus, gpu_s=elapsed * shape.all_gpus)
        if scored.document is not None:
            name = evaluation_file(int(scored.key), scored.form)
            storage.send(name, json.dumps(scored.document).encode())
        _note(spec, record, storage, scored)
        if is_cancelled():
            results.close()
            return


def are_scored(spec: SweepSpec, history: SweepHistory) -> bool:
    """Whether every finalist was scored in every form, or could not be."""
    return not any(True for _ in _wanted(spec, history))


def read_scores(trial: TrialRecord, storage: SweepStorage) -> Iterator[Mapping[str, Any]]:
    """The evaluation documents of a trial's adapter.

    Raises:
        SweepStorageError: The bucket cannot be read.
    """
    for form in trial.forms:
        name = evaluation_file(trial.number, form)
        storage.pull(name)
        yield json.loads((storage.folder / name).read_text(encoding="utf-8"))


def _wanted(
    spec: SweepSpec, history: SweepHistory
) -> Iterator[tuple[TrialRecord, tuple[ServingForm, ...]]]:
    way = _way(spec)
    for standing in rank_finalists(spec, history):
        trial = standing.adapter
        forms = tuple(
            form
            for form in _forms_of(spec, trial, history)
            if trial.scores.get(form, {}).get("way") != way
        )
        if trial.bundle is not None and forms:
            yield trial, forms


def _forms_of(
    spec: SweepSpec, trial: TrialRecord, history: SweepHistory
) -> tuple[ServingForm, ...]:
    base = trial.spec["base"]
    facts = history.data_facts.get(base["model"], {})
    return forms_of(
        spec.finals, base["quantization"], is_prequantized=bool(facts.get("prequantized"))
    )


def _order(
    spec: SweepSpec, trial: TrialRecord, forms: tuple[ServingForm, ...], storage: SweepStorage
) -> ScoringOrder:
    return ScoringOrder(
        files=read_files(storage.fetch_bundle(trial.number)),
        forms=forms,
        source=(
            TrialSpec.from_dict(trial.spec).data,
            "test" if has_test_rows(spec) else "validation",
        ),
        how=spec.finals.evaluation,
    )


def _trained_first(results: Iterator[Scored], compared: Collection[str]) -> Iterator[Scored]:
    """Hold back the other forms of an adapter until the one they are compared with is known.

    Args:
        results: As they come.
        compared: Adapters whose trained form is yet to come.
    """
    held: dict[str, list[Scored]] = {key: [] for key in compared}
    for scored in results:
        if scored.form == _TRAINED:
            yield scored
            yield from held.pop(scored.key, ())
        elif scored.key in held:
            held[scored.key].append(scored)
        else:
            yield scored


def _note(spec: SweepSpec, record: SweepRecord, storage: SweepStorage, scored: Scored) -> None:
    number = int(scored.key)
    if scored.error:
        logger.warning("trial %d cannot be served %s: %s", number, scored.form, scored.error)
    record.add(
        "form_scored",
        trial=number,
        form=scored.form,
        metrics=_metrics(spec, record.history.trials[number], storage, scored),
        error=scored.error,
        way="" if scored.is_lost else _way(spec),
    )


def _metrics(
    spec: SweepSpec, trial: TrialRecord, storage: SweepStorage, scored: Scored
) -> dict[str, float]:
    """Measures with their intervals, and their differences from the trained form.

    As `orchestrator.finals.form_scores` reads them: `loss`, `loss.low`, `loss.difference.low`, ….
    """
    if scored.document is None:
        return {}
    found = Evaluation.from_document(scored.document)
    trained = [
        Evaluation.from_document(document)
        for document in read_scores(trial, storage)
        if document["form"] == _TRAINED and scored.form != _TRAINED
    ]
    level = spec.finals.confidence
    metrics: dict[str, float] = {}
    for name in found.measures:
        metrics |= _interval(name, interval(found, name, level))
        for other in trained:
            if not obstacle(found, other, name):
                difference = paired_bootstrap(found, other, name, confidence=level)
                metrics |= _interval(f"{name}.difference", difference)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _interval(name: str, found: Interval) -> dict[str, float]:
    return {name: found.estimate, f"{name}.low": found.low, f"{name}.high": found.high}


def _way(spec: SweepSpec) -> str:
    """Names the way of measuring: another one is another measurement."""
    how = spec.finals.evaluation
    text = repr((how, metric_digests(how.metrics), has_test_rows(spec)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
