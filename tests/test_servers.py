"""What other tests stand on is real: users, artifacts on S3, and a proxy that fails as told."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from registry.tracking.connection import connect
from tests.support import servers

pytestmark = pytest.mark.server


@pytest.fixture
def proxy(shared_server: Any) -> Iterator[Any]:
    with servers.proxy(shared_server.port) as proxy:
        yield proxy


def status(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_only_users_are_let_in(shared_server: Any) -> None:
    assert status(f"{shared_server.address}/health") == 200
    assert status(f"{shared_server.address}/api/2.0/mlflow/experiments/get?experiment_id=0") == 401
    found = shared_server.ask("GET", "2.0/mlflow/experiments/get?experiment_id=0", {})
    assert found["experiment"]["name"] == "Default"


def test_users_are_of_the_database(shared_server: Any, shared_postgres: Any) -> None:
    account = shared_server.add_user("eve")
    listed = shared_postgres.run("psql", "-d", "users", "-Atc", "select username from users")
    assert account.name in listed.split()


def test_artifacts_go_through_the_server_to_s3(as_admin: str, s3_server: dict[str, str]) -> None:
    client = connect(as_admin)
    run = client.create_run(client.create_experiment("artifacts-on-s3")).info
    client.log_text(run.run_id, "kept", "note.txt")
    assert run.artifact_uri.startswith("mlflow-artifacts:/")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.items():
            patch.setenv(name, value)
        listed = boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix="mlflow/")
    assert [
        entry for entry in listed["Contents"] if f"{run.run_id}/artifacts/note.txt" in entry["Key"]
    ]


def test_a_proxy_fails_as_told_and_is_fair_again(proxy: Any) -> None:
    health = f"{proxy.address}/health"
    assert status(health) == 200
    proxy.weather.kind, proxy.weather.left = "error", 1
    assert [status(health), status(health)] == [500, 200]
    for kind in ("refuse", "drop"):
        proxy.weather.kind, proxy.weather.left = kind, 1
        with pytest.raises((ConnectionError, urllib.error.URLError)):
            status(health)
        assert status(health) == 200
    assert proxy.weather.seen == [("GET", "/health")] * 7


def test_a_proxy_spares_other_paths(proxy: Any) -> None:
    proxy.weather.kind, proxy.weather.only = "error", "log-batch"
    assert status(f"{proxy.address}/health") == 200
    assert status(f"{proxy.address}/api/2.0/mlflow/runs/log-batch") == 500
