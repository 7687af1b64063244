"""Parts that many tests share: a tiny random base model with its tokenizer, and tiny data."""

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.support import servers
from tests.support.tiny import build_byte_tokenizer, build_tiny_llama

LONG_FILES = ("test_chaos.py", "test_demo_sweep.py", "test_ui.py")
"""Files with few tests that take long: they start first, so that none runs alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files for two workers: long ones first, then those with many tests."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name not in LONG_FILES, -tests[item.path]))


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a chat template."""
    return build_byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random base model and its tokenizer, as `save_pretrained` leaves it."""
    folder = tmp_path_factory.mktemp("tiny-base")
    build_tiny_llama().save_pretrained(folder)
    build_byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 64 prompt/completion rows that a tiny model can learn."""
    path = tmp_path_factory.mktemp("tiny-data") / "rows.jsonl"
    rows = [
        {"prompt": f"{'abcdefgh'[i % 8] * (3 + i % 5)} ->", "completion": f" {'xyzw'[i % 4]}"}
        for i in range(64)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the base cache out of the home folder; set before Ray's processes inherit it."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORCHESTRA_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that leads to a real S3 server; it holds one bucket, `bucket`."""
    with servers.s3_server(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture
def s3_location(s3_server: dict[str, str]) -> Iterator[str]:
    """An empty place in a bucket, with the environment that leads there."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.items():
            patch.setenv(name, value)
        yield f"s3://bucket/{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["local", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of either kind."""
    if request.param == "local":
        return str(tmp_path / "location")
    remote: str = request.getfixturevalue("s3_location")
    return remote


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[Any]:
    """A real PostgreSQL (`servers.Postgres`); `create(name)` makes a database in it."""
    programs = servers.find_postgres()
    if programs is None:
        if os.environ.get("CI"):
            pytest.fail(servers.POSTGRES_MISSING)
        pytest.skip(servers.POSTGRES_MISSING)
    with servers.postgres(programs) as server:
        yield server


@pytest.fixture(scope="session")
def shared_server(
    shared_postgres: Any,
    s3_server: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """A real MLflow server (`servers.MlflowServer`) for all tests marked `server`.

    Its runs, models and users are in PostgreSQL, its artifacts go through it to S3; whoever comes
    needs a name and a password. It starts in 20 to 90 seconds, so there is one.

        `shared_server.address`, `.admin.environment`
        `shared_server.add_user("eve", {("experiment", "3"): "EDIT"}).environment`
    """
    databases = (shared_postgres.create("mlflow"), shared_postgres.create("users"))
    folder = tmp_path_factory.mktemp("mlflow-server")
    extra = {**s3_server, "MLFLOW_SERVER_ALLOWED_HOSTS": "127.0.0.1:*,localhost:*,mlflow:5000"}
    with servers.mlflow_server(folder, databases, "s3://bucket/mlflow", extra=extra) as server:
        yield server


@pytest.fixture
def as_admin(shared_server: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of the shared server, for a client that is its admin during this test."""
    for name, value in shared_server.admin.environment.items():
        monkeypatch.setenv(name, value)
    address: str = shared_server.address
    return address
