"""Checks within seconds that Ray can be used; Ray itself takes minutes or prints a traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import RayError

from orchestrator.errors import ClusterError
from orchestrator.resources.private_folder import temporary_folder

_CONNECT_S = 4.0
"""Time limit for connecting to the port of a named Ray, and for its first bytes."""
_ANSWER_S = 30.0
"""Time limit for a call of a named Ray: a busy machine takes seconds to import Ray."""

# Start of every gRPC connection: the client's preface and its empty SETTINGS frame (RFC 9113,
# section 3.4). A server must answer with a SETTINGS frame, whose fourth byte is its type.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_FRAME_HEADER_BYTES, _SETTINGS_TYPE = 9, 4

# Runs in a separate process: Ray repeats a refused call for 20 seconds without interruption.
_ASK = """
import sys
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray._raylet import GcsClient
try:
    GcsClient(address=canonicalize_bootstrap_address_or_die(sys.argv[1]))
except Exception as error:
    sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
"""
_REFUSED = "Unauthenticated"


def check_ray() -> None:
    """Check Ray: the server at `$RAY_ADDRESS` accepts calls, or a local Ray can be started.

    Raises:
        ClusterError: The named Ray does not answer within seconds, or does not accept the token;
            or a local Ray has no folder for its sockets.
    """
    address = named_address()
    if address is None:
        temporary_folder()
        return
    if address != "auto":
        _require_greeting(address)
    if not address.startswith("ray://"):
        _require_entry(address)


def named_address() -> str | None:
    """The address in `$RAY_ADDRESS`; `None` to start a local Ray."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


@contextmanager
def plain_ray_errors() -> Iterator[None]:
    """Turn errors of connecting to Ray or starting Ray into one sentence.

    Raises:
        ClusterError: Ray cannot be joined or started; the message has Ray's reason.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError, RayError) as error:
        if isinstance(error, ClusterError):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        address = named_address()
        if address is not None:
            raise _no_entry(address, said) from error
        raise ClusterError(
            f"Ray cannot be started here ({said}); allowed: a machine with free memory and a "
            "writable folder for temporary files. Free memory or disk space, run the same command "
            "again when the machine is less busy, or name a running Ray in RAY_ADDRESS."
        ) from error


def _require_greeting(address: str) -> None:
    """Raise `ClusterError` unless a gRPC server answers at an address."""
    host, port = _host_and_port(address)
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return
            connection.sendall(_GREETING)
            header = connection.recv(_FRAME_HEADER_BYTES)
    except TimeoutError as error:
        raise _no_answer(address, f"no response within {_CONNECT_S:.0f} s") from error
    except OSError as error:
        raise _no_answer(address, (error.strerror or str(error)).lower()) from error
    if len(header) < _FRAME_HEADER_BYTES or header[3] != _SETTINGS_TYPE:
        raise _no_answer(address, "the server there is not Ray, or needs TLS (RAY_USE_TLS=1)")


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("ray://").partition("/")[0].rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(
            f"RAY_ADDRESS: got {address!r}; allowed: HOST:PORT, ray://HOST:PORT, auto or local. "
            "Correct it, or unset RAY_ADDRESS to start a Ray here."
        )
    return host.strip("[]"), int(port)


def _require_entry(address: str) -> None:
    """Raise `ClusterError` if Ray does not accept the token, or does not answer a call."""
    asking = subprocess.Popen(
        [sys.executable, "-c", _ASK, address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert asking.stderr is not None
    patience = threading.Timer(_ANSWER_S, asking.kill)
    patience.start()
    said = ""
    try:
        for line in asking.stderr:
            said = line.strip() or said
            if _REFUSED in line:
                raise ClusterError(
                    f"RAY_ADDRESS: the Ray at {address} does not accept this user's token; "
                    "allowed: the token that Ray was started with. Put the token into "
                    "RAY_AUTH_TOKEN, or the path of its file into RAY_AUTH_TOKEN_PATH, and set "
                    "RAY_AUTH_MODE=token."
                )
        code = asking.wait()
    finally:
        patience.cancel()
        asking.kill()
        asking.wait()
        asking.stderr.close()
    if code < 0:
        raise _no_answer(address, f"no answer to a call within {_ANSWER_S:.0f} s")
    if code:
        raise _no_entry(address, said)


def _no_answer(address: str, why: str) -> ClusterError:
    return ClusterError(
        f"RAY_ADDRESS: no Ray answers at {address} ({why}); allowed: the address of a running "
        "Ray. Correct it, or unset RAY_ADDRESS to start a Ray here."
    )


def _no_entry(address: str, said: str) -> ClusterError:
    return ClusterError(
        f"RAY_ADDRESS: the Ray at {address} cannot be joined ({said}); allowed: a running Ray of "
        "this version, with a node on this machine. Correct the cause, or unset RAY_ADDRESS to "
        "start a Ray here."
    )
