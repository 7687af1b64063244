"""The page of a report, as a reader opens it: its size, its peace and what moves on it."""

import json
import math
import random
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.pages.coordinates import Line, draw_coordinates
from orchestrator.pages.files import write_report
from orchestrator.pages.page import build_page
from orchestrator.pages.provenance import describe_sweep
from orchestrator.pages.trial_charts import label_trials
from orchestrator.report.importance import Importance
from orchestrator.report.report import build_report
from orchestrator.spec.sections import ObjectiveSpec
from tests.orchestrator.report.test_report import Story, build_sweep, tell_finals, tell_whole_sweep
from tests.support.ended import EndedSweep
from tests.support.events import event
from tests.support.pages import CHROMIUM, CHROMIUM_MISSING, chromium

LARGEST = 1_500_000
NOTHING = Importance(trials=0, note="")


def tell_many(spec, trials):
    """A long sweep: trials with 5 to 20 reports each."""
    story, rng = Story(spec), random.Random(3)
    for number in range(trials):
        lowest = 0.5 + rng.random()
        steps = rng.choice([5, 10, 20])
        losses = [lowest + 2 * math.exp(-step / 4) for step in range(steps)]
        reason = f"others were better at step {steps} (rung 1: 0.5 < {lowest:.4f})"
        story.trial(number, losses, "completed" if steps == 20 else "stopped", reason)
    return story.history


def build(spec, history, storage=Path("/storage")):
    return build_page(build_report(spec, history, storage), spec, history, NOTHING)


def test_three_hundred_trials_are_a_small_page():
    spec = build_sweep()
    page = build(spec, tell_many(spec, 300))
    assert page.count("<tr ") == 300
    assert len(page.encode()) < LARGEST * 0.8


def test_repeats_are_dashed_and_belong_to_their_finalist():
    spec = build_sweep()
    page = build(spec, tell_finals(spec))
    assert page.count('<path class="dashed"') == 2
    assert "trial 2, repeats 0 with another seed" in page
    assert 'data-trial="2"' not in page


def test_every_searched_setting_has_a_column_a_panel_and_an_axis():
    spec = build_sweep()
    page = build(spec, tell_whole_sweep(spec))
    for head, name in (("r", "lora.rank"), ("α", "lora.alpha"), ("lr", "optim.learning_rate")):
        assert f'title="{name}">{head}</th>' in page
        assert f"eval_loss by {head} ({name})" in page
        assert f'y="-12">{head}</text>' in page
    told = label_trials(build_report(spec, tell_whole_sweep(spec), Path("/s")))
    assert told[5].splitlines() == [
        "trial 5 (completed), eval_loss 0.5000",
        "r 16, α 32, targets attention, lr 0.0036, micro none",
    ]


def test_a_further_objective_has_a_panel_with_the_front():
    spec = build_sweep(objective=ObjectiveSpec(also={"tokens_per_s": "max"}))
    story = Story(spec)
    for number, (loss, speed) in enumerate([(0.5, 10.0), (0.6, 20.0), (0.7, 5.0)]):
        story.trial(number, [loss])
        metrics = {"eval_loss": loss, "tokens_per_s": speed}
        story.tell("report", trial=number, step=40, metrics=metrics)
        end = {"outcome": "completed", "reason": "", "step": 40, "bundle": "b"}
        story.tell("trial_ended", trial=number, **end)
    page = build(spec, story.history)
    assert "eval_loss by tokens_per_s" in page
    assert "Pareto front of the sweep&#x27;s objectives: trials 0, 1." in page


def test_the_first_line_of_the_coordinates_is_the_strongest_and_on_top():
    lines = [Line(trial=trial, values=[trial, 0.1 * trial]) for trial in (4, 2, 9)]
    chart = draw_coordinates(["r", "eval_loss"], lines)
    assert [one.split('"')[0] for one in chart.split('data-trial="')[1:]] == ["9", "2", "4"]
    assert chart.index('class="best"') > chart.index('class="front"')


