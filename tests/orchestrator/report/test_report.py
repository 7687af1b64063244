"""The report of a sweep, from the events of one that had every kind of trial."""

import io
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from orchestrator.hosts.members import group_key
from orchestrator.journal.history import SweepHistory
from orchestrator.outcome import Outcome
from orchestrator.pages.files import write_report
from orchestrator.report.leaderboard import UNFINISHED, UNRANKED_ORDER, setting_columns
from orchestrator.report.plots import OUTCOME_COLORS, collect_curves
from orchestrator.report.report import SweepReport, build_report
from orchestrator.report.summary import explain_unregistered, render_summary
from orchestrator.spec.finals_sections import FinalsSpec, RegisterSpec
from orchestrator.spec.sections import ObjectiveSpec
from orchestrator.spec.sweep import BudgetSpec, SweepSpec, build_trial
from tests.support.events import entry
from trainables.hosts.orders import WORST_METRICS
from trainables.spec import BaseSpec, DataSpec, OptimSpec, TrialSpec

HOSTILE = '<script>alert("x")</script> & [red]no\x1b[31m\nsecond line'
PAYLOAD = '<script>alert("x")'


def build_sweep(metric: Any = "eval_loss", **changes: Any) -> SweepSpec:
    values: dict[str, Any] = {
        "name": "wordnet-classes",
        "base": BaseSpec(model="owner/name"),
        "data": DataSpec(train="owner/rows"),
        "optim": OptimSpec(steps=80),
        "objective": ObjectiveSpec(metric=metric),
        "budget": BudgetSpec(trials=40),
        "register": RegisterSpec(),
        "space": {
            "lora.rank": {"choice": [4, 8, 16]},
            "lora.alpha_per_rank": {"choice": [1, 2]},
            "lora.targets": {"choice": ["attention", ["q_proj", "v_proj"]]},
            "optim.learning_rate": {"log_uniform": [1e-4, 1e-2]},
            "optim.micro_batch_size": {"choice": [None, 4]},
        },
    }
    return SweepSpec(**values | changes)


class Story:
    """A sweep's history, told event by event; ten seconds pass with each."""

    def __init__(self, spec: SweepSpec) -> None:
        self.spec = spec
        self.history = SweepHistory()
        self.now = 0.0
        self.tell("sweep_started", sweep_id="s1", spec={}, digest="d")

    def tell(self, kind: str, **fields: Any) -> None:
        self.now += 10
        self.history.apply(entry(kind, self.now, **fields))

    def trial(self, number: int, losses: list[float], outcome: str = "", reason: str = "") -> None:
        knobs = {
            "lora.rank": [4, 8, 16][number % 3],
            "lora.alpha_per_rank": 1.0 + number % 2,
            "lora.targets": "attention" if number % 2 else ["q_proj", "v_proj"],
            "optim.learning_rate": 1e-4 * (1 + number) ** 2,
            "optim.micro_batch_size": None if number % 2 else 4,
        }
        spec = build_trial(self.spec, knobs).to_dict()
        self.tell("trial_started", trial=number, knobs=knobs, spec=spec)
        for place, loss in enumerate(losses, 1):
            metrics = {
                "eval_loss": loss, "eval_accuracy": max(0.0, 1 - loss / 3), "train_loss": loss,
                "eval_token_accuracy": 0.5, "tokens_per_s": 1234.5,
                "peak_memory_gib": 1.25 + number / 16,
                "trainable_params": 123456,
            }  # fmt: skip
            is_fault = loss == WORST_METRICS["eval_loss"]
            fields = {"step": 20 * place, "metrics": metrics, "is_fault": is_fault}
            self.tell("report", trial=number, **fields)
        if outcome:
            ended = {"outcome": outcome, "reason": reason, "step": 20 * len(losses)}
            bundle = f"trials/{number}/bundle" if outcome in ("completed", "stopped") else None
            self.tell("trial_ended", trial=number, bundle=bundle, **ended)

    def finals(self, number: int, ref: str) -> None:
        test = {"test_loss": 0.52, "test_accuracy": 0.7, "test_token_accuracy": 0.8}
        validation = {"eval_loss": 2.5, "eval_accuracy": 0.05, "eval_token_accuracy": 0.4}
        base_test = {name.replace("eval", "test"): value for name, value in validation.items()}
        base = group_key(TrialSpec.from_dict(self.history.trials[number].spec))
        self.tell("base_evaluated", base=base, split="validation", metrics=validation)
        self.tell("base_evaluated", base=base, split="test", metrics=base_test)
        self.tell("final_evaluated", trial=number, metrics=test)
        self.tell("registered", trial=number, ref=ref, digest="d")
        self.tell("promoted", ref=ref, promoted=True, reason="test_loss 0.52 is below 0.61")


