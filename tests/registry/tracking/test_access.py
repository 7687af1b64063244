"""Who may not record is told before a sweep starts; a server that is away is not waited for."""

import http.server
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from registry.errors import TrackingError
from registry.tracking.access import check_access
from registry.tracking.connection import connect
from registry.tracking.experiments import ADAPTERS_EXPERIMENT, adapters_experiment
from tests.support import servers

server = pytest.mark.server


@pytest.fixture
def admin(as_admin: str) -> MlflowClient:
    return connect(as_admin)


def become(account: Any, patch: pytest.MonkeyPatch) -> None:
    for name, value in account.environment.items():
        patch.setenv(name, value)


@server
def test_an_editor_is_let_in_and_nothing_is_written(
    admin: MlflowClient,
    shared_server: Any,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    experiment = admin.create_experiment(name)
    admin.create_registered_model(name)
    ledgers = adapters_experiment(admin)
    assert admin.get_experiment(ledgers).name == ADAPTERS_EXPERIMENT
    grants = {
        ("experiment", experiment): "EDIT",
        ("experiment", ledgers): "EDIT",
        ("registered_model", name): "EDIT",
    }
    with monkeypatch.context() as patch:
        become(shared_server.add_user("editor", grants), patch)
        check_access(shared_server.address, name, name)
        check_access(shared_server.address, f"{name}-new", f"{name}-new")
    assert caplog.text == ""
    assert admin.search_runs([experiment]) == []
    assert admin.get_experiment_by_name(f"{name}-new") is None
    assert admin.search_model_versions(f"name = '{name}'") == []
    found = admin.search_registered_models(f"name LIKE '{name}%'")
    assert [model.name for model in found] == [name]


@server
def test_who_may_only_read_is_told_what_is_missing(
    admin: MlflowClient, shared_server: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = admin.create_experiment(name)
    admin.create_registered_model(name)
    reader = shared_server.add_user("reader")
    writer = shared_server.add_user("writer", {("experiment", experiment): "EDIT"})
    adapters_experiment(admin)
    owner = shared_server.add_user(
        "owner", {("experiment", experiment): "EDIT", ("registered_model", name): "EDIT"}
    )
    stranger = shared_server.add_user("stranger", {("experiment", experiment): "DENY"})
    for account, what in (
        (reader, f"may not write runs to experiment '{name}'"),
        (writer, f"may not make versions of model '{name}'"),
        (owner, f"may not write runs to experiment '{ADAPTERS_EXPERIMENT}'"),
        (stranger, f"may not see experiment '{name}'"),
    ):
        with monkeypatch.context() as patch:
            become(account, patch)
            with pytest.raises(TrackingError, match=f"user '{account.name}' {what}.*EDIT"):
                check_access(shared_server.address, name, name)
    become(writer, monkeypatch)
    check_access(shared_server.address, name)


@server
def test_a_wrong_password_is_told_without_it(
    shared_server: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not-her-password")
    expected = r"does not accept user 'admin'.*MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASS"
    with pytest.raises(TrackingError, match=expected) as caught:
        check_access(shared_server.address, name)
    assert "not-her-password" not in str(caught.value)
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    with pytest.raises(TrackingError, match="accept a user without name and password"):
        check_access(shared_server.address, name)
    secret = shared_server.address.replace("http://", "http://eve:hunter-two@")
    with pytest.raises(TrackingError, match="accept user 'eve'") as caught:
        check_access(secret, name)
    assert "hunter-two" not in str(caught.value)


@server
def test_a_credentials_file_is_enough(
    admin: MlflowClient, shared_server: Any, name: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    account = shared_server.admin
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(
        f"[mlflow]\nmlflow_tracking_username = {account.name}\n"
        f"mlflow_tracking_password = {account.password}\n"
    )
    check_access(shared_server.address, name, name)
    assert connect(shared_server.address).get_experiment_by_name(name) is None


@server
def test_a_token_is_sent_as_such_and_kept_secret(
    shared_server: Any,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-long-token")
    with servers.proxy(shared_server.port) as proxy:
        # MLflow itself knows only passwords (3.17.2 answers 500); proxies before it take tokens.
        check_access(proxy.address, name)
        assert proxy.weather.authorized == ["Bearer a-long-token"]
    assert "500" in caplog.text
    assert "a-long-token" not in caplog.text


@server
def test_a_broken_server_is_a_warning(
    as_admin: str, shared_server: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with servers.proxy(shared_server.port) as proxy:
        for kind in ("error", "refuse", "drop"):
            proxy.weather.kind = kind
            caplog.clear()
            check_access(proxy.address, name)
            assert "records wait on disk" in caplog.text


def test_a_server_that_is_away_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_access("http://eve:hunter-two@127.0.0.1:9", "e", "m")
    assert "tracking server http://127.0.0.1:9 does not answer" in caplog.text
    assert "hunter-two" not in caplog.text


class Stranger(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def stranger() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Stranger) as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{other.server_port}"
        other.shutdown()
        thread.join()


def test_something_else_that_answers_there_is_told(stranger: str) -> None:
    with pytest.raises(
        TrackingError, match=r"no MLflow server \(404.*Correct MLFLOW_TRACKING_URI"
    ):
        check_access(stranger, "e")


class Wary(Stranger):
    def do_GET(self) -> None:
        self.send_error(403, "Invalid Host header - possible DNS rebinding attack detected")


def test_a_name_that_the_server_does_not_go_by_is_told() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Wary) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        address = f"127.0.0.1:{server.server_port}"
        with pytest.raises(TrackingError, match=f"MLFLOW_SERVER_ALLOWED_HOSTS naming {address}"):
            check_access(f"http://{address}", "e")
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("uri", ["htp://mlflow:5000", "mlflow:5000", "./mlruns", "file:///mlruns"])
def test_an_address_of_another_kind_is_refused(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"MLFLOW_TRACKING_URI: got .*allowed: http://"):
        check_access(uri, "e")


def test_a_database_file_is_not_opened(tmp_path: Path) -> None:
    check_access(f"sqlite:///{tmp_path}/new/mlflow.db", "e", "m")
    assert list(tmp_path.iterdir()) == []


def test_a_database_file_must_be_in_a_writable_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    expected = r"got .*; allowed: .*runs cannot be written\. Correct"
    with pytest.raises(TrackingError, match=expected):
        check_access(f"sqlite:///{tmp_path}/runs/mlflow.db", "e")
