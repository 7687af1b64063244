"""Ray for a block of code: the caller's connection, a named cluster, or a new local one."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import ray

from orchestrator.resources.embedded import embedded_ray
from orchestrator.resources.reachable import check_ray, named_address, plain_ray_errors

_SWITCHES = {
    # The sweep handles Ctrl-C itself: the event log has every step.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Ray Tune's result files would repeat the event log and MLflow.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # The old output engine can be silent; the new one prints a table at any verbosity.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


@contextmanager
def ray_session(cpus: int) -> Iterator[bool]:
    """Ray for the block: the caller's, the Ray at `$RAY_ADDRESS`, or a local one.

    Yields whether the Ray is this process's own, of which no node can come or go.

    Raises:
        ClusterError: Ray cannot be joined or started.
    """
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield False
        return
    check_ray()
    address = named_address()
    with ExitStack() as stack:
        with plain_ray_errors(), keeping_signals():
            if address is None:
                stack.enter_context(embedded_ray(cpus))
            else:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
                stack.callback(ray.shutdown)
        try:
            yield address is None
        finally:
            with keeping_signals():
                stack.close()


@contextmanager
def keeping_signals() -> Iterator[None]:
    """Keep the SIGTERM handler for a start or an end of Ray.

    Ray sets a handler of its own, which exits without a message, and at its end the default one.
    A SIGTERM that arrives in the block is handed to the handler from before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets no handlers here, and so Ray sets none
        return
    handler = signal.getsignal(signal.SIGTERM)
    has_arrived = False
    try:
        yield
    except SystemExit as exit_:  # of Ray's handler
        if exit_.code != signal.SIGTERM:
            raise
        has_arrived = True
    finally:
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)
    if has_arrived:
        signal.raise_signal(signal.SIGTERM)
        raise SystemExit(signal.SIGTERM)  # a handler that returns does not undo half a start
