"""What Ray Train sets up in a host's worker."""

import subprocess
import sys
import time

from orchestrator.hosts.backend import LoneWorker, heed_sigterm

SCRIPT = """
import os, signal, threading, time
from orchestrator.hosts import backend

backend.GRACE_S = 1.0
backend.heed_sigterm()
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGTERM)
print("noticed", backend.has_notice(), flush=True)
time.sleep(60.0)
"""


def test_sigterm_is_a_notice_and_the_end_comes_after_the_grace():
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "noticed True\n"
    assert done.returncode == 143
    assert time.monotonic() - began < 50.0


def test_a_lone_worker_starts_no_process_group():
    calls = []

    class Worker:
        def execute(self, function):
            calls.append(function)

    LoneWorker().backend_cls().on_start(Worker(), None)
    assert calls == [heed_sigterm]
