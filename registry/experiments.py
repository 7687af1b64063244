"""Experiments of MLflow: found by name, or created; and the one for adapters without a sweep."""

from __future__ import annotations

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from registry.connection import artifact_location_for, is_already_there
from registry.errors import TrackingError

ADAPTERS_EXPERIMENT = "lorchestra-adapters"
"""Experiment of the ledgers of alias moves, in which users who promote write runs."""


def find_experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    """Id of an experiment, which is created if missing.

    Raises:
        TrackingError: An experiment of that name was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location))
        except MlflowException as error:
            if not is_already_there(error):
                raise
            found = client.get_experiment_by_name(name)  # another process was faster
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"experiment {name!r}: it was deleted; allowed: a new name or an active experiment. "
            f"Restore it: mlflow experiments restore -x {found.experiment_id}"
        )
    return str(found.experiment_id)


def adapters_experiment(client: MlflowClient) -> str:
    """Id of the experiment for ledgers, and for adapters that no sweep trained."""
    return find_experiment(client, ADAPTERS_EXPERIMENT, artifact_location_for(client.tracking_uri))