def tell_whole_sweep(spec: SweepSpec) -> SweepHistory:
    story = Story(spec)
    story.trial(0, [1.0, 0.9, 0.8, 0.75], "completed")
    story.trial(1, [2.5, 2.4], "stopped", "not among the best 10 of 20 at step 40")
    story.trial(2, [0.01, 0.01], "failed", HOSTILE)
    story.trial(3, [9.9, 1e9], "diverged", "loss nan is not finite at step 31")
    story.trial(4, [], "infeasible", "does not fit 16 GiB")
    story.trial(5, [0.9, 0.7, 0.6, 0.5], "completed")
    story.trial(6, [1.5])
    story.trial(7, [3.0], "cancelled", "wall clock spent")
    story.finals(5, "wordnet-classes/1")
    story.tell("phase", name="searching", seconds=125.0)
    story.tell("sweep_ended", status="completed", reason="the budget is spent")
    return story.history


@pytest.fixture
def spec() -> SweepSpec:
    return build_sweep()


@pytest.fixture
def report(spec: SweepSpec) -> SweepReport:
    return build_report(spec, tell_whole_sweep(spec), Path("/storage"))


def show(report: SweepReport, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(render_summary(report))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


# -------------------------------------------------------------------------------- leaderboard


def test_failed_trials_stand_apart_from_bad_ones(report: SweepReport) -> None:
    board = report.leaderboard
    assert list(board["trial"]) == [5, 0, 1, 7, 3, 4, 2, 6]
    assert board["rank"].tolist()[:4] == [1, 2, 3, 4]
    assert board["rank"].isna().tolist() == [False] * 4 + [True] * 4
    assert board["outcome"].tolist()[3:] == [
        "cancelled", "diverged", "infeasible", "failed", "unfinished",
    ]  # fmt: skip


def test_leaderboard_names_what_varied_and_what_it_cost(report: SweepReport) -> None:
    assert list(report.leaderboard.columns) == [
        "rank", "trial", "outcome", "step", "eval_loss", "eval_accuracy", "train_loss",
        "lora.rank", "lora.alpha", "lora.targets", "optim.learning_rate",
        "optim.micro_batch_size", "tokens_per_s", "peak_memory_gib", "trainable_params",
        "host_s", "seconds", "reason",
    ]  # fmt: skip
    first = report.leaderboard.iloc[0]
    assert (first["lora.rank"], first["lora.alpha"], first["step"]) == (16, 32.0, 80)
    assert first["optim.micro_batch_size"] is None
    assert report.leaderboard.iloc[1]["lora.targets"] == "q_proj+v_proj"
    assert report.leaderboard.iloc[1]["optim.micro_batch_size"] == 4
    assert (first["seconds"], first["trainable_params"]) == (50.0, 123456)


def test_stand_in_of_a_fault_is_no_measurement(report: SweepReport) -> None:
    diverged = report.leaderboard.set_index("trial").loc[3]
    assert (diverged["eval_loss"], diverged["step"]) == (9.9, 20)


@pytest.mark.parametrize("metric", ["eval_accuracy", "eval_token_accuracy", "train_loss"])
def test_objective_is_the_first_metric(metric: str) -> None:
    spec = build_sweep(metric)
    report = build_report(spec, tell_whole_sweep(spec), Path("/storage"))
    assert report.leaderboard.columns[4] == metric
    assert report.leaderboard.columns.is_unique
    assert setting_columns(report.leaderboard)[0] == "lora.rank"
    assert len(setting_columns(report.leaderboard)) == 5
    assert metric.removeprefix("eval_") in show(report, 100)


# ------------------------------------------------------------------------------------ the best


def test_best_adapter_is_told_with_base_and_promotion(report: SweepReport) -> None:
    best = report.best
    assert best is not None
    assert (best.ref, best.trial, best.bundle) == ("wordnet-classes/1", 5, "trials/5/bundle")
    assert best.is_champion
    assert best.metrics["eval_loss"] == 0.5
    assert "train_loss" not in best.metrics
    assert best.test_metrics["test_accuracy"] == 0.7
    assert best.hyperparameters["lora.rank"] == 16
    assert report.promotion == "test_loss 0.52 is below 0.61"
    assert report.base_metrics["validation"]["eval_loss"] == 2.5
    found = {(each.split, each.measure): each.difference for each in report.comparisons()}
    assert found["test", "loss"] == pytest.approx(0.52 - 2.5)
    assert len(found) == 6


def test_the_base_beside_the_best_is_the_one_it_sits_on() -> None:
    spec = build_sweep(space={"base.model": {"choice": ["owner/name", "owner/other"]}})
    story = Story(spec)
    assert build_report(spec, story.history, Path("/storage")).base_metrics == {}
    for number, (model, loss) in enumerate([("owner/name", 0.9), ("owner/other", 0.5)]):
        values = build_trial(spec, {"base.model": model}).to_dict()
        story.trial(number, [loss], "completed")
        story.history.trials[number].spec = values
        base, metrics = group_key(TrialSpec.from_dict(values)), {"eval_loss": 2.0 + number}
        story.tell("base_evaluated", base=base, split="validation", metrics=metrics)
    report = build_report(spec, story.history, Path("/storage"))
    assert report.base_metrics == {"validation": {"eval_loss": 3.0}}


def test_best_that_came_after_the_champion_is_not_the_champion(spec: SweepSpec) -> None:
    spec = replace(spec, finals=FinalsSpec(seeds=0))
    story = Story(spec)
    story.trial(0, [0.9], "completed")
    story.finals(0, "wordnet-classes/1")
    story.trial(1, [0.4], "completed")
    report = build_report(spec, story.history, Path("/storage"))
    assert report.best is not None
    assert (report.best.trial, report.best.ref, report.best.is_champion) == (1, None, False)
    assert "trial 1 was not put to the gate yet" in report.promotion
    assert "adapters show" not in show(report, 80)


@pytest.mark.parametrize(
    ("register", "losses", "reason"),
    [
        pytest.param(None, [1.0], "registers nothing", id="no register section"),
        pytest.param(RegisterSpec(promote=False), [1.0], "promote is off", id="switched off"),
        pytest.param(RegisterSpec(), [], "no adapter to promote", id="nothing measured"),
        pytest.param(RegisterSpec(), [1.0], "was not put to the gate yet", id="not yet"),
    ],
)
def test_no_promotion_has_a_reason(
    register: RegisterSpec | None, losses: list[float], reason: str
) -> None:
    story = Story(build_sweep(register=register))
    story.trial(0, losses, "completed")
    report = build_report(story.spec, story.history, Path("/storage"))
    assert reason in report.promotion
    assert "Promoted: no" in show(report, 100)


# --------------------------------------------------------------------------------- the summary


@pytest.mark.parametrize("width", [80, 100])
def test_summary_is_whole_in_the_width(report: SweepReport, width: int) -> None:
    text = show(report, width)
    assert "…" not in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width
    for part in (
        "wordnet-classes  completed: the budget is spent", "0.5000", "0.7500", "0.8333",
        "champion", "2.5000", "0.5200", "-1.9800", "+0.6500",
        "Registered: wordnet-classes/1  (/storage/trials/5/bundle)",
        "Promoted: yes; test_loss 0.52 is below 0.61", "searching 2:05",
        "lorchestra adapters show wordnet-classes/1", "lorchestra ui",
        "lorchestra adapters pull wordnet-classes/1 --to", "[red]no",
    ):  # fmt: skip
        assert part in text


def test_summary_begins_with_the_verdict_and_the_page(spec: SweepSpec, tmp_path: Path) -> None:
    history = tell_whole_sweep(spec)
    report = build_report(spec, history, tmp_path)
    write_report(report, spec, history, tmp_path / "report")
    lines = show(report, 200).splitlines()
    assert lines[1] == "Trial 5 won, with a single run. Test accuracy 70%, base 5%."
    assert lines[2] == f"Report: {tmp_path}/report/report.html"


def test_a_sweep_that_registers_nothing_is_told_how_to() -> None:
    again = ["lorchestra", "run", "my sweep.yaml"]
    assert explain_unregistered("classes", again) == (
        "Not registered: the sweep has no register section. Add the line "
        '"register: {name: classes}" to my sweep.yaml and run: '
        "lorchestra run 'my sweep.yaml'"
    )
    resumed = explain_unregistered("classes", ["lorchestra", "resume", "runs/classes"])
    assert resumed.endswith("to the sweep file and run: lorchestra run SWEEP.yaml")


def test_summary_shows_ten_trials_and_counts_the_rest(spec: SweepSpec) -> None:
    story = Story(spec)
    for number in range(12):
        story.trial(number, [12345.678 + number, 1234.5 + number], "completed")
    text = show(build_report(spec, story.history, Path("/s")), 80)
    assert "1243.5" in text
    assert "1244.5" not in text
    assert "and 2 more in leaderboard.csv" in text


# -------------------------------------------------------------------------------------- files


def test_files_are_written_whole(spec: SweepSpec, report: SweepReport, tmp_path: Path) -> None:
    for _ in range(2):
        paths = write_report(report, spec, tell_whole_sweep(spec), tmp_path / "report")
    assert sorted(paths) == sorted((tmp_path / "report").iterdir())
    csv, html, png, pareto = paths
    table = pd.read_csv(csv)
    assert table["trial"].tolist() == report.leaderboard["trial"].tolist()
    assert "nan" not in csv.read_text().lower().replace("loss nan", "")
    assert html.stat().st_mode & 0o777 == 0o644
    header = png.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:24]) == (1200, 750)
    assert 20_000 < png.stat().st_size < 500_000
    assert pareto.name == "pareto.png"


