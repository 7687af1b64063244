"""Takes the pictures of MLflow's pages in docs/images, from what a sweep left in a runs folder.

python docs/make_screenshots.py runs
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from registry.tracking.connection import connect  # noqa: E402
from registry.tracking.experiments import SWEEPS_EXPERIMENT  # noqa: E402
from registry.tracking.server import pages_address, serve_ui  # noqa: E402
from registry.tracking.views import newest_links  # noqa: E402
from tests.support import pages  # noqa: E402

IS_TRIAL = "tags.`lorchestra.kind` = 'trial'"
EXPERIMENT = "1"
BY_LOSS = {"orderByKey": "metrics.`eval_loss`", "orderByAsc": "true"}
WINDOW = {"width": 1500, "height": 620}


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of mlflow.db")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--port", type=int, default=5123)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    database = (options.runs / "mlflow.db").resolve()
    client = connect(f"sqlite:///{database}")
    with serve_ui(database, options.port), pages.chromium() as browser:
        for name, take in PICTURES.items():
            with visitor(browser, pages_address(options.port)) as ui:
                target = take(ui, client)
                ui.page.wait_for_timeout(1500)  # movements of menus and lines end
                target.screenshot(path=options.out / f"{name}.png")


@contextmanager
def visitor(browser: Any, address: str) -> Iterator[Any]:
    """MLflow, for a visitor who was never there."""
    with pages.new_page(browser) as page:
        page.set_viewport_size(WINDOW)
        yield pages.Pages(page, address)


def newest(ui: Any, client: Any) -> Any:
    """Links to the newest sweep."""
    return newest_links(client, SWEEPS_EXPERIMENT, ui.address, {}, may_save=True)[0]


def take_trials(ui: Any, client: Any) -> Any:
    """The table behind the sweep's first link."""
    ui.page.set_viewport_size({"width": 1700, "height": 620})
    ui.open_link(newest(ui, client).table)
    return ui.page


def take_comparison(ui: Any, client: Any) -> Any:
    """The charts behind the sweep's second link."""
    ui.page.set_viewport_size({"width": 1500, "height": 1150})
    ui.open_link(newest(ui, client).charts)
    ui.chart_axes(6)
    return ui.page


def take_curves(ui: Any, client: Any) -> Any:
    """The metrics by step."""
    ui.open_runs(EXPERIMENT, searchFilter=IS_TRIAL, compareRunsMode="CHART", **BY_LOSS)
    ui.await_chart("eval_loss")
    return ui.page


def take_report(ui: Any, client: Any) -> Any:
    """The report's own parallel coordinates."""
    (sweep, *_) = client.search_runs([EXPERIMENT], "tags.`lorchestra.kind` = 'sweep'")
    ui.page.set_viewport_size({"width": 1900, "height": 900})
    report = ui.artifact_page(EXPERIMENT, sweep.info.run_id, "report.html")
    plot = report.locator("section").filter(has=report.locator(".coordinates"))
    plot.scroll_into_view_if_needed()
    return plot


PICTURES = {
    "trials": take_trials,
    "comparison": take_comparison,
    "curves": take_curves,
    "report": take_report,
}

if __name__ == "__main__":
    main()
