"""MLflow's pages in Debian's Chromium, used as a person does: search, sort, tick, compare.

Selectors are those of MLflow 3.17.2. Its pages never fall silent (they poll), so everything here
waits for what it wants to see.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Browser, FrameLocator, Locator, Page, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_MISSING = "needs Debian's chromium: run `make system`"

_FLAGS = (
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_PATIENCE_MS = 90_000  # a page takes 3 s, and half a minute on a machine that does other things
# Charts and columns are rendered when they would be seen: a small window is a fast one.
_WINDOW = {"width": 1280, "height": 720}
_WIDE_WINDOW = {"width": 2400, "height": 720}


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser that asks the network for nothing by itself."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def new_page(browser: Browser) -> Iterator[Page]:
    """A page of a visitor who has never been there: a new profile of the browser."""
    context = browser.new_context(viewport=_WINDOW)
    context.set_default_timeout(_PATIENCE_MS)
    expect.set_options(timeout=_PATIENCE_MS)
    try:
        yield context.new_page()
    finally:
        context.close()


class Pages:
    """MLflow as one visitor sees it.

    Args:
        page: An open page.
        address: Of the server, as `registry.tracking.server.pages_address` gives it.
    """

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address

    def open(self, path: str, **query: str) -> None:
        """Go to a path behind `/#`."""
        # From one hash to another a page is kept, with what it remembers: leave it first.
        self.page.goto("about:blank")
        # Without it, a new visitor gets "GenAI", not "Model training".
        query = {"workflowType": "machine_learning"} | query
        self.page.goto(f"{self.address}/#{path}?{urlencode(query)}")

    def open_link(self, link: str) -> None:
        """Open an address as it was printed, and wait for the runs."""
        self.page.goto(link)
        expect(self.page.locator(".ag-row").first).to_be_visible()

    def is_anything_open(self) -> bool:
        """Whether a dialog or a panel that opened by itself lies over or beside the runs."""
        return self.page.locator("[role=dialog], [data-assistant-ui=true]:visible").count() > 0

    # ------------------------------------------------------------------------- the table of runs

    def open_runs(self, experiment: str, **query: str) -> None:
        """The table of an experiment's runs."""
        self.open(f"/experiments/{experiment}/runs", **query)
        expect(self.page.locator(".ag-row").first).to_be_visible()

    def sort(self, name: str, *, ascending: bool) -> None:
        """Sort the runs by the button above them; its list holds metrics and parameters."""
        way = "asc" if ascending else "desc"
        for entry in (name, way):  # the list closes after each click
            self.page.get_by_test_id("sort-select-dropdown").click()
            self.page.get_by_test_id(f"sort-select-{entry}").click()

    def search(self, query: str, count: int) -> None:
        """Search the runs and wait for this many."""
        box = self.page.get_by_test_id("search-box")
        box.fill(query)
        box.press("Enter")
        runs = "run" if count == 1 else "runs"
        expect(self.page.get_by_text(f"{count} matching {runs}", exact=True)).to_be_visible()

    def choose_columns(self, *names: str) -> None:
        """Tick columns in the list behind the button "Columns"; all of them can be seen then."""
        self.page.set_viewport_size(_WIDE_WINDOW)
        self._turn_columns(names)
        for name in names:
            expect(self._head(name)).to_be_visible()

    def hide_columns(self, *names: str) -> None:
        """Untick columns that are ticked."""
        self._turn_columns(names)
        for name in names:
            expect(self._head(name)).to_be_hidden()

    def _turn_columns(self, names: Sequence[str]) -> None:
        self.page.get_by_role("button", name="Columns", exact=True).click()
        for name in names:
            self.page.get_by_placeholder("Search columns").fill(name)
            # Bold is what the search found: before that, a click would hit a list that moves.
            found = self.page.locator("strong", has_text=re.compile(rf"^{re.escape(name)}$"))
            entry = self.page.locator("[class*=tree-treenode]").filter(has=found)
            entry.last.locator("[class*=tree-checkbox]").first.click()
        self.page.keyboard.press("Escape")

    def run_names(self) -> list[str]:
        """Names of the runs in the order of the table."""
        return [row["Run Name"] for row in self.table()]

    def table(self) -> list[dict[str, str]]:
        """The rows of the table of runs, by what stands above their cells."""
        heads = dict(
            self.page.locator(".ag-header-cell").evaluate_all(
                "cells => cells.map(c => [c.getAttribute('col-id'), c.innerText.trim()])"
            )
        )
        cells = self.page.locator(".ag-cell").evaluate_all(
            """cells => cells.map(c => [
                Number(c.closest('.ag-row').getAttribute('row-index')),
                c.getAttribute('col-id'), c.innerText.trim()])"""
        )
        rows: dict[int, dict[str, str]] = {}
        for row, column, text in cells:
            # A run's name stands behind the code of its colour.
            rows.setdefault(row, {})[heads[column]] = text.rpartition("\n")[2]
        return [rows[row] for row in sorted(rows)]

    def click_head(self, name: str) -> None:
        """Click what stands above a column, which sorts by it or turns the order round."""
        self._head(name).click()

    def _head(self, name: str) -> Locator:
        return self.page.locator(".ag-header-cell").filter(
            has=self.page.get_by_text(name, exact=True)
        )

    def await_first_run(self, name: str) -> None:
        first = self.page.locator(".ag-pinned-left-cols-container .ag-row[row-index='0']")
        expect(first).to_contain_text(name)

    def await_run(self, name: str) -> None:
        rows = self.page.locator(".ag-pinned-left-cols-container .ag-row")
        expect(rows.filter(has_text=name)).to_be_visible()

    def unfold(self, name: str) -> None:
        """Show the runs below a run."""
        row = self.page.locator(".ag-pinned-left-cols-container .ag-row").filter(
            has=self.page.get_by_text(name, exact=True)
        )
        row.get_by_role("button").first.click()

    def choose_all_runs(self) -> None:
        self.page.locator(".ag-header-select-all:visible").first.click()

    def compare_chosen(self) -> None:
        """Press "Compare" and wait for the first plot."""
        self.page.get_by_test_id("runs-compare-button").click()
        expect(self.page.get_by_text("Parallel Coordinates Plot")).to_be_visible()
        self._await_plot(self.page.locator(".parcoords"))

    # ---------------------------------------------------------------------------------- plots

    def add_axis(self, kind: str, name: str) -> None:
        """Add to the axes of the comparison; `kind` is Parameters or Metrics."""
        box = self.page.locator(f"xpath=//*[text()='{kind}:']/following::input[@role='combobox']")
        box.first.click()
        self.page.keyboard.type(name)
        self.page.keyboard.press("Enter")
        self.page.keyboard.press("Escape")

    def axes(self) -> list[str]:
        """Titles of the axes of the parallel coordinates, from the left."""
        found = self.page.locator(".parcoords .y-axis")
        by_place = found.evaluate_all(
            """axes => axes.map(a => [a.getBoundingClientRect().x,
                                      a.querySelector('.axis-title').textContent])"""
        )
        return [title for _, title in sorted(by_place)]

    def chart_axes(self, count: int) -> list[str]:
        """Titles of the parallel coordinates among the charts, once it draws this many."""
        titles = self.page.locator(".parcoords .dimension .axis > .label")
        expect(titles).to_have_count(count)
        return titles.all_text_contents()

    def await_chart(self, title: str) -> Locator:
        """The card of one chart by step, drawn."""
        card = self.page.get_by_test_id("experiment-view-compare-runs-card").filter(
            has=self.page.get_by_role("heading", name=title, exact=True)
        )
        expect(card.get_by_text("Step", exact=True)).to_be_visible()
        return card

    def curves(self, title: str, count: int) -> dict[str, list[tuple[float, float]]]:
        """What a chart by step draws: points by the run's name, once it draws this many curves."""
        card = self.await_chart(title)
        # A curve with markers has a second trace, which is its smoothed line.
        marked = "p => p.data.filter(t => t.mode === 'lines+markers' && t.x.length)"
        plot = card.locator(".js-plotly-plot")
        self.page.wait_for_function(
            f"([plot, count]) => ({marked})(plot).length === count",
            arg=[plot.element_handle(), count],
        )
        found = plot.evaluate(
            f"plot => ({marked})(plot).map(t => [t.name, Array.from(t.x), Array.from(t.y)])"
        )
        return {name: list(zip(x, y, strict=True)) for name, x, y in found}

    def await_axes(self, count: int) -> None:
        expect(self.page.locator(".parcoords .axis-title")).to_have_count(count)

    def axis_ticks(self, name: str) -> list[str]:
        """What stands at the ticks of one axis."""
        axis = self.page.locator(".parcoords .y-axis").filter(
            has=self.page.locator(".axis-title", has_text=name)
        )
        return axis.locator(".axis .tick text").all_text_contents()

    def _await_plot(self, plot: Locator) -> None:
        expect(plot.first).to_be_attached()

    # ---------------------------------------------------------------------------- other pages

    def open_run(self, experiment: str, run_id: str, tab: str = "") -> None:
        self.open(f"/experiments/{experiment}/runs/{run_id}{tab and '/' + tab}")
        expect(self.page.get_by_role("tab", name="Artifacts")).to_be_visible()

    def open_comparison(self, experiment: str, run_ids: Sequence[str]) -> None:
        """The page behind "Compare", by its address."""
        self.open(
            "/compare-runs", runs=json.dumps(list(run_ids)), experiments=json.dumps([experiment])
        )
        self._await_plot(self.page.locator(".parcoords"))

    def artifact_page(self, experiment: str, run_id: str, file: str) -> FrameLocator:
        """An HTML artifact as it shows in a run's artifacts."""
        self.open_run(experiment, run_id, "artifacts")
        self.page.get_by_text(file, exact=True).first.click()
        return self.page.frame_locator("iframe")

    def open_model(self, name: str, version: int | None = None) -> None:
        self.open(f"/models/{name}" + ("" if version is None else f"/versions/{version}"))
        expect(self.page.get_by_text("Tags", exact=True).first).to_be_visible()

    def tags(self) -> dict[str, str]:
        """The table of tags of the model or version that shows."""
        rows = self.page.get_by_role("row").filter(has=self.page.get_by_role("button"))
        expect(rows.first).to_be_visible()
        cells = rows.evaluate_all(
            "rows => rows.map(r => [...r.cells].map(c => c.innerText.trim()))"
        )
        return {row[0]: row[1] for row in cells if len(row) > 1}