def test_a_picture_that_there_is_nothing_for_any_more_is_removed(
    spec: SweepSpec, tmp_path: Path
) -> None:
    history = tell_whole_sweep(spec)
    names = {one.name for one in write_report(tell_report(spec, history), spec, history, tmp_path)}
    assert "pareto.png" in names
    story = Story(spec)
    story.trial(0, [0.5], "completed")
    write_report(tell_report(spec, story.history), spec, story.history, tmp_path)
    assert {one.name for one in tmp_path.iterdir()} == {
        "leaderboard.csv", "report.html", "learning_curves.png",
    }  # fmt: skip


def tell_report(spec: SweepSpec, history: SweepHistory) -> SweepReport:
    return build_report(spec, history, Path("/storage"))


def test_page_is_escaped_and_has_every_part(
    spec: SweepSpec, report: SweepReport, tmp_path: Path
) -> None:
    _, path, *_ = write_report(report, spec, tell_whole_sweep(spec), tmp_path)
    html = path.read_text()
    assert "<title>wordnet-classes – sweep report</title>" in html
    assert PAYLOAD not in html
    assert html.count("&lt;script&gt;alert(&quot;x&quot;)") == 2  # leaderboard and outcomes
    for part in (
        "not among the best 10 of 20", "-1.9800", "5 trials with results are too few",
        "<summary>All other settings", '<p class="verdict">Trial 5 won, with a single run.',
        "<h2>Learning curves</h2>", "<h2>Objective by setting</h2>", "<h2>Quality and cost</h2>",
    ):  # fmt: skip
        assert part in html


