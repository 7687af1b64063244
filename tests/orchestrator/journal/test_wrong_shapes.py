"""A log whose lines have another shape is read, or refused in one sentence that names the line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.errors import SweepError, SweepStorageError
from orchestrator.finals.repeats import RepeatSearcher
from orchestrator.finals.standings import rank_finalists
from orchestrator.journal.codec import encode_entry
from orchestrator.journal.first_spec import FirstSpec
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.log import decode_events
from orchestrator.journal.sweep_storage import read_history
from orchestrator.live.diary import Diary
from orchestrator.report.news import NewsDesk
from orchestrator.search.schedule import build_scheduler, replay_history
from orchestrator.search.searcher import OptunaSearcher
from orchestrator.spec.sweep import parse_sweep
from tests.support.mutations import mutations, sample
from trainables.errors import TrialError

RECORDED = Path(__file__).with_name("format-1.jsonl")
"""The log of a real sweep, written by an older version."""


def as_written_today():
    first = FirstSpec()
    for entry in decode_events(RECORDED.read_bytes(), "log"):
        yield encode_entry(entry, first)
        if entry.kind == "trial_started":
            first.learn(entry.event.spec)


LINES = list(as_written_today())
"""The same log as this version writes it."""


def mutated_logs():
    """Logs in which one line of each kind is changed in one place: (change, content)."""
    known = set()
    for number, line in enumerate(LINES):
        record = json.loads(line)
        shape = (record["event"], "changed" in record)
        if shape in known:
            continue
        known.add(shape)
        for change, text in mutations(record):
            content = b"".join([*LINES[:number], text.encode() + b"\n", *LINES[number + 1 :]])
            yield f"{record['event']} {change}", number, content


MUTATED = list(mutated_logs())
SAMPLE = sample(MUTATED, 120)


def require_sentence(message, number):
    # Later trials are told by what differs from the first one.
    is_first_lost = "event 'trial_started': " in message
    assert f"log, line {number + 1}: " in message or is_first_lost
    assert "allowed: " in message
    assert len(message) < 900
    assert "\n" not in message.strip()


def require_remedy(message):
    assert "allowed: " in message
    assert len(message) < 900


def test_every_change_of_a_line_is_read_or_named_with_its_line():
    refused = 0
    for change, number, content in sample(MUTATED, 2500):
        try:
            history = SweepHistory()
            for entry in decode_events(content, "log"):
                history.apply(entry)
        except SweepStorageError as error:
            require_sentence(str(error), number)
            refused += 1
        except Exception as error:
            raise AssertionError(change) from error
    assert refused > 500


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"step": [10]}, "event 'report' has step: got [10], "),
        ({"step": 10**30}, "holds the number 1000000000000000000000000000000"),
        ({"step": 10**15}, "event 'report' has step: got 1000000000000000"),
        ({"step": -1}, "event 'report' has step: got -1"),
        ({"step": float("nan")}, "holds the number NaN"),
        ({"metrics": {"eval_loss": 10**400}}, "holds the number 1000000"),
        ({"metrics": {"eval_loss": "y" * 999}}, "has metrics.eval_loss: got 'yyyy"),
        ({"at": [1]}, "not an event (no JSON object with event and at: float() argument"),
        ({"at": -1}, "which is no time"),
        ({"format": "new"}, "not an event (no JSON object"),
        ({"event": ["report"], "trial": []}, ""),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_line_of_wrong_shape_is_named(change, problem):
    good = json.loads(LINES[6])
    assert good["event"] == "report"
    content = LINES[0] + json.dumps({**good, **change}).encode() + b"\n" + LINES[6]
    if not problem:
        assert len(list(decode_events(content, "log"))) == 3  # a kind of a newer version
        return
    with pytest.raises(SweepStorageError) as caught:
        list(decode_events(content, "log"))
    require_sentence(str(caught.value), 1)
    assert problem in str(caught.value)


def test_status_shows_or_refuses_every_change(tmp_path, capsys):
    codes = set()
    for change, _, content in SAMPLE:
        (tmp_path / "events.jsonl").write_bytes(content)
        try:
            codes.add(main(["status", str(tmp_path)]))
        except Exception as error:
            raise AssertionError(change) from error
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert len(said) < 900
    assert codes == {0, 1, 2}


def test_a_driver_resumes_from_or_refuses_every_change(tmp_path, monkeypatch):
    """All that reads the history before a trial starts, without Ray."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    ends = set()
    for change, _, content in SAMPLE:
        Path("events.jsonl").write_bytes(content)
        try:
            history = read_history(tmp_path)
            spec = parse_sweep(history.spec or {}, tmp_path)
            resume(spec, history, content)
            ends.add("resumed")
        except (SweepError, TrialError) as error:
            require_remedy(str(error))
            ends.add("refused")
        except Exception as error:
            raise AssertionError(change) from error
    assert ends == {"resumed", "refused"}


def resume(spec, history, content):
    Diary(spec).read_on(history)
    desk = NewsDesk(spec)
    for entry in decode_events(content, "log"):
        desk.add(entry, is_told=False)
    desk.take()
    replay_history(build_scheduler(spec), history, spec.horizon)
    more = replace(spec, budget=replace(spec.budget, trials=spec.budget.trials + 2))
    OptunaSearcher(more, history, start_points=history.start_points or []).suggest("next")
    RepeatSearcher(more, history, {}, lambda: "").suggest("next")
    rank_finalists(spec, history)


@pytest.mark.parametrize("command", ["run", "resume", "stop", "cancel", "prune"])
def test_no_command_goes_on_with_a_log_of_wrong_shape(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    Path("sweep.yaml").write_text(
        "name: tiny\nbase: {model: owner/name}\ndata: {train: rows.jsonl}\n"
        "optim: {steps: 4}\neval: {every: 2}\nbudget: {trials: 1}\n"
    )
    Path("runs/tiny").mkdir(parents=True)
    log = Path("runs/tiny/events.jsonl")
    log.write_bytes(LINES[0] + LINES[6].replace(b'"step":2', b'"step":[2]') + LINES[6])
    before = log.read_bytes()
    arguments = {"run": ["sweep.yaml"], "stop": ["runs/tiny", "0"]}.get(command, ["runs/tiny"])
    assert main([command, *arguments]) == 1
    said = capsys.readouterr().err
    assert "events.jsonl, line 2: event 'report' has step: got [2]" in said
    assert "Traceback" not in said
    assert log.read_bytes() == before
