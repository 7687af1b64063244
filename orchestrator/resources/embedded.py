"""The embedded Ray: a cluster of this machine, for this process and this user alone."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private import ray_constants

from orchestrator.resources.private_folder import ending_with_us, private_folder

_DRIVERS_ONLY = "MLFLOW_"
"""Start of the names of variables, credentials among them, that only the driver needs."""


@contextmanager
def embedded_ray(cpus: int) -> Iterator[None]:
    """Run a Ray for the block.

    Its processes listen on the loopback interface only and ask for a token. Its folder is private
    and is removed at the end.

    Raises:
        ClusterError: The folder for temporary files cannot hold Ray's sockets.
        OSError, RuntimeError: Ray does not start.
    """
    # Other users of this machine must not be able to run code as this user. If RAY_AUTH_MODE is
    # not set, ray.init() turns token authentication on for a new cluster. (Setting the mode here
    # would be too late: Ray reads it on import.) With a token in the environment, Ray writes no
    # token file.
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with (
        private_folder() as folder,
        ending_with_us(folder) as take_in,
        _on_loopback_only(),
    ):
        try:  # around the start too: an interrupt may leave processes of Ray behind
            ray.init(
                address="local",
                num_cpus=cpus,
                # No dashboard saves a port, a process and seconds. Train's cleaner of orphaned
                # placement groups needs its API; see `orchestrator.hosts.reservations`.
                include_dashboard=False,
                object_store_memory=200 * 2**20,  # no large objects are stored
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=_without_drivers_secrets(),
                _temp_dir=str(folder / "r"),
            )
            take_in()
            yield
        finally:
            ray.shutdown()


@contextmanager
def _on_loopback_only() -> Iterator[None]:
    """Let Ray take 127.0.0.1 for this node's address, and thus listen nowhere else.

    Ray replaces a loopback address by that of an interface, except where it has this switch: on
    Windows and macOS. Its variable is read when Ray is imported.
    """
    kept = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = kept


def _without_drivers_secrets() -> dict[str, dict[str, str]] | None:
    """Environment of workers, in which variables that only the driver needs are empty."""
    names = sorted(name for name in os.environ if name.startswith(_DRIVERS_ONLY))
    return {"env_vars": dict.fromkeys(names, "")} if names else None
