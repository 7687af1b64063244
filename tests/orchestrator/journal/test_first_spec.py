"""Specs of trials are written short, and read whole."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from orchestrator.journal.events import Event
from orchestrator.journal.log import EventLog, read_events
from tests.support.events import ANY_TRIAL, event


def spec_of(trial: int) -> dict[str, Any]:
    return {**ANY_TRIAL, "seed": trial, "lora": {**ANY_TRIAL["lora"], "rank": 2 + trial}}


def start(trial: int) -> Event:
    return event("trial_started", trial=trial, knobs={"lora.rank": 2 + trial}, spec=spec_of(trial))


def test_later_trials_are_told_by_what_differs_from_the_first_one(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        written = [log.append(start(0)), log.append(start(1))]
    with EventLog(path) as log:  # another driver
        written.append(log.append(start(2)))
    whole, *others = (json.loads(line) for line in path.read_text().splitlines())
    assert whole["spec"] == spec_of(0)
    assert [each["changed"] for each in others] == [
        {"lora": {"rank": 3}, "seed": 1},
        {"lora": {"rank": 4}, "seed": 2},
    ]
    assert [each.event.spec for each in written] == [spec_of(0), spec_of(1), spec_of(2)]
    assert list(read_events(path)) == written


def test_a_spec_with_other_fields_than_the_first_one_is_told_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    fewer = {name: value for name, value in ANY_TRIAL["lora"].items() if name != "rslora"}
    older = {**ANY_TRIAL, "lora": fewer}  # of a version that knew fewer fields
    with EventLog(path) as log:
        log.append(event("trial_started", trial=0, knobs={}, spec=older))
        log.append(start(1))
    assert [each.event.spec for each in read_events(path)] == [older, spec_of(1)]


def test_a_spec_that_could_not_be_written_is_not_referred_to(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    code = f"""
import resource, sys
from pathlib import Path
from orchestrator.errors import SweepStorageError
from orchestrator.journal.log import EventLog
from tests.orchestrator.journal.test_first_spec import start
with EventLog(Path({str(path)!r})) as log:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.RLIM_INFINITY))
    try:
        log.append(start(0))
    except SweepStorageError:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        log.append(start(1))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
    assert [each.event.spec for each in read_events(path)] == [spec_of(1)]
