"""Ray for a block of code: signals that Ray takes, a Ray that does not start."""

import os
import signal
import subprocess
import sys

import pytest

from orchestrator.resources.session import keeping_signals


def test_sigterm_does_what_it_did_before_ray_took_it():
    def handler(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with keeping_signals():
            signal.signal(signal.SIGTERM, lambda number, frame: None)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_sigterm_that_ray_answered_is_answered_by_the_handler_from_before():
    def handler(number, frame):
        raise KeyboardInterrupt

    def start_ray_and_terminate():
        with keeping_signals():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start_ray_and_terminate()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_ray_that_does_not_start_is_told_with_a_remedy() -> None:
    command = "from orchestrator.hosts import cluster; cluster.ray_for_evaluation().__enter__()"
    done = subprocess.run(
        [sys.executable, "-c", command],
        env={**os.environ, "RAY_TMPDIR": "/dev/null"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stderr.splitlines()[-1]
    assert said.startswith("orchestrator.errors.ClusterError: RAY_TMPDIR: got ")
    assert "where Ray cannot keep its sockets (" in said
    assert "Correct it, or set RAY_TMPDIR to another" in said
