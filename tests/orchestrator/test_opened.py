"""A sweep opened for reading: what it shows, and that it reads on."""

from pathlib import Path

import pytest

import orchestrator
from orchestrator import SweepStorageError, open_sweep
from tests.support.ended import EndedSweep


@pytest.fixture
def running(tmp_path):
    sweep = EndedSweep(tmp_path / "runs" / "tiny")
    yield sweep
    sweep.log.close()


def test_a_running_sweep_is_read_on_beside_its_driver(running):
    opened = open_sweep(running.storage.location)
    first = opened.report
    assert (opened.status, opened.is_over, first.status) == ("running", False, "running")
    assert opened.refresh().report is first, "nothing new: the report is not made again"

    running.trial(4, "diverged", 9.0, reason="loss is nan")
    running.end()

    assert opened.report is first, "only refresh reads the log"
    report = opened.refresh().report
    assert (opened.is_over, report.status) == (True, "completed")
    assert list(report.leaderboard["trial"]) == [1, 3, 2, 0, 4]
    assert "5 of 5 trials ended" in repr(opened)


def test_the_tables_hold_every_evaluation_and_outcome(running):
    running.trial(4, "diverged", 9.0, reason="loss is nan")
    running.trial(5, "", 2.5, repeat_of=1)
    report = open_sweep(running.storage.location).report

    curves = report.curves
    assert list(curves.columns) == ["trial", "repeat_of", "step", "eval_loss", "seconds"]
    assert list(curves["eval_loss"]) == [4.0, 1.0, 3.0, 2.0, 9.0, 2.5]
    assert curves["repeat_of"].dropna().to_dict() == {5: 1}
    rows = report.outcomes.to_dict("records")
    assert rows == [
        {"outcome": "completed", "trials": 4, "share": 0.8, "reason": ""},
        {"outcome": "diverged", "trials": 1, "share": 0.2, "reason": "loss is nan"},
    ]


def test_only_new_bytes_are_read_and_a_line_in_writing_waits(running):
    path = running.log.path
    opened = open_sweep(running.storage.location)
    whole = path.read_bytes()
    line = whole.splitlines(keepends=True)[-1]
    # What was read once is not read again: a damaged beginning stays unnoticed.
    path.write_bytes(b"#" * len(whole) + line[:20])
    assert opened.refresh().status == "running"
    path.write_bytes(b"#" * len(whole) + line.replace(b'"trial":3', b'"trial":2'))
    assert opened.refresh().report.status == "running"
    path.write_bytes(b"#" * 10)
    with pytest.raises(SweepStorageError, match="holds 4 trials"):
        opened.refresh()
    path.unlink()
    with pytest.raises(SweepStorageError, match="holds 4 trials"):
        opened.refresh()


def test_a_log_in_a_bucket_is_read_too(s3_location):
    with_bucket = EndedSweep(s3_location)
    opened = open_sweep(s3_location)
    assert opened.report.best.location == s3_location
    with_bucket.end()
    assert opened.refresh().is_over


def test_a_place_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(SweepStorageError, match=r"storage: got .*holds no sweep.*Run a sweep"):
        open_sweep(tmp_path)


def test_a_notebook_shows_the_report_with_texts_escaped(running):
    running.trial(4, "failed", 9.0, reason="<script>alert(1)</script>")
    opened = open_sweep(running.storage.location)
    shown = opened._repr_html_()
    assert "<b>tiny</b>: running" in shown
    assert "Best: trial 1, eval_loss 1.0000, not registered" in shown
    assert "<script>" not in shown
    assert shown.count("<tr") == 6


def test_pictures_are_png_files(running, tmp_path):
    report = open_sweep(running.storage.location).report
    picture = report.plot()
    assert picture._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.save(tmp_path / "curves.png").read_bytes() == picture.png
    assert report.plot("importance") is None, "four trials do not tell settings apart"


@pytest.mark.parametrize("package", ["orchestrator", "registry", "trainables"])
def test_a_package_says_that_it_is_typed(package):
    assert (Path(orchestrator.__file__).parents[1] / package / "py.typed").is_file()
