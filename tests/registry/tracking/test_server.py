"""The UI is served to this machine alone, and a port that is taken is said at once."""

import socket
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from registry.errors import TrackingError
from registry.tracking.server import pages_address, serve_ui


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def refuse(database: Path, port: int) -> str:
    with pytest.raises(TrackingError) as caught, serve_ui(database, port):
        pass
    return str(caught.value)


def test_a_port_that_is_taken_is_refused_in_one_sentence_with_a_free_one(tmp_path: Path) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))  # taken, yet nothing answers
        port = mute.getsockname()[1]
        said = refuse(tmp_path / "mlflow.db", port)
    assert said.startswith(f"--port: got {port}, which another program uses; allowed: ")
    free = int(said.rpartition("--port ")[2].rstrip("."))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("port", [0, -1, 65536, 99999])
def test_a_number_that_is_no_port_is_refused(tmp_path: Path, port: int) -> None:
    assert f"--port: got {port}; allowed: a free port from 1" in refuse(tmp_path / "db", port)


def test_a_server_that_cannot_start_is_told_with_its_log(
    tracking_uri: str, free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Path(tracking_uri.removeprefix("sqlite:///"))
    (tmp_path / "mlflow.py").write_text("raise SystemExit('out of order')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # not from the current folder
    said = refuse(database, free_port)
    assert f"did not start on port {free_port}; see" in said
    assert "out of order" in database.with_name("mlflow-ui.log").read_text()


def answer(port: int, host: str) -> int:
    """Status of a search that a browser sends for a page of this host."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/experiments/search",
        data=b'{"max_results": 1}',
        headers={"Host": host, "Origin": f"http://{host}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request) as found:
            return int(found.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_ui_is_served_on_loopback_and_ends_with_the_block(
    free_port: int, tracking_uri: str
) -> None:
    address = f"http://127.0.0.1:{free_port}"
    with serve_ui(Path(tracking_uri.removeprefix("sqlite:///")), free_port) as server:
        with urllib.request.urlopen(address) as page:
            assert b"mlflow" in page.read().lower()
        assert answer(free_port, pages_address(free_port).removeprefix("http://")) == 200
        assert answer(free_port, f"elsewhere.example:{free_port}") == 403
        addresses = {
            listener.laddr.ip
            for process in [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
            for listener in process.net_connections(kind="inet")
            if listener.status == psutil.CONN_LISTEN
        }
        assert addresses == {"127.0.0.1"}
    assert server.poll() is not None