@pytest.mark.parametrize("all_failed", [True, False], ids=["all failed", "nothing reported"])
def test_sweep_without_results_is_reported_too(
    spec: SweepSpec, tmp_path: Path, all_failed: bool
) -> None:
    story = Story(spec)
    if all_failed:
        story.trial(0, [], "failed", "the host was lost")
        story.trial(1, [1e9], "diverged", "loss nan")
    report = build_report(spec, story.history, tmp_path)
    _, html, png = write_report(report, spec, story.history, tmp_path)
    assert report.best is None
    assert len(pd.read_csv(tmp_path / "leaderboard.csv")) == 2 * all_failed
    assert "No trial was evaluated yet" in html.read_text()
    assert ("the host was lost" in html.read_text()) == all_failed
    assert png.stat().st_size > 1000
    assert "Best: none" in show(report, 80)


def test_a_sweep_that_never_started_can_be_reported(spec: SweepSpec) -> None:
    report = build_report(spec, SweepHistory(), Path("/s"))
    assert (report.status, report.sweep_id, report.best) == ("not started", None, None)
    assert "No trial was started." in show(report, 80)


# -------------------------------------------------------------------------------------- plots


def test_every_outcome_has_a_place_and_a_color() -> None:
    assert set(OUTCOME_COLORS) == set(UNRANKED_ORDER) == {*Outcome, UNFINISHED}


