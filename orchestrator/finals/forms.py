"""Evaluates the finalists in every serving form, so that the served quality is known.

The adapter of each finalist is loaded as a server loads adapters, and evaluated row by row.
Evaluation documents stay beside the bundle, one file for each form, until they are registered.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from typing import Any

from orchestrator.errors import SweepStorageError
from orchestrator.finals.standings import deciding_split, has_test_rows, rank_finalists
from orchestrator.finals.telling import Tell, tell_nobody
from orchestrator.hosts.evaluators import (
    EvaluationOrder,
    FormResult,
    WorkerShape,
    evaluate_adapters,
    read_files,
)
from orchestrator.interrupts import raise_swallowed
from orchestrator.journal.events import FormEvaluated, UsageAdded
from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.journal.paths import evaluation_file
from orchestrator.journal.recording import SweepRecord
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.spec.finals_sections import forms_of
from orchestrator.spec.sweep import SweepSpec
from registry.evaluations.evaluation import Evaluation
from registry.evaluations.improvement import difference_interval
from registry.evaluations.significance import Interval, interval, obstacle
from trainables.contract import TRAINED, ServingForm
from trainables.evaluation.answers import metric_digests
from trainables.spec import TrialSpec

logger = logging.getLogger(__name__)


def evaluate_forms(
    spec: SweepSpec,
    record: SweepRecord,
    storage: SweepStorage,
    shape: WorkerShape,
    is_cancelled: Callable[[], bool] = lambda: False,
    tell: Tell = tell_nobody,
) -> None:
    """Evaluate the adapter of each finalist in each serving form that the record lacks.

    A form that fails is recorded with its error and not tried again, unless its worker died, in
    which case the machine may be the cause. The workers' time counts as usage of the sweep.
    """
    split = deciding_split(spec)
    orders = {
        str(trial.number): EvaluationOrder(
            files=read_files(storage.fetch_bundle(trial.number)),
            forms=forms,
            source=(TrialSpec.from_dict(trial.spec).data, split),
            how=spec.finals.evaluation,
        )
        for trial, forms in _wanted(spec, record.history)
        if storage.has_bundle(trial.number)
    }
    compared = {key for key, order in orders.items() if TRAINED in order.forms}
    count = _FormCount(sum(len(order.forms) for order in orders.values()), tell)
    started = time.monotonic()
    with closing(evaluate_adapters(orders, shape, count.begin)) as results:
        for result in _trained_first(results, compared):
            elapsed, started = time.monotonic() - started, time.monotonic()
            record.add(UsageAdded(cpu_s=elapsed * shape.all_cpus, gpu_s=elapsed * shape.all_gpus))
            number = int(result.key)
            if result.document is not None:
                name = evaluation_file(number, result.form)
                storage.send(name, json.dumps(result.document).encode())
            if result.error:
                logger.warning(
                    "trial %d cannot be served %s: %s", number, result.form, result.error
                )
            record.add(
                FormEvaluated(
                    trial=number,
                    form=result.form,
                    metrics=_metrics(spec, record.history.trials[number], storage, result),
                    error=result.error,
                    fingerprint="" if result.is_lost else evaluation_fingerprint(spec),
                )
            )
            if is_cancelled():
                return
            raise_swallowed()


class _FormCount:
    """Tells which form is in work, and how many are done."""

    def __init__(self, total: int, tell: Tell) -> None:
        self._total, self._tell, self._begun = total, tell, 0

    def begin(self, key: str, form: str, running: int) -> None:
        """Tell that an evaluation begins, beside `running` others."""
        self._begun = min(self._begun + 1, self._total)  # a lost one begins again
        text = f"form {self._begun} of {self._total}: {form}, trial {key}"
        self._tell(text, self._begun - 1 - running, self._total)


def are_forms_evaluated(spec: SweepSpec, history: SweepHistory) -> bool:
    """Whether every finalist was evaluated in every form, or failed in the form."""
    return not any(True for _ in _wanted(spec, history))


def read_evaluations(trial: TrialRecord, storage: SweepStorage) -> Iterator[Mapping[str, Any]]:
    """The evaluation documents of a trial's adapter.

    Raises:
        SweepStorageError: The bucket or a document cannot be read.
    """
    for form in trial.forms:
        name = evaluation_file(trial.number, form)
        storage.pull(name)
        try:
            document = dict(json.loads((storage.folder / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise SweepStorageError(
                f"{storage.folder / name}: the evaluation cannot be read ({error}); allowed: the "
                "file as lorchestra wrote it. Restore it from a copy, or change "
                "finals.max_new_tokens, so that all forms are evaluated again."
            ) from error
        yield document


def _wanted(
    spec: SweepSpec, history: SweepHistory
) -> Iterator[tuple[TrialRecord, tuple[ServingForm, ...]]]:
    """Finalists with the serving forms in which the record has no evaluation."""
    fingerprint = evaluation_fingerprint(spec)
    for standing in rank_finalists(spec, history):
        trial = standing.adapter
        base = trial.spec["base"]
        facts = history.data_facts.get(base["model"], {})
        forms = tuple(
            form
            for form in forms_of(
                spec.finals,
                base["quantization"],
                is_prequantized=bool(facts.get("prequantized")),
            )
            if (known := trial.forms_evaluated.get(form)) is None
            or known.fingerprint != fingerprint
        )
        if trial.bundle is not None and forms:
            yield trial, forms


def _trained_first(
    results: Iterator[FormResult], compared: Collection[str]
) -> Iterator[FormResult]:
    """Yield the trained form of an adapter before its other forms.

    The other forms are compared with the trained form.

    Args:
        results: Results in order of arrival.
        compared: Adapters whose trained form is among the results.
    """
    held: dict[str, list[FormResult]] = {key: [] for key in compared}
    for result in results:
        if result.form == TRAINED:
            yield result
            yield from held.pop(result.key, ())
        elif result.key in held:
            held[result.key].append(result)
        else:
            yield result


def _metrics(
    spec: SweepSpec, trial: TrialRecord, storage: SweepStorage, result: FormResult
) -> dict[str, float]:
    """Measures with their intervals, and their differences from the trained form.

    Under the names of `orchestrator.finals.form_scores`: `loss`, `loss.low`, ….
    """
    if result.document is None:
        return {}
    found = Evaluation.from_document(result.document)
    trained = [
        Evaluation.from_document(document)
        for document in read_evaluations(trial, storage)
        if document["form"] == TRAINED and result.form != TRAINED
    ]
    level = spec.finals.confidence
    metrics: dict[str, float] = {}
    for name in found.measures:
        metrics |= _interval(name, interval(found, name, level))
        for other in trained:
            if not obstacle(found, other, name):
                difference = difference_interval(found, other, name, confidence=level)
                metrics |= _interval(f"{name}.difference", difference)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _interval(name: str, found: Interval) -> dict[str, float]:
    return {name: found.estimate, f"{name}.low": found.low, f"{name}.high": found.high}


def evaluation_fingerprint(spec: SweepSpec) -> str:
    """Digest of all that decides the result of an evaluation: settings, metrics, split."""
    how = spec.finals.evaluation
    text = repr((how, metric_digests(how.metrics), has_test_rows(spec)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
