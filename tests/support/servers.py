"""Real servers for tests and benchmarks: PostgreSQL, MLflow with users, and a proxy that fails.

Each is a context manager that yields when the server answers, and has ended every process it
started, by its id, when it is left.
"""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

POSTGRES_MISSING = "needs PostgreSQL's server: apt-get install postgresql"
_START_S = 240.0  # MLflow alone takes 30 to 90 s on a busy machine
_STOP_S = 20.0
_AUTH_INI = """\
[mlflow]
default_permission = {default_permission}
database_uri = {database}
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONWARNINGS": "ignore",
}


# ------------------------------------------------------------------------------------- PostgreSQL


def find_postgres() -> Path | None:
    """Folder of the newest PostgreSQL's programs, `None` where none is installed."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda folder: float(folder.parent.name))
    elsewhere = shutil.which("initdb")
    return None if elsewhere is None else Path(elsewhere).resolve().parent


@contextmanager
def postgres(programs: Path) -> Iterator[Postgres]:
    """A PostgreSQL server that only its own socket leads to, in a new temporary folder.

    The programs refuse to run as root; then they run as the user `postgres`.
    """
    # Short, as the path of a socket has at most 107 bytes, and out of pytest's private folders.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    user: list[str] = []
    if os.geteuid() == 0:
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
        shutil.chown(folder, "postgres", "postgres")
    try:
        data = folder / "data"
        initdb = [*user, programs / "initdb", "-D", data, "-U", "lorchestra", "--auth=trust"]
        subprocess.run(
            [*initdb, "--no-sync", "--encoding=UTF8", "--locale=C"],
            check=True, capture_output=True, cwd=folder,
        )  # fmt: skip
        serve = [*user, programs / "postgres", "-D", data, "-k", folder]
        serve += ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60"]
        log = folder.with_suffix(".log")
        with log.open("wb") as out:
            server = subprocess.Popen(serve, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
        try:
            _await(lambda: _accepts(folder / ".s.PGSQL.5432"), server, log)
            yield Postgres(programs=programs, folder=folder)
        finally:
            server.send_signal(signal.SIGINT)  # "fast": do not wait for clients to leave
            server.wait(_STOP_S)
            log.unlink()
    finally:
        shutil.rmtree(folder)


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """A running server.

    Attributes:
        programs: Folder of its programs.
        folder: Where its data and its socket are.
    """

    programs: Path
    folder: Path

    def create(self, database: str) -> str:
        """Make an empty database; its address for SQLAlchemy."""
        self.run("createdb", database)
        return f"postgresql://lorchestra@/{database}?host={self.folder}"

    def run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs on this server; what it prints."""
        command = [self.programs / program, "-h", self.folder, "-U", "lorchestra", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# ----------------------------------------------------------------------------------------- MLflow


@dataclass(frozen=True, kw_only=True)
class Account:
    """A user of an MLflow server."""

    name: str
    password: str

    @property
    def environment(self) -> dict[str, str]:
        """What MLflow's client reads its credentials from."""
        return {
            "MLFLOW_TRACKING_USERNAME": self.name,
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }


@dataclass(frozen=True, kw_only=True)
class MlflowServer:
    """A running MLflow server with users.

    Attributes:
        address: Its tracking URI, without credentials.
        admin: The user who may do everything.
        process: Its first process.
        log: What it says.
    """

    address: str
    admin: Account
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1])

    def add_user(self, name: str, grants: Mapping[tuple[str, str], str] | None = None) -> Account:
        """Make a user.

        Args:
            name: Its name; a few letters are added, as the server lives for many tests.
            grants: Permission (`READ`, `USE`, `EDIT`, `MANAGE`, `DENY`) by kind and id of a
                resource, as in `("experiment", "3")` or `("registered_model", "n")`.
        """
        account = Account(
            name=f"{name}-{secrets.token_hex(3)}", password=secrets.token_urlsafe(16)
        )
        values = {"username": account.name, "password": account.password}
        self.ask("POST", "2.0/mlflow/users/create", values)
        for (kind, resource), permission in (grants or {}).items():
            grant = {"resource_type": kind, "resource_id": resource, "permission": permission}
            self.ask(
                "POST", "3.0/mlflow/users/permissions/grant", grant | {"username": account.name}
            )
        return account

    def ask(self, method: str, path: str, values: Mapping[str, Any]) -> Any:
        """Call the server's REST API as the admin; what it answers."""
        word = base64.b64encode(f"{self.admin.name}:{self.admin.password}".encode()).decode()
        request = urllib.request.Request(
            f"{self.address}/api/{path}",
            json.dumps(values).encode(),
            {"Authorization": f"Basic {word}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")


@contextmanager
def mlflow_server(
    folder: Path,
    databases: tuple[str, str],
    artifacts: str,
    *,
    extra: Mapping[str, str] | None = None,
    default_permission: str = "READ",
    workers: int = 1,
) -> Iterator[MlflowServer]:
    """An MLflow server with basic authentication on a free port of loopback.

    Args:
        folder: Where its settings and its log go.
        databases: Addresses of two empty databases: MLflow's own, and the one of its users.
        artifacts: Where artifacts go that clients send through the server.
        extra: More environment, such as the way to an S3 server.
        default_permission: What users may do with what others made.
        workers: Processes that answer.
    """
    settings = folder / "auth.ini"
    settings.write_text(
        _AUTH_INI.format(default_permission=default_permission, database=databases[1])
    )
    admin = Account(name="admin", password=secrets.token_urlsafe(16))
    more = {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": admin.password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        **(extra or {}),
    }
    port, log = free_port(), folder / "mlflow.log"
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
    command += ["--backend-store-uri", databases[0], "--artifacts-destination", artifacts]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, cwd=folder,
            env=_without_clients(os.environ) | _QUIET | more,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        _await(lambda: _is_healthy(address), server, log)
        yield MlflowServer(address=address, admin=admin, process=server, log=log)
    finally:
        end_with_children(server)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the block, then put back what was there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def end_with_children(server: subprocess.Popen[bytes]) -> None:
    """End a process and those it started."""
    with suppress(psutil.NoSuchProcess):
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(family, _STOP_S)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    server.wait(_STOP_S)


def free_port() -> int:
    """A port of loopback that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _without_clients(values: Mapping[str, str]) -> dict[str, str]:
    """Without what leads MLflow's clients somewhere: a server must not follow it."""
    return {name: value for name, value in values.items() if not name.startswith("MLFLOW_")}


def _await(is_up: Any, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not is_up():
        if server.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{server.args!r} did not come up:\n{said}")
        time.sleep(0.2)


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def _is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


# ----------------------------------------------------------------------------- a proxy that fails


@dataclass
class Weather:
    """What a proxy does to the requests that come through; change it at any time.

    Attributes:
        kind: `fair` passes all on; `refuse` closes the connection unheard; `error` answers 500;
            `drop` passes the request on and closes the connection instead of answering.
        delay_s: How long each request waits first.
        left: After so many bad requests it is fair again; `None` for never.
        every: One request in so many is treated badly.
        only: A regular expression; requests whose path it is not found in are let through.
        seen: Method and path of each request, in order.
        authorized: The `Authorization` headers that came, decoded.
    """

    kind: str = "fair"
    delay_s: float = 0.0
    left: int | None = None
    every: int = 1
    only: str = ""
    seen: list[tuple[str, str]] = field(default_factory=list)
    authorized: list[str] = field(default_factory=list)
    _turn: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def meet(self, method: str, path: str, authorization: str) -> str:
        """Take note of a request; what is to become of it."""
        with self._guard:
            self.seen.append((method, path))
            self.authorized.append(_decoded(authorization))
            if self.kind == "fair" or not re.search(self.only, path):
                return "fair"
            self._turn = (self._turn + 1) % self.every
            if self._turn:
                return "fair"
            if self.left is not None:
                if self.left == 0:
                    return "fair"
                self.left -= 1
            return self.kind


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A running proxy: its address, and what it does."""

    address: str
    weather: Weather


@contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    """An HTTP proxy on loopback in front of a server on a port of loopback."""
    with _ProxyServer(("127.0.0.1", 0), _ProxyHandler) as server:
        server.behind = port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            yield Proxy(address=address, weather=server.weather)
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


class _ProxyServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    behind = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.weather, self.closing = Weather(), threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _ProxyHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _ProxyServer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def _pass_on(self) -> None:
        body = self._read_body()
        authorization = self.headers.get("Authorization", "")
        fate = self.server.weather.meet(self.command, self.path, authorization)
        self.server.closing.wait(self.server.weather.delay_s)
        if fate == "refuse":
            self._hang_up()
        elif fate == "error":
            self._answer(500, {}, b'{"message": "made to fail"}')
        else:
            self._forward(body, fate)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _forward(self, body: bytes, fate: str) -> None:
        headers = {n: v for n, v in self.headers.items() if n.lower() not in _OF_THE_HOP}
        server = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=60)
        try:
            server.request(self.command, self.path, body, headers)
            answer = server.getresponse()
            content = answer.read()
        except OSError:
            self._hang_up()
            return
        finally:
            server.close()
        if fate == "drop":
            self._hang_up()
        else:
            self._answer(answer.status, dict(answer.headers), content)

    def _answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        with suppress(ConnectionError):  # a client that lost its patience
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in _OF_THE_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815


_OF_THE_HOP = ("content-length", "transfer-encoding", "connection")


def _decoded(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    return f"{scheme} {base64.b64decode(value).decode()}" if scheme == "Basic" else authorization


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """A real S3 server with one bucket, `bucket`; yields the environment that leads to it.

    Args:
        folder: Where it keeps its objects and its log.
    """
    (folder / "data" / "bucket").mkdir(parents=True)
    rclone = Path(sysconfig.get_path("scripts")) / "rclone"
    log = folder / "log.txt"
    command = [str(rclone), "serve", "s3", "--config", "/dev/null", "--log-file", str(log)]
    command += ["--auth-key", "key,a-long-secret", "--addr", "127.0.0.1:0", str(folder / "data")]
    with subprocess.Popen(command) as server:
        try:
            yield {
                "AWS_ENDPOINT_URL": _address_in(log),
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "a-long-secret",
                "AWS_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
        finally:
            server.terminate()


def _address_in(log: Path) -> str:
    """Where the S3 server says that it listens."""
    for _ in range(300):
        said = re.search(r"http://127\.0\.0\.1:\d+", log.read_text() if log.exists() else "")
        if said is not None:
            return said[0]
        time.sleep(0.1)
    raise RuntimeError(f"no S3 server came up: {log}")
