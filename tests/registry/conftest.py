"""A tracking server for the registry's tests: one SQLite file for the whole run."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from registry.connection import connect

# Warnings of MLflow 3.17.2 about itself, which nothing here can mend.
THIRD_PARTY = [
    # MLflow's own queries: mlflow/store/tracking/sqlalchemy_store.py
    "ignore:The ``noload`` loader strategy is deprecated and will be removed in a future release."
    ":sqlalchemy.exc.SADeprecationWarning",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for warning in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a fresh database; laying it out takes seconds, so it is done once."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    connect(uri)
    return uri


@pytest.fixture(scope="session")
def artifact_location(tracking_uri: str) -> str:
    return (Path(tracking_uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()


@pytest.fixture
def client(tracking_uri: str) -> MlflowClient:
    return connect(tracking_uri)
