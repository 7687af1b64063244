"""Events are decoded as encoded; logs of other versions are read, or refused with a message."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from orchestrator.errors import SweepStorageError
from orchestrator.journal import codec
from orchestrator.journal.codec import LOG_FORMAT, decode_entry, encode_entry
from orchestrator.journal.events import EVENT_TYPES, Event, LogEntry, PhaseEnded, UnknownEvent
from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.journal.log import EventLog, read_events
from orchestrator.outcome import Outcome

OLD_LOG = Path(__file__).with_name("format-1.jsonl")
OLD_HISTORY = OLD_LOG.with_suffix(".history.json")
SAMPLES = {str: "text", int: 3, float: 2.5, bool: True, Outcome: Outcome.STOPPED}


def sample(kind: Any) -> Any:
    """A value of a field's type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return arguments[0]
    if origin in (Union, UnionType):
        return sample(next(each for each in arguments if each is not NoneType))
    if origin is Sequence:
        return [sample(arguments[0])]
    if origin is Mapping:
        return {"name": 1.5 if arguments[1] is Any else sample(arguments[1])}
    return SAMPLES[kind]


def build_sample(kind: type[Event]) -> Event:
    types = get_type_hints(kind)
    return kind(**{field.name: sample(types[field.name]) for field in dataclasses.fields(kind)})


def line(**values: Any) -> bytes:
    return json.dumps({"event": "phase", "at": 1.0, "name": "x", "seconds": 1} | values).encode()


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_every_event_is_read_as_it_was_written(name: str) -> None:
    written = LogEntry(at=12.5, event=build_sample(EVENT_TYPES[name]))
    assert decode_entry(encode_entry(written), "log") == written
    assert json.loads(encode_entry(written))["event"] == name


def test_fields_that_have_their_default_are_left_out_and_come_back() -> None:
    line = b'{"event":"report","at":1.0,"trial":0,"step":2,"metrics":{}}'
    entry = decode_entry(line, "log")
    assert entry.event.is_fault is False  # type: ignore[union-attr]
    assert json.loads(encode_entry(entry)).keys() == {
        "event", "format", "at", "trial", "step", "metrics"
    }  # fmt: skip


def test_a_log_of_a_newer_format_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line() + b"\n" + line(format=LOG_FORMAT + 1) + b"\n")
    message = rf"line 2: got format {LOG_FORMAT + 1} .*allowed: 1 to {LOG_FORMAT}\. A newer"
    with pytest.raises(SweepStorageError, match=message):
        list(read_events(path))
    with pytest.raises(SweepStorageError, match="A newer version"):
        EventLog(path)


def test_kinds_and_fields_of_a_newer_version_are_passed_over_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    codec._warn_once.cache_clear()
    known = decode_entry(line(invented=1), "log")
    unknown = decode_entry(line(event="invented_later"), "log")
    decode_entry(line(event="invented_later"), "log")
    assert known.event == PhaseEnded(name="x", seconds=1.0)
    assert unknown.event == UnknownEvent(kind="invented_later")
    assert [record.message.partition(",")[0] for record in caplog.records] == [
        "the event log has the field 'invented' of events 'phase'",
        "the event log has events 'invented_later'",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"event": "base_evaluated", "metrics": {}}, "'base_evaluated' lacks base, split"),
        ({"seconds": "long"}, "'phase' has seconds: got 'long', "),
        (
            {"event": "report", "trial": 0, "step": 1, "metrics": {"a": "b"}},
            "'report' has metrics.a: got",
        ),
    ],
    ids=["field-lacks", "wrong-type", "wrong-metric"],
)
def test_an_event_that_cannot_be_read_is_named(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(**values) + b"\n")
    with pytest.raises(SweepStorageError, match=rf"line 1: event {message}"):
        list(read_events(path))


def tell(history: SweepHistory) -> dict[str, Any]:
    """The facts of a history, as `format-1.history.json` has them."""
    return {
        "sweep_id": history.sweep_id,
        "digest": history.digest,
        "status": history.status,
        "reason": history.reason,
        "resumes": history.resumes,
        "trials": {str(number): tell_trial(trial) for number, trial in history.trials.items()},
        "base": history.base_metrics,
        "phases": history.phases,
        "promotions": [[one.ref, one.promoted, one.reason] for one in history.promotions],
        "spent": [history.meter.wall_clock_s(), history.meter.cpu_s, history.meter.gpu_s],
        "start_points": history.start_points,
        "stages": {name: [stage.reason, stage.under] for name, stage in history.stages.items()},
    }


def tell_trial(trial: TrialRecord) -> dict[str, Any]:
    return {
        "outcome": trial.outcome,
        "reason": trial.reason,
        "bundle": trial.bundle,
        "knobs": trial.knobs,
        "seed": trial.spec["seed"],
        "reports": [[report.step, report.metrics] for report in trial.reports],
        "final": trial.final_metrics,
        "ref": trial.ref,
        "repeat_of": trial.repeat_of,
        "ended_by": trial.ended_by,
        "pruned": sorted(trial.pruned),
        "started_at": trial.started_at,
        "ended_at": trial.ended_at,
        "forms": trial.forms,
        "fingerprints": {name: form.fingerprint for name, form in trial.forms_evaluated.items()},
    }


def test_a_log_of_format_1_reads_to_the_history_that_its_version_had() -> None:
    """Both files were written by the last version before format 2."""
    assert tell(SweepHistory.read(OLD_LOG)) == json.loads(OLD_HISTORY.read_text())


def test_a_log_of_format_1_goes_on_under_the_format_of_today(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(OLD_LOG.read_bytes())
    with EventLog(path) as log:
        log.append(PhaseEnded(name="recording", seconds=1.0))
    lines = [json.loads(each) for each in path.read_text().splitlines()]
    assert [each.get("format") for each in lines[-2:]] == [None, LOG_FORMAT]
    assert SweepHistory.read(path).trials == SweepHistory.read(OLD_LOG).trials