def test_curves_are_those_of_trials_that_measured(spec: SweepSpec) -> None:
    history = tell_whole_sweep(spec)
    curves = {number: values for number, _, _, values in collect_curves(history, "eval_loss")}
    assert curves[5] == [0.9, 0.7, 0.6, 0.5]
    assert curves[3] == [9.9]
    assert 4 not in curves


# ------------------------------------------------------- several objectives, seeds, what it cost


def test_the_pareto_front_holds_what_nothing_else_betters(spec: SweepSpec) -> None:
    objective = ObjectiveSpec(also={"trainable_params": "min", "tokens_per_s": "max"})
    spec = replace(spec, objective=objective)
    story = Story(spec)
    for number, (loss, size) in enumerate([(0.5, 100), (0.6, 50), (0.7, 60), (0.5, 200)]):
        story.trial(number, [loss])
        metrics = {"eval_loss": loss, "trainable_params": size, "tokens_per_s": 1.0}
        story.tell("report", trial=number, step=40, metrics=metrics)
        end = {"outcome": "completed", "reason": "", "step": 40, "bundle": "b"}
        story.tell("trial_ended", trial=number, **end)
    report = build_report(spec, story.history, Path("/storage"))
    assert report.pareto == (0, 1)
    assert "Pareto front: trials 0, 1" in show(report, 80)


def test_one_objective_has_no_front(report: SweepReport) -> None:
    assert report.pareto == ()
    assert "Pareto" not in show(report, 80)


def test_a_trial_beyond_a_constraint_is_not_ranked_and_says_why(spec: SweepSpec) -> None:
    spec = replace(spec, objective=ObjectiveSpec(constraints=("peak_memory_gib <= 1",)))
    story = Story(spec)
    story.trial(0, [0.5], "completed", "trained 20 steps")
    board = build_report(spec, story.history, Path("/storage")).leaderboard
    assert board["rank"].isna().all()
    assert board["reason"].iloc[0] == "trained 20 steps; not peak_memory_gib <= 1"


def tell_finals(spec: SweepSpec) -> SweepHistory:
    """Two finalists with a repeat each; the second on validation rows leads on test rows."""
    story = Story(spec)
    story.trial(0, [0.5], "completed")
    story.trial(1, [0.4], "completed")
    for number, of in ((2, 0), (3, 1)):
        kin = story.history.trials[of]
        seeded = {**kin.spec, "seed": kin.spec["seed"] + 1}
        story.tell("trial_started", trial=number, knobs=kin.knobs, spec=seeded, repeat_of=of)
        story.tell("report", trial=number, step=20, metrics={"eval_loss": 0.45})
        end = {"outcome": "completed", "reason": "", "step": 20, "bundle": f"b{number}"}
        story.tell("trial_ended", trial=number, **end)
    for number, loss in ((0, 0.30), (2, 0.32), (1, 0.60), (3, 0.66)):
        story.tell("final_evaluated", trial=number, metrics={"test_loss": loss})
    story.tell("stage_ended", stage="repeats", reason="no money was left", under={})
    story.tell("usage", cpu_s=3700.0, gpu_s=1800.0)
    return story.history


def test_finals_are_told_with_their_intervals_and_what_they_prove(spec: SweepSpec) -> None:
    report = build_report(spec, tell_finals(spec), Path("/storage"))
    assert [one.trial.number for one in report.finals] == [0, 1]
    assert report.best is not None
    assert (report.best.trial, report.best.repeat_of) == (2, 0)
    text = show(report, 100)
    assert "mean test_loss" in text
    assert "0.3100 ± 0.1271" in text  # 12.706 * 0.01: Student's t with one degree of freedom
    assert "trial 0 and trial 1" in text
    assert "trial 2 (trial 0 with another seed)" in text
    assert sorted(report.leaderboard["trial"]) == [0, 1]


