"""A tracking server and small bundles for the registry's tests."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from registry import Registry
from registry.tracking.connection import connect
from tests.support.bundles import write_bundle

# Warnings of MLflow 3.17.2 about itself, which nothing here can correct.
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
def adapters(tracking_uri: str) -> Registry:
    return Registry(tracking_uri)


@pytest.fixture
def client(tracking_uri: str) -> MlflowClient:
    return connect(tracking_uri)


@pytest.fixture
def new_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Makes a bundle of meaningless weights; its identity follows from the seed."""

    def build(seed: int = 7, metrics: Mapping[str, float] | None = None, **records: Any) -> Path:
        return write_bundle(tmp_path / f"bundle-{seed}", seed, metrics, **records)

    return build


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """An adapter name of the test's own."""
    return re.sub(r"\W", "-", request.node.name)
