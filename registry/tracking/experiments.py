"""Experiments of MLflow: found by name or created; one keeps ledgers and lone adapters."""

from __future__ import annotations

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from registry.errors import TrackingError
from registry.tracking.connection import artifact_location_for, is_already_there, without_secrets

SWEEPS_EXPERIMENT = "lorchestra"
"""Experiment of the sweeps and their trials."""

ADAPTERS_EXPERIMENT = "lorchestra-adapters"
"""Experiment of the evaluations of versions and of the ledgers of alias moves; promoting users
write runs here."""

_NOTES = {
    SWEEPS_EXPERIMENT: (
        "Sweeps and their trials. `lorchestra ui` prints links to each sweep's table and charts."
    ),
    ADAPTERS_EXPERIMENT: (
        "Evaluations of adapter versions, one run for each version, serving form and set of rows; "
        "and the ledgers of alias moves, which `lorchestra adapters history NAME` shows."
    ),
}
"""Descriptions of experiments in MLflow's pages, in Markdown."""


def find_experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    """Id of an experiment, which is created if missing.

    Raises:
        TrackingError: An experiment of that name was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            note = {"mlflow.note.content": _NOTES[name]} if name in _NOTES else None
            return str(client.create_experiment(name, artifact_location, tags=note))
        except MlflowException as error:
            if not is_already_there(error):
                raise
            found = client.get_experiment_by_name(name)  # another process was faster
    if found.lifecycle_stage != "active":
        raise deleted_experiment(client.tracking_uri, name, str(found.experiment_id))
    return str(found.experiment_id)


def deleted_experiment(tracking_uri: str, name: str, number: str) -> TrackingError:
    """Error for a deleted experiment, with the command to restore it."""
    address = without_secrets(tracking_uri)
    return TrackingError(
        f"experiment {name!r}: it was deleted; allowed: an active experiment. Restore it: "
        f"MLFLOW_TRACKING_URI={address} mlflow experiments restore -x {number}"
    )


def require_active(client: MlflowClient, name: str) -> None:
    """Raise `TrackingError` if an experiment was deleted; a missing one is no error."""
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage != "active":
        raise deleted_experiment(client.tracking_uri, name, str(found.experiment_id))


def adapters_experiment(client: MlflowClient) -> str:
    """Id of the experiment for ledgers, and for adapters that no sweep trained."""
    return find_experiment(client, ADAPTERS_EXPERIMENT, artifact_location_for(client.tracking_uri))
