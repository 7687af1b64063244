"""The event log survives killed drivers, full disks and power loss."""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.errors import SweepStorageError
from orchestrator.journal.events import PhaseEnded, TrialReported
from orchestrator.journal.log import EventLog, LogTail, read_events
from tests.support.events import event

WRITER = """
import sys
from pathlib import Path
from orchestrator.journal.events import PhaseEnded
from orchestrator.journal.log import EventLog
log = EventLog(Path(sys.argv[1]))
for i in range(10**9):
    log.append(PhaseEnded(name="x" * 200, seconds=i))
    print(i, flush=True)
"""


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "sweep" / "events.jsonl"
    with EventLog(path) as log:
        first = log.append(event("phase", name="search", seconds=1.5))
        second = log.append(
            event("trial_ended", trial=1, outcome="failed", reason="é", step=0, bundle=None)
        )
    assert list(read_events(path)) == [first, second]
    assert first.kind == "phase"
    assert first.event == PhaseEnded(name="search", seconds=1.5)


def test_missing_log_has_no_events(tmp_path: Path) -> None:
    assert list(read_events(tmp_path / "events.jsonl")) == []


def test_non_finite_metrics_are_strict_json_and_floats_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    metrics = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1}
    with EventLog(path) as log:
        log.append(event("report", trial=0, step=10, metrics=metrics))
    stored = json.loads(path.read_text(), parse_constant=pytest.fail)["metrics"]
    assert stored == {"a": "nan", "b": "inf", "c": "-inf", "d": 0.1}
    (each,) = read_events(path)
    assert math.isnan(each.event.metrics.pop("a"))
    assert each.event.metrics == {"b": math.inf, "c": -math.inf, "d": 0.1}


def test_event_lacking_a_field_is_refused(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as log:
        with pytest.raises(TypeError, match="'step' and 'metrics'"):
            log.append(TrialReported(trial=0))  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="JSON"):
            log.append(PhaseEnded(name="search", seconds=math.nan))
    assert (tmp_path / "events.jsonl").read_bytes() == b""


@pytest.mark.parametrize("torn", [b'{"event":"phase","at":1.0,"na', b"{", b"\0\0\0\0\n"])
def test_torn_last_line_is_skipped_and_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.append(event("phase", name="one", seconds=1))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert [each.event.name for each in read_events(path)] == ["one"]
    with EventLog(path) as log:
        assert path.read_bytes() == whole
        log.append(event("phase", name="two", seconds=1))
    assert [each.event.name for each in read_events(path)] == ["one", "two"]


def test_damage_in_the_middle_is_told_by_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.append(event("phase", name="one", seconds=1))
        log.append(event("phase", name="two", seconds=1))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:9], lines[1], ""]))
    with pytest.raises(SweepStorageError, match="line 2: not an event"):
        list(read_events(path))


def test_second_driver_is_kept_out_and_told_by_whom(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path), pytest.raises(SweepStorageError, match=f"process {os.getpid()} on "):
        EventLog(path)
    EventLog(path).close()


