"""Whether a driver runs a sweep, seen without taking its lock."""

import subprocess
import sys
import time

from orchestrator.journal.drivers import SILENT_S, has_driver
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.lease import Lease
from orchestrator.journal.log import EventLog
from orchestrator.journal.sweep_storage import SweepStorage
from tests.support.events import entry

HOLD = """
import sys
from pathlib import Path
from orchestrator.journal.log import EventLog
with EventLog(Path(sys.argv[1])):
    print("open", flush=True)
    sys.stdin.read()
"""


def begun(at):
    history = SweepHistory()
    history.apply(entry("sweep_started", at, sweep_id="s", spec={}, digest="d"))
    return history


def test_a_lock_is_seen_while_another_process_holds_it_and_never_taken(tmp_path):
    storage, history = SweepStorage(tmp_path), begun(time.time())
    assert not has_driver(storage, history)
    command = [sys.executable, "-c", HOLD, str(tmp_path / "events.jsonl")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout.readline() == "open\n"
        assert has_driver(storage, history)
        driver.kill()
        driver.wait()
        assert not has_driver(storage, history)  # the lock file is still there
    with EventLog(tmp_path / "events.jsonl"):
        pass


def test_a_driver_on_another_machine_counts_by_its_last_event(tmp_path):
    (tmp_path / "events.lock").write_text("process 7 on another-machine")
    storage = SweepStorage(tmp_path)
    assert has_driver(storage, begun(time.time()))
    assert not has_driver(storage, begun(time.time() - SILENT_S - 1))


def test_a_driver_of_a_bucket_is_seen_by_its_lease(s3_location):
    storage, lease = SweepStorage(s3_location), Lease(s3_location, settle_s=0.0)
    assert not has_driver(storage, begun(0.0))
    lease.take()
    try:
        assert has_driver(storage, begun(0.0))
    finally:
        lease.close()
    assert not has_driver(storage, begun(0.0))