def test_the_page_has_the_finals_too(spec: SweepSpec, tmp_path: Path) -> None:
    history = tell_finals(spec)
    report = build_report(spec, history, tmp_path)
    write_report(report, spec, history, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert report.best is not None
    assert report.best.found_by == 0
    assert "2 (trial 0 with another seed)" in page
    board = page.partition("<h2>Leaderboard</h2>")[2]
    (best,) = re.findall('<tr class="best"[^>]*>(.*?)</tr>', board)  # the one with its settings
    assert re.findall("<td[^>]*>(.*?)</td>", best)[1] == "0"
    assert "0.3100 ± 0.1271" in page
    assert "no money was left" in page


def test_what_was_spent_is_in_the_summary(spec: SweepSpec) -> None:
    priced = BudgetSpec(trials=9, price_per_gpu_hour=3.0)
    report = build_report(replace(spec, budget=priced), tell_finals(spec), Path("/storage"))
    assert report.spent["money"] == 1.5
    text = show(report, 100)
    assert "1:01:40 of CPU, 30:00 of GPU, 1.50 in money" in text
    assert "Ended early: no money was left" in text


def test_the_page_says_what_is_known_of_the_rows(spec: SweepSpec, tmp_path: Path) -> None:
    history = SweepHistory(
        sweep_id="x", data_lines=("20 of 20 validation rows are also training rows.", "<b>")
    )
    write_report(build_report(spec, history, tmp_path), spec, history, tmp_path)
    data = (tmp_path / "report.html").read_text().partition("<h2>What this sweep is about</h2>")[2]
    assert "20 of 20 validation rows are also training rows." in data.partition("<h2>")[0]
    assert "&lt;b&gt;" in data.partition("<h2>")[0]


def test_the_page_says_what_was_spent_of_what_was_allowed(spec: SweepSpec, tmp_path: Path) -> None:
    budget = BudgetSpec(trials=4, price_per_gpu_hour=3.0, money=6.0, cpu_seconds=7400.0)
    spec = replace(spec, budget=budget)
    history = tell_finals(spec)
    report = build_report(spec, history, tmp_path)
    assert report.limits == {"trials": 4.0, "money": 6.0, "cpu_seconds": 7400.0}
    write_report(report, spec, history, tmp_path)
    spent = (tmp_path / "report.html").read_text().partition("<h2>What it cost</h2>")[2]
    rows = [
        re.findall("<td[^>]*>(.*?)</td>", line) for line in spent.splitlines() if "<td" in line
    ]
    assert ["trials", "2", "4", "50%"] in rows
    assert ["CPU time of hosts", "1:01:40", "2:03:20", "50%"] in rows
    assert ["money", "1.50", "6.00", "25%"] in rows
    assert ["GPU time of hosts", "30:00", "no limit", ""] in rows


def test_the_page_shows_serving_forms_and_those_that_could_not_be(
    spec: SweepSpec, tmp_path: Path
) -> None:
    story = Story(spec)
    story.trial(0, [0.5], "completed")
    write_report(tell_report(spec, story.history), spec, story.history, tmp_path)
    assert "Serving forms" not in (tmp_path / "report.html").read_text()
    trained = {"loss": 0.5, "loss.low": 0.4, "loss.high": 0.6}
    merged = {"loss": 0.53, "loss.difference": 0.03, "loss.difference.low": 0.0123,
              "loss.difference.high": 0.0456}  # fmt: skip
    story.tell(
        "form_evaluated", trial=0, form="trained", metrics=trained, error="", fingerprint="w"
    )
    story.tell("form_evaluated", trial=0, form="merged", metrics=merged, error="", fingerprint="w")
    story.tell(
        "form_evaluated", trial=0, form="requantized", metrics={}, error=HOSTILE, fingerprint="w"
    )
    report = tell_report(spec, story.history)
    assert report.forms == {0: {"trained": trained, "merged": merged}}
    write_report(report, spec, story.history, tmp_path)
    page = (tmp_path / "report.html").read_text()
    for part in ("0.4000 … 0.6000", "+0.0300", "0.0123 … 0.0456"):
        assert part in page
    assert "<summary>Trial 0</summary>" not in page
    assert "Trial 0 could not be served requantized: &lt;script&gt;" in page
    assert PAYLOAD not in page


def test_the_summary_shows_the_best_adapter_in_its_serving_forms(spec: SweepSpec) -> None:
    story = Story(spec)
    story.trial(0, [0.5], "completed")
    story.trial(1, [0.9], "completed")
    assert "serving form" not in show(tell_report(spec, story.history), 80)
    trained = {"accuracy": 0.5, "loss": 0.25, "loss.low": 0.1234, "loss.high": 0.3}
    merged = {"loss": 0.375, "loss.difference": 0.125, "loss.difference.low": -0.01,
              "loss.difference.high": 0.26}  # fmt: skip
    for number in (0, 1):
        for form, metrics in (("merged", merged), ("trained", trained)):
            shifted = {name: value + number for name, value in metrics.items()}
            story.tell(
                "form_evaluated",
                trial=number,
                form=form,
                metrics=shifted,
                error="",
                fingerprint="w",
            )
    text = show(tell_report(spec, story.history), 80)
    rows = [line.split() for line in text.splitlines() if line.startswith(("trained", "merged"))]
    assert rows == [
        ["trained", "0.2500", "0.1234", "…", "0.3000"],
        ["merged", "0.3750", "+0.1250", "-0.0100", "…", "0.2600"],
    ]
    assert max(map(len, text.splitlines())) <= 80


def test_completions_that_fall_behind_the_accuracy_are_told(
    spec: SweepSpec, tmp_path: Path
) -> None:
    """An adapter that never stops has every token right and no completion."""
    story = Story(spec)
    story.trial(0, [0.5], "completed")
    for exact_match, is_told in ((0.995, False), (0.25, True)):
        metrics = {"accuracy": 1.0, "exact_match": exact_match}
        story.tell(
            "form_evaluated", trial=0, form="trained", metrics=metrics, error="", fingerprint="w"
        )
        report = tell_report(spec, story.history)
        text = " ".join(show(report, 80).split())
        assert f"validation exact match - {exact_match:.4f} -" in text
        assert ("Warning: 100.0% of the rows" in text) == is_told
        write_report(report, spec, story.history, tmp_path)
        page = (tmp_path / "report.html").read_text()
        assert "exact match of completions" in page
        assert ("25.0% of the completions equal the answer" in page) == is_told


def test_a_form_that_could_not_be_evaluated_is_told_with_its_reason(spec: SweepSpec) -> None:
    story = Story(spec)
    story.trial(0, [0.5], "completed")
    story.tell(
        "form_evaluated", trial=0, form="merged", metrics={}, error="no memory", fingerprint="w"
    )
    text = show(tell_report(spec, story.history), 80)
    assert "Serving form merged could not be evaluated: no memory" in text


def test_the_summary_says_what_was_allowed(spec: SweepSpec) -> None:
    budget = BudgetSpec(trials=4, cpu_seconds=7400.0, money=6.0, price_per_gpu_hour=3.0)
    spec = replace(spec, budget=budget)
    text = " ".join(show(tell_report(spec, tell_finals(spec)), 80).split())
    assert "1:01:40 of 2:03:20 of CPU, 30:00 of GPU, 1.50 of 6.00 in money" in text


def test_outcomes_gather_trials_that_ended_for_the_same_reason(
    spec: SweepSpec, tmp_path: Path
) -> None:
    story = Story(spec)
    for number, numbers in ((0, "6.2 < 6.4"), (1, "6.3 < 6.9")):
        reason = f"others were better at step 4 (rung 1: {numbers})"
        story.trial(number, [7.0], "stopped", reason)
    story.trial(2, [0.5], "completed", "trained 20 steps")
    story.trial(3, [], "failed", "host lost (h001) at step 3")
    write_report(tell_report(spec, story.history), spec, story.history, tmp_path)
    page = (tmp_path / "report.html").read_text().partition("<h2>Outcomes</h2>")[2]
    rows = [re.findall("<td[^>]*>(.*?)</td>", line) for line in page.splitlines()][:9]
    assert [row for row in rows if row] == [
        ["completed", "1", "trained 20 steps", "2"],
        ["stopped", "2", "others were better at step 4",
         "0 (rung 1: 6.2 &lt; 6.4), 1 (rung 1: 6.3 &lt; 6.9)"],
        ["failed", "1", "host lost (h001) at step 3", "3"],
    ]  # fmt: skip