def test_pickled_log_is_no_second_writer(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as log:
        copy = pickle.loads(pickle.dumps(log))
    assert copy.path == log.path
    with pytest.raises(AttributeError):
        copy.append(event("sweep_resumed"))


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:

        def write(worker: int) -> None:
            for i in range(20):
                log.append(event("phase", name=f"{worker}-{i}", seconds=0))

        threads = [threading.Thread(target=write, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    names = [each.event.name for each in read_events(path)]
    assert sorted(names) == sorted(f"{worker}-{i}" for worker in range(8) for i in range(20))


def test_killed_writer_loses_nothing_it_acknowledged_and_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for _ in range(50):
            writer.stdout.readline()
        with pytest.raises(SweepStorageError, match=f"in use by process {writer.pid} on "):
            EventLog(path)
        writer.send_signal(signal.SIGKILL)
        acknowledged = 50 + sum(line.endswith("\n") for line in writer.stdout)
    seconds = [each.event.seconds for each in read_events(path)]
    assert seconds == list(range(len(seconds)))
    assert len(seconds) >= acknowledged
    with EventLog(path) as log:
        log.append(event("sweep_resumed"))
    assert list(read_events(path))[-1].kind == "sweep_resumed"


FILL = """
import resource, sys
from pathlib import Path
from orchestrator.errors import SweepStorageError
from orchestrator.journal.events import PhaseEnded
from orchestrator.journal.log import EventLog
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
with EventLog(Path(sys.argv[1])) as log:
    for number in range(100):
        try:
            log.append(PhaseEnded(name=f"{number}", seconds=1.0))
        except SweepStorageError as error:
            sys.stdout.write(f"{number} {error}")
            break
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    log.append(PhaseEnded(name="later", seconds=1.0))
"""


def test_a_full_disk_is_told_in_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(log)], capture_output=True, text=True, check=True
    )
    written, said = done.stdout.split(" ", 1)
    assert said.startswith(f"{log}: no space is left; allowed: ")
    assert "run the same command again" in said
    kept = [getattr(entry.event, "name", None) for entry in read_events(log)]
    assert kept == [*map(str, range(int(written))), "later"]


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SweepStorageError, match="cannot be written"):
        EventLog(tmp_path / "file" / "events.jsonl")


def test_the_log_is_read_once_however_often_it_is_looked_at(tmp_path):
    with EventLog(tmp_path / "events.jsonl") as log:
        tail = LogTail(log.path)
        for number in range(3):
            log.append(event("phase", name=str(number), seconds=1.0))
            assert [each.event.name for each in tail.read_on()] == [str(number)]
            assert tail.read_on() == []
        known = log.path.read_bytes()
        log.path.write_bytes(b"#" * len(known))  # what was read is not looked at again
        log.append(event("phase", name="last", seconds=1.0))
        assert [each.event.name for each in tail.read_on()] == ["last"]


def test_a_long_log_is_read_in_parts(tmp_path):
    with EventLog(tmp_path / "events.jsonl") as log:
        for number in range(100):
            log.append(event("phase", name=str(number), seconds=1.0))
    tail, parts = LogTail(log.path), []
    while not parts or tail.is_behind:
        parts.append([each.event.name for each in tail.read_on(max_bytes=1000)])
    assert len(parts) > 5
    assert [name for part in parts for name in part] == [str(n) for n in range(100)]
    tail = LogTail(log.path)
    assert len(tail.read_on(max_bytes=10)) == 1  # a line longer than that comes whole


def test_a_line_that_is_being_written_waits_until_it_is_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = LogTail(path)
    assert tail.read_on() == []
    line = b'{"event": "phase", "at": 1.0, "name": "searching", "seconds": 2.0}\n'
    for written in (line[:5], line[:-1]):
        path.write_bytes(written)
        assert tail.read_on() == []
    path.write_bytes(line + line[:9])
    assert [event.kind for event in tail.read_on()] == ["phase"]


def test_a_log_that_was_replaced_or_cut_short_is_read_from_its_start(tmp_path):
    path, other = tmp_path / "events.jsonl", tmp_path / "other.jsonl"
    for log, names in ((path, "ab"), (other, "cd")):
        with EventLog(log) as written:
            for name in names:
                written.append(event("phase", name=name, seconds=1.0))
    tail = LogTail(path)
    assert [each.event.name for each in tail.read_on()] == ["a", "b"]
    other.replace(path)
    assert [each.event.name for each in tail.read_on()] == ["c", "d"]
    assert tail.is_anew
    first = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(first)
    assert [each.event.name for each in tail.read_on()] == ["c"]
    assert tail.is_anew
    assert tail.read_on() == []
    assert not tail.is_anew
    path.unlink()
    assert tail.read_on() == []
    assert tail.is_anew
