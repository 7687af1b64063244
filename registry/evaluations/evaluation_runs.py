"""Evaluations of registered adapters, kept as MLflow runs."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from registry.errors import IntegrityError, RegistryError
from registry.evaluations.evaluation import Evaluation, read_evaluation
from registry.tracking.connection import if_exists, plain_errors
from registry.tracking.experiments import adapters_experiment
from registry.tracking.limits import MAX_TAG_CHARS
from registry.tracking.search import find_runs
from registry.versions.refs import AdapterRef
from registry.versions.versions import AdapterVersion, get_version
from trainables.contract import COSTS

logger = logging.getLogger(__name__)

_FILE = "evaluation.json"
_TABLE = "examples.json"
_TABLE_ROWS = 200
_TABLES_TAG = "mlflow.loggedArtifacts"
_SUMMARY_TAG = "lorchestra.summary"


def record_evaluation(
    client: MlflowClient, ref: AdapterRef | str, document: Mapping[str, Any]
) -> str:
    """Keep an evaluation of a version as an MLflow run, which names the adapter's training run.

    Recording an evaluation again gives the first run with its first results. A run that was cut
    short is completed.

    Args:
        client: Of the server.
        ref: The version, or one of its earlier steps.
        document: Evaluation document that training wrote.

    Returns:
        Id of the run.

    Raises:
        AdapterNotFoundError: There is no such version.
        IntegrityError: The document is broken, or belongs to another adapter.
        TrackingError: The server cannot be used.
    """
    ref = AdapterRef.parse(ref)
    version = get_version(client, ref)
    evaluation = Evaluation.from_document(document)
    if evaluation.adapter != version.digest_at(ref.step):
        raise IntegrityError(
            f"evaluation of {ref}: it belongs to the adapter {evaluation.adapter}; allowed: "
            f"{version.digest_at(ref.step)}, which is {ref}. Record it for its own adapter."
        )
    with plain_errors(client.tracking_uri):
        homes = _experiments(client, version)
        tags = {**_tags(version, ref.step), "lorchestra.evaluation": evaluation.digest}
        run = next(find_runs(client, homes, tags), None)
        if run is None:
            tags |= {"lorchestra.form": evaluation.form, "lorchestra.data": evaluation.data.digest}
            if version.run_id is not None:
                tags["mlflow.parentRunId"] = version.run_id
            title = f"evaluate {version.ref} {evaluation.form} {evaluation.data.name}"
            run = client.create_run(homes[0], tags=tags, run_name=title)
        if run.info.status != "FINISHED":
            _fill(client, run, document, evaluation, version)
            logger.info("recorded %s evaluation of %s", evaluation.form, ref)
        return str(run.info.run_id)


def list_evaluations(
    client: MlflowClient,
    ref: AdapterRef | str,
    *,
    form: str | None = None,
    data: str | None = None,
    with_examples: bool = True,
) -> list[Evaluation]:
    """Evaluations of a version, newest first.

    Args:
        client: Of the server.
        ref: The version, or one of its earlier steps.
        form: Only evaluations in this serving form.
        data: Only evaluations on rows with this digest.
        with_examples: Fetch the columns too: one file for each evaluation.

    Raises:
        AdapterNotFoundError: There is no such version.
        IntegrityError: A kept evaluation was changed or lost.
        TrackingError: The server cannot be used.
    """
    ref = AdapterRef.parse(ref)
    version = get_version(client, ref)
    tags = _tags(version, ref.step)
    wanted = {"lorchestra.form": form, "lorchestra.data": data}
    tags |= {key: value for key, value in wanted.items() if value is not None}
    with plain_errors(client.tracking_uri):
        runs = [
            run
            for run in find_runs(client, _experiments(client, version), tags, newest_first=True)
            if run.info.status == "FINISHED"
            and run.data.tags.get("lorchestra.step") == tags.get("lorchestra.step")
        ]
        found = [_read(client, run, with_examples) for run in runs]
    # Two processes may have recorded the same evaluation at the same time: keep one.
    return list({one.digest: one for one in reversed(found)}.values())[::-1]


def _tags(version: AdapterVersion, step: int | None) -> dict[str, str]:
    tags = {
        "lorchestra.kind": "evaluation",
        "lorchestra.adapter": version.name,
        "lorchestra.version": str(version.version),
    }
    return tags if step is None else {**tags, "lorchestra.step": str(step)}


def _experiments(client: MlflowClient, version: AdapterVersion) -> list[str]:
    """Experiments with a version's evaluations, the one for new evaluations first.

    Earlier versions of lorchestra kept evaluations in the experiment of the training run.
    """
    home = adapters_experiment(client)
    if version.run_id is not None:
        run = if_exists(client.get_run, version.run_id)
        if run is not None:
            return [home, str(run.info.experiment_id)]
        logger.info("adapter %s: its run %s is gone", version.ref, version.run_id)
    return [home]


def _fill(
    client: MlflowClient,
    run: Run,
    document: Mapping[str, Any],
    evaluation: Evaluation,
    version: AdapterVersion,
) -> None:
    run_id = run.info.run_id
    plain = _without_infinities(document)
    # Not gzipped: a server sends such a file with a content encoding, and it arrives unpacked.
    client.log_text(run_id, json.dumps(plain), _FILE)
    columns = plain["examples"]
    rows = zip(*(column[:_TABLE_ROWS] for column in columns.values()), strict=True)
    # MLflow's pages read tables in pandas' split orientation.
    table = {
        "columns": ["row", *columns],
        "data": [[number, *row] for number, row in enumerate(rows)],
    }
    client.log_text(run_id, json.dumps(table), _TABLE)
    client.set_tag(run_id, _TABLES_TAG, json.dumps([{"path": _TABLE, "type": "table"}]))
    summary = json.dumps({key: value for key, value in plain.items() if key != "examples"})
    if len(summary) <= MAX_TAG_CHARS:
        client.set_tag(run_id, _SUMMARY_TAG, summary)
    params = {
        "adapter": version.name,
        "version": version.version,
        "form": evaluation.form,
        "data": evaluation.data.name,
        "data.digest": evaluation.data.digest,
        "rows": evaluation.data.rows,
        **evaluation.data.tokens_record,
        **{f"generation.{key}": value for key, value in (evaluation.generation or {}).items()},
    }
    metrics = _metrics(evaluation, run.info.start_time, version.model_id)
    client.log_batch(
        run_id,
        metrics=metrics,
        params=[Param(key, str(value)) for key, value in params.items() if value is not None],
    )
    client.set_terminated(run_id, "FINISHED")


def _metrics(evaluation: Evaluation, at_ms: int, model_id: str | None) -> list[Metric]:
    """Metrics at the run's start time, so that a repeated write does not add points."""
    values = {name: measure.value for name, measure in evaluation.measures.items()}
    values |= {name: getattr(evaluation, name) for name in COSTS}
    # MLflow keeps up to 36 characters of a digest, and turns a model's NaN into 0.
    data = evaluation.data
    place = {
        "model_id": model_id,
        "dataset_name": data.name,
        "dataset_digest": data.digest.removeprefix("sha256:")[:36],
    }
    return [
        Metric(name, value, at_ms, 0, **(place if math.isfinite(value) else {}))
        for name, value in values.items()
        if value is not None
    ]