def test_the_page_says_what_the_sweep_is_about(tmp_path):
    spec = build_sweep()
    history = tell_whole_sweep(spec)
    history.pins = {"model owner/name": "0123456789abcdef"}
    facts = {"rows": {"train": {"rows": 1440}}}
    history.data_facts = {"owner/name": facts}
    bundle = tmp_path / "trials/5/bundle"
    bundle.mkdir(parents=True)
    manifest = {"data": {"train": "sha256:feed5"}, "packages": {"torch": "2.13"}, "base": {}}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    told = describe_sweep(build_report(spec, history, tmp_path), spec, history)
    for part in (
        "owner/name at 0123456789ab", "1,440 rows, feed5", "torch 2.13", "1970-01-01 00:00",
        "eval_loss (min)", "lora.rank, lora.alpha_per_rank",
    ):  # fmt: skip
        assert part in told
    (bundle / "manifest.json").write_text("[")
    assert "torch" not in describe_sweep(build_report(spec, history, tmp_path), spec, history)


def test_forecast_and_outcome_of_hosts_stand_side_by_side():
    spec = build_sweep()
    history = tell_finals(spec)
    assert "Memory and seats of hosts" not in build(spec, history)
    parts = {"base": 4_000_000, "adapters": 1000, "optimizer": 2000, "passing": 9_000_000}
    more = {**parts, "passing": 9_900_000}
    history.hosts_measured.append(event(
        "host_measured", host="h000", group="owner/name nf4 auto", seats=3, train_tokens=1024,
        forecast=parts, measured=more, capacity=24 * 10**9, factor=1.1,
    ))  # fmt: skip
    decision = event("seats_decided", host="h000", group="owner/name nf4 auto", seats=3,
                     reason="memory", by_memory=3)  # fmt: skip
    history.seats_decided.append((1.0, decision))
    page = build(spec, history)
    assert "Memory and seats of hosts" in page
    for said in ("9.0 MB / 9.9 MB", "13.0 MB / 13.9 MB", "1.10", "24.0 GB", "1,024"):
        assert said in page
    assert "3 seats, because its memory is forecast to hold 3." in page


def test_the_command_writes_the_report_again(tmp_path, capsys):
    folder = Path(EndedSweep(tmp_path / "tiny").end().storage.location)
    assert main(["report", str(folder), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Trial 1 won, with a single run.")
    assert f"{tmp_path}/out/report.html" in told
    assert not (folder / "report").exists()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report" / "report.html").is_file()
    assert main(["report", str(folder), "--out", str(folder / "events.jsonl")]) == 2
    assert "--out: got" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The page in Chromium, with all that it asked for and said to the console."""
    if not CHROMIUM.exists():
        pytest.skip(CHROMIUM_MISSING)
    folder, spec = tmp_path_factory.mktemp("page"), build_sweep()
    history = tell_finals(spec)
    report = build_report(spec, history, folder)
    write_report(report, spec, history, folder)
    with chromium() as browser:
        page = browser.new_context(viewport={"width": 420, "height": 900}).new_page()
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.goto((folder / "report.html").as_uri())
        yield page


@pytest.mark.browser
def test_nothing_leaves_the_page_and_nothing_breaks(opened):
    outside = [url for url in opened.asked if not url.startswith(("file:", "data:"))]
    assert (outside, opened.said) == ([], [])
    assert len(opened.asked) >= 1


@pytest.mark.browser
def test_the_page_fits_a_telephone(opened):
    assert opened.evaluate("document.documentElement.scrollWidth") == 420
    drawn = opened.locator("svg.plot").evaluate_all("all => all.map(one => one.clientWidth)")
    assert len(drawn) > 4
    assert min(drawn) > 250


@pytest.mark.browser
def test_a_click_on_a_row_stresses_its_trial_in_all_charts(opened):
    row = opened.locator('tr[data-trial="1"]')
    row.click()
    stressed = "document.querySelectorAll('g.on[data-trial=\"1\"]').length"
    assert opened.evaluate(stressed) > 5
    assert opened.evaluate("document.querySelectorAll('g.on:not([data-trial=\"1\"])').length") == 0
    row.press("Escape")
    assert opened.evaluate(stressed) == 0


@pytest.mark.browser
def test_a_curve_tells_its_settings_on_hovering(opened):
    opened.locator('svg.plot g[data-trial="0"] circle').first.hover()
    told = opened.locator("#tip").inner_text()
    assert "trial 0 (completed)" in told
    assert "lr 1e-4" in told
    assert "step 20: 0.5000" in told


@pytest.mark.browser
def test_a_click_on_a_heading_sorts_and_a_second_one_turns_round(opened):
    table = opened.locator("table.sortable")
    trials = "rows => rows.map(row => row.dataset.trial)"
    head = table.locator("th button", has_text="lr")
    for wanted in (["0", "1"], ["1", "0"]):
        head.click()
        assert table.locator("tbody tr").evaluate_all(trials) == wanted
