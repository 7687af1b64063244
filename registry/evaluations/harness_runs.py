"""Results of the evaluation harness on registered adapters, kept as MLflow runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from registry.errors import IntegrityError
from registry.tracking.connection import plain_errors
from registry.tracking.experiments import adapters_experiment
from registry.tracking.search import find_runs
from registry.versions.refs import AdapterRef
from registry.versions.versions import AdapterVersion, get_version

_FILE = "harness.json"
_TAG = "lorchestra.harness"


def record_harness(client: MlflowClient, ref: AdapterRef | str, results: Mapping[str, Any]) -> str:
    """Keep results of harness tasks as an MLflow run, below the adapter's training run.

    Results of the same tasks under the same conditions replace those of an earlier call.

    Args:
        client: Of the server.
        ref: The version.
        results: Return value of `trainables.evaluation.harness.run_harness`.

    Returns:
        Id of the run. Its metrics are `TASK/METRIC` and `TASK/METRIC.stderr`.

    Raises:
        AdapterNotFoundError: There is no such version.
        IntegrityError: The results belong to another adapter.
        TrackingError: The server cannot be used.
    """
    version = get_version(client, ref)
    if results["adapter"] != version.digest:
        raise IntegrityError(
            f"harness results of {version.ref}: they belong to the adapter {results['adapter']}; "
            f"allowed: {version.digest}. Record them for their own adapter."
        )
    with plain_errors(client.tracking_uri):
        run_id = _open(client, version, results)
        at_ms = client.get_run(run_id).info.start_time
        client.log_dict(run_id, dict(results), _FILE)
        params = {
            "adapter": version.name,
            "version": version.version,
            "form": results["form"],
            "tasks": ",".join(sorted(results["tasks"])),
            "limit": results["limit"],
        }
        client.log_batch(
            run_id,
            metrics=[Metric(key, value, at_ms, 0) for key, value in _metrics(results).items()],
            params=[Param(key, str(value)) for key, value in params.items()],
        )
        client.set_terminated(run_id, "FINISHED")
    return run_id


def _open(client: MlflowClient, version: AdapterVersion, results: Mapping[str, Any]) -> str:
    """Id of the run for the results' tasks and conditions; a missing run is created."""
    tasks = results["tasks"]
    conditions = {
        **{key: results[key] for key in ("adapter", "form", "limit", "packages")},
        "tasks": {name: [task["version"], task["num_fewshot"]] for name, task in tasks.items()},
    }
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
    tags = {
        "lorchestra.kind": "harness",
        "lorchestra.adapter": version.name,
        "lorchestra.version": str(version.version),
        "lorchestra.form": results["form"],
        _TAG: f"sha256:{digest}",
    }
    homes = [adapters_experiment(client)]
    if version.run_id is not None:
        # Earlier versions of lorchestra kept results in the experiment of the training run.
        homes.append(str(client.get_run(version.run_id).info.experiment_id))
        tags["mlflow.parentRunId"] = version.run_id
    identity = {key: tags[key] for key in (_TAG, "lorchestra.adapter", "lorchestra.version")}
    for known in find_runs(client, homes, identity):
        return str(known.info.run_id)
    title = f"harness {version.ref} {results['form']} {' '.join(sorted(tasks))}"
    run = client.create_run(homes[0], tags=tags, run_name=title[:200])
    return str(run.info.run_id)


def _metrics(results: Mapping[str, Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for task, found in results["tasks"].items():
        for metric, one in found["metrics"].items():
            name = f"{task}/{metric.replace(',', '.')}"  # MLflow takes no comma in a name
            values[name] = one["value"]
            if one["stderr"] is not None:
                values[f"{name}.stderr"] = one["stderr"]
    return values
