"""The UI is served to this machine alone, and a port that is taken is said at once."""

import http.server
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from registry.errors import TrackingError
from registry.tracking.server import serve_ui


class Silent(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def taken_port() -> Iterator[int]:
    with http.server.HTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_port_that_something_answers_on_is_refused(taken_port: int, tmp_path: Path) -> None:
    with (
        pytest.raises(TrackingError, match=f"--port: got {taken_port}.*Choose another"),
        serve_ui(tmp_path / "mlflow.db", taken_port),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_cannot_start_is_told_with_its_log(tracking_uri: str) -> None:
    database = Path(tracking_uri.removeprefix("sqlite:///"))
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))  # taken, yet nothing answers
        port = mute.getsockname()[1]
        with (
            pytest.raises(TrackingError, match=rf"did not start on port {port}; see .*\.log"),
            serve_ui(database, port),
        ):
            pass
    assert database.with_name("mlflow-ui.log").stat().st_size > 0


def test_the_ui_is_served_on_loopback_and_ends_with_the_block(
    free_port: int, tracking_uri: str
) -> None:
    address = f"http://127.0.0.1:{free_port}"
    with serve_ui(Path(tracking_uri.removeprefix("sqlite:///")), free_port) as server:
        with urllib.request.urlopen(address) as page:
            assert b"mlflow" in page.read().lower()
        addresses = {
            listener.laddr.ip
            for process in [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
            for listener in process.net_connections(kind="inet")
            if listener.status == psutil.CONN_LISTEN
        }
        assert addresses == {"127.0.0.1"}
    assert server.poll() is not None
