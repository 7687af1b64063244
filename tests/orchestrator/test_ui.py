"""What a sweep leaves in MLflow, looked at in a browser.

A screenshot of each test's last page is kept in `$LORCHESTRA_SCREENSHOTS`, else in the tests'
temporary folder.
"""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import run_sweep
from orchestrator.spec.sweep import parse_sweep
from registry.tracking.connection import connect
from registry.tracking.experiments import SWEEPS_EXPERIMENT
from registry.tracking.server import pages_address, serve_ui
from registry.tracking.views import newest_links
from tests.support import pages

# One sweep, one server and one browser for all: a minute on an idle machine, ten on a busy one.
pytestmark = [pytest.mark.ray, pytest.mark.browser, pytest.mark.timeout(900)]

TRIALS = 6
IS_TRIAL = "tags.`lorchestra.kind` = 'trial'"
SEARCHED = ("quantization", "lora.rank", "lora.alpha", "lora.targets", "optim.learning_rate")
EXPERIMENT = "1"


@pytest.fixture(scope="module")
def swept(local_ray, tiny_base, tiny_data, tmp_path_factory) -> SimpleNamespace:
    """A real sweep over five settings, with two versions, as the API of its database tells it."""
    folder = tmp_path_factory.mktemp("ui")
    spec = parse_sweep(
        {
            "name": "tiny",
            "base": {"model": str(tiny_base)},
            "data": {"train": str(tiny_data), "max_tokens": 32},
            "optim": {"steps": 12, "batch_size": 4},
            "eval": {"every": 4},
            "space": {
                "base.quantization": {"choice": ["nf4", "none"]},
                "lora.rank": {"choice": [2, 4, 8]},
                "lora.alpha": {"choice": [4, 8, 16]},
                "lora.targets": {"choice": ["attention", "mlp", ["q_proj", "v_proj"]]},
                "optim.learning_rate": {"log_uniform": [1e-3, 2e-2]},
            },
            "schedule": {"algorithm": "none"},
            "budget": {"trials": TRIALS},
            "hosts": {"seats": 2},
            "finals": {"top": 2, "seeds": 0, "forms": ["trained"]},
            "register": {"name": "tiny-adapter", "top": 2},
        },
        tiny_data.parent,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        report = run_sweep(spec, folder / "tiny")
    database = folder / "mlflow.db"
    client = connect(f"sqlite:///{database}")
    trials = client.search_runs([EXPERIMENT], IS_TRIAL, order_by=["metrics.eval_loss ASC"])
    (sweep,) = client.search_runs([EXPERIMENT], "tags.`lorchestra.kind` = 'sweep'")
    return SimpleNamespace(
        report=report, database=database, client=client, trials=trials, sweep=sweep
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not pages.CHROMIUM.exists():
        if os.environ.get("CI"):
            pytest.fail(pages.CHROMIUM_MISSING)
        pytest.skip(pages.CHROMIUM_MISSING)
    with pages.chromium() as running:
        yield running


@pytest.fixture(scope="module")
def address(browser: Any, swept: SimpleNamespace) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with serve_ui(swept.database, port):
        yield pages_address(port)


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("LORCHESTRA_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def ui(browser: Any, address: str, screenshots: Path, request: Any) -> Any:
    """MLflow, for a visitor who was never there."""
    with pages.new_page(browser) as page:
        yield pages.Pages(page, address)
        page.screenshot(path=screenshots / f"{request.node.name}.png")


def names(runs):
    return [run.info.run_name for run in runs]


def links(swept, address):
    (found,) = newest_links(swept.client, SWEEPS_EXPERIMENT, address, {}, may_save=False)
    return found


def history(swept, run, metric):
    points = swept.client.get_metric_history(run.info.run_id, metric)
    return [(point.step, pytest.approx(point.value)) for point in points]


def test_trials_stand_in_one_table_with_settings_and_metrics(ui, swept):
    ui.open_runs(EXPERIMENT)
    ui.sort("eval_loss", ascending=True)
    ui.search(IS_TRIAL, TRIALS)
    ui.choose_columns(*SEARCHED, "eval_accuracy")  # sorting by eval_loss has shown that one
    rows = ui.table()
    assert [row["Run Name"] for row in rows] == names(swept.trials)
    for row, run in zip(rows, swept.trials, strict=True):
        assert {name: row[name] for name in SEARCHED} == {
            name: run.data.params[name] for name in SEARCHED
        }
        for metric in ("eval_loss", "eval_accuracy"):
            assert float(row[metric]) == pytest.approx(run.data.metrics[metric])


def test_the_link_of_a_sweep_opens_its_sorted_table_of_trials_without_a_click(ui, swept, address):
    ui.page.set_viewport_size({"width": 1800, "height": 720})
    ui.open_link(links(swept, address).table)
    ui.await_first_run(swept.trials[0].info.run_name)
    rows = ui.table()
    assert [row["Run Name"] for row in rows] == names(swept.trials)
    assert {*SEARCHED, "eval_loss", "eval_accuracy"} <= rows[0].keys()
    assert not ui.is_anything_open()


def test_the_link_of_a_sweep_opens_the_comparison_of_its_trials_without_a_click(
    ui, swept, address
):
    ui.page.set_viewport_size({"width": 1400, "height": 1400})  # charts are drawn when seen
    ui.open_link(links(swept, address).charts)
    assert set(ui.chart_axes(len(SEARCHED) + 1)) == {*SEARCHED, "eval_loss"}
    assert ui.curves("eval_loss", TRIALS).keys() == set(names(swept.trials))
    assert not ui.is_anything_open()


def test_without_a_filter_the_best_trial_is_the_first_of_all_runs(ui, swept):
    ui.open_runs(EXPERIMENT, orderByKey="metrics.`eval_loss`", orderByAsc="true")
    ui.await_first_run(swept.trials[0].info.run_name)
    assert ui.run_names()[:TRIALS] == names(swept.trials)


def test_a_click_on_a_metric_turns_the_order_round(ui, swept):
    ui.open_runs(EXPERIMENT, orderByKey="metrics.`eval_loss`", orderByAsc="true")
    ui.search(IS_TRIAL, TRIALS)
    ui.choose_columns("eval_loss")
    assert ui.run_names() == names(swept.trials)
    ui.click_head("eval_loss")
    ui.await_first_run(swept.trials[-1].info.run_name)
    assert ui.run_names() == names(swept.trials)[::-1]


def test_runs_are_found_by_a_setting_and_a_metric(ui, swept):
    limit = float(swept.trials[-2].data.metrics["eval_loss"])
    rank = swept.trials[0].data.params["lora.rank"]
    wanted = [
        run
        for run in swept.trials
        if run.data.params["lora.rank"] == rank and run.data.metrics["eval_loss"] < limit
    ]
    assert 0 < len(wanted) < TRIALS
    ui.open_runs(EXPERIMENT)
    ui.sort("eval_loss", ascending=True)
    ui.search(f'params."lora.rank" = "{rank}" and metrics.eval_loss < {limit}', len(wanted))
    assert ui.run_names() == names(wanted)


def test_without_a_sort_by_metric_trials_are_folded_below_their_sweep(ui, swept):
    ui.open_runs(EXPERIMENT)
    assert "tiny" in ui.run_names()
    assert not set(names(swept.trials)) & set(ui.run_names())
    ui.unfold("tiny")
    ui.await_run(swept.trials[0].info.run_name)
    assert set(names(swept.trials)) <= set(ui.run_names())


def test_settings_are_axes_of_the_comparison(ui, swept):
    ui.open_runs(EXPERIMENT, orderByKey="metrics.`eval_loss`", orderByAsc="true")
    ui.search(IS_TRIAL, TRIALS)
    ui.choose_all_runs()
    ui.compare_chosen()
    ui.add_axis("Parameters", "quantization")
    wanted = {"quantization", "lora.rank", "lora.alpha", "lora.targets", "eval_loss"}
    ui.await_axes(len(wanted))
    assert set(ui.axes()) == wanted
    assert {"nf4", "none"} <= set(ui.axis_ticks("quantization"))


def test_a_metric_is_a_curve_by_step(ui, swept):
    best = swept.trials[0]
    ui.open_run(EXPERIMENT, best.info.run_id, "model-metrics")
    (points,) = ui.curves("eval_loss", 1).values()
    assert points == history(swept, best, "eval_loss")
    assert [step for step, _ in points] == [4, 8, 12]


def test_the_curves_of_all_trials_lie_in_one_chart(ui, swept):
    ui.open_runs(
        EXPERIMENT,
        searchFilter=IS_TRIAL,
        orderByKey="metrics.`eval_loss`",
        orderByAsc="true",
        compareRunsMode="CHART",
    )
    curves = ui.curves("eval_loss", TRIALS)
    assert curves == {run.info.run_name: history(swept, run, "eval_loss") for run in swept.trials}


def test_the_report_is_drawn_within_the_page(ui, swept):
    report = ui.artifact_page(EXPERIMENT, swept.sweep.info.run_id, "report.html")
    report.get_by_role("heading", level=1).filter(has_text="tiny").wait_for()
    board = report.locator("section").filter(has_text="Leaderboard").locator("tbody tr")
    board.nth(TRIALS - 1).wait_for()
    assert board.count() == TRIALS
    assert board.first.inner_text().split()[1] == str(swept.report.best.trial)
    heads = report.locator(".coordinates text.head")
    heads.first.wait_for(state="attached")
    drawn = {"quant", "r", "α", "targets", "lr", "eval_loss"}
    assert drawn <= set(heads.all_text_contents())
    board.first.click()  # the page's script runs within MLflow's frame
    report.locator("tr.on").wait_for()


def test_the_adapter_shows_its_versions_and_its_champion(ui, swept):
    ui.open_model("tiny-adapter")
    rows = ui.page.get_by_role("row").filter(has_text="Version ")
    rows.filter(has_text="Version 2").first.wait_for()
    champion = rows.filter(has_text="champion")
    assert champion.count() == 1
    assert "Version 1" in champion.inner_text()


def test_a_version_shows_what_it_is(ui, swept):
    ui.open_model("tiny-adapter", 1)
    best = swept.trials[0]
    ui.page.get_by_text("champion").wait_for()
    ui.page.get_by_role("link", name=best.info.run_name).wait_for()
    tags = ui.tags()
    assert tags["lora.rank"] == best.data.params["lora.rank"]
    assert tags["quantization"] == best.data.params["quantization"]
    assert float(tags["metric.eval_loss"]) == best.data.metrics["eval_loss"]


def test_a_version_comes_with_its_card(ui, swept):
    ui.open_model("tiny-adapter", 1)
    written = swept.client.get_model_version("tiny-adapter", "1").description
    headings = [line.lstrip("# ") for line in written.splitlines() if line.startswith("## ")]
    assert len(headings) >= 3
    for heading in headings:  # as headings, so the Markdown is drawn and not only quoted
        ui.page.get_by_role("heading", name=heading, exact=True).wait_for()
