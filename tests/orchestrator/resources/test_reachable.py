"""An unusable Ray (gone, silent, another token) gives a message within seconds."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.errors import ClusterError
from orchestrator.resources.reachable import check_ray, plain_ray_errors


@pytest.fixture(autouse=True)
def no_ray_named(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mute_port():
    """A port that accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_ray_that_is_gone_is_told_at_once(monkeypatch, free_port, form):
    monkeypatch.setenv("RAY_ADDRESS", form.format(free_port))
    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"no Ray answers at .*\(connection refused\).*unset"):
        check_ray()
    assert time.monotonic() - started < 2.0


def test_a_ray_that_hangs_is_told_within_ten_seconds(monkeypatch, mute_port):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{mute_port}")
    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"no Ray answers at .*no response within 4 s"):
        check_ray()
    assert time.monotonic() - started < 10.0


def test_what_is_no_ray_is_told(monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.handle_request, daemon=True).start()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{other.server_port}")
        with pytest.raises(ClusterError, match="the server there is not Ray"):
            check_ray()


@pytest.mark.parametrize("address", ["somewhere", "host:", "http://host", ":6379"])
def test_an_address_of_another_form_is_refused(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=r"RAY_ADDRESS: got .*; allowed: HOST:PORT"):
        check_ray()


def test_a_name_that_no_machine_has_is_told(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "no-such-machine.invalid:6379")
    with pytest.raises(ClusterError, match=r"no Ray answers at no-such-machine\.invalid:6379 \("):
        check_ray()


def test_an_error_of_a_start_is_one_sentence():
    with (
        pytest.raises(ClusterError, match=r"cannot be started here \(The node timed out\); allow"),
        plain_ray_errors(),
    ):
        raise RuntimeError("The node\n  timed out")


@pytest.mark.ray
def test_the_token_decides_who_joins(tmp_path):
    script = Path(__file__).with_name("token_cluster.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    wrong, right = done.stdout.strip().splitlines()[-2:]
    assert "does not accept this user's token" in wrong
    assert "RAY_AUTH_TOKEN" in wrong
    assert right == "joined"