def _read(client: MlflowClient, run: Run, with_examples: bool) -> Evaluation:
    run_id, tags = run.info.run_id, run.data.tags
    if not with_examples and _SUMMARY_TAG in tags:
        document = {**json.loads(tags[_SUMMARY_TAG]), "examples": {}}
        evaluation = read_evaluation(document)
    else:
        try:
            with tempfile.TemporaryDirectory() as work:
                arrived = Path(client.download_artifacts(run_id, _FILE, work))
                document = json.loads(arrived.read_text(encoding="utf-8"))
                evaluation = Evaluation.from_document(document)
        except (MlflowException, OSError, ValueError, RegistryError) as error:
            raise IntegrityError(
                f"evaluation run {run_id}: its {_FILE} cannot be used ({error}); allowed: the "
                "file as it was recorded. Try again, restore the artifact store, or delete the "
                "run and evaluate again."
            ) from error
    if evaluation.digest != tags["lorchestra.evaluation"]:
        raise IntegrityError(
            f"evaluation run {run_id}: its evaluation has digest {evaluation.digest}; allowed: "
            f"{tags['lorchestra.evaluation']}, as recorded. Delete the run and evaluate again."
        )
    at = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    examples = evaluation.examples if with_examples else {}
    return replace(evaluation, run_id=run_id, at=at, examples=examples)


def _without_infinities(value: Any) -> Any:
    """A copy with `None` for numbers that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: _without_infinities(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
