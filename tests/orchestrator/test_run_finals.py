"""Whole sweeps beyond the search: finals with new seeds, budgets, and storage in a bucket."""

import io
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from orchestrator import run_sweep
from orchestrator.journal.log import read_events
from orchestrator.journal.sweep_storage import SweepStorage, read_history
from orchestrator.spec.sections import BudgetSpec
from orchestrator.spec.sweep import parse_sweep
from registry import Registry
from registry.tracking.connection import connect

pytestmark = pytest.mark.ray

TRIALS = 3


def sweep_of(base, data, **changes):
    """A sweep that takes seconds, as plain values."""
    return {
        "name": "tiny",
        "base": {"model": str(base), "compute_dtype": "float32"},
        "data": {
            "train": str(data), "validation_fraction": 0.2, "test_fraction": 0.2, "max_tokens": 32,
        },
        "optim": {"steps": 8, "batch_size": 4},
        "eval": {"every": 4, "keep_every": 4},
        "space": {
            "lora.rank": {"choice": [2, 4]},
            "lora.alpha": {"tied": "2 * lora.rank"},
            "optim.learning_rate": {"log_uniform": [2e-3, 2e-2]},
        },
        "objective": {"metric": "eval_loss", "also": {"trainable_params": "min"}},
        "schedule": {"algorithm": "none"},
        "budget": {"trials": TRIALS},
        "hosts": {"seats": 2},
        "finals": {"top": 2, "seeds": 1, "forms": []},
        "register": {"name": "tiny-adapter"},
        **changes,
    }  # fmt: skip


def run_quietly(spec, storage):
    console = Console(file=io.StringIO(), width=100)
    report = run_sweep(spec, storage, console=console)
    return report, console.file.getvalue()


@pytest.fixture(scope="module", autouse=True)
def no_tracking_server():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


def tracked(storage):
    client = connect(f"sqlite:///{storage.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lorchestra")
    runs = client.search_runs([experiment.experiment_id], "tags.`lorchestra.kind` = 'trial'")
    return {int(run.data.tags["lorchestra.trial"]): run for run in runs}


@pytest.fixture(scope="module")
def swept(local_ray, tiny_base, tiny_data, tmp_path_factory):
    storage = tmp_path_factory.mktemp("runs") / "tiny"
    finals = {"top": 2, "seeds": 1, "forms": ["trained", "merged"], "max_new_tokens": 3}
    values = sweep_of(tiny_base, tiny_data, finals=finals)
    values["base"]["quantization"] = "none"
    spec = parse_sweep(values, tiny_data.parent)
    report, said = run_quietly(spec, storage)
    return SimpleNamespace(spec=spec, storage=storage, report=report, said=said)


def test_the_best_are_trained_again_with_new_seeds(swept):
    history = read_history(swept.storage)
    best, second = [one.trial.number for one in swept.report.finals]
    repeats = {trial.repeat_of: trial for trial in history.trials.values() if trial.repeat_of}
    repeats |= {t.repeat_of: t for t in history.trials.values() if t.repeat_of is not None}
    assert set(repeats) == {best, second}
    for of, repeat in repeats.items():
        original = history.trials[of].spec
        assert repeat.spec == {**original, "seed": original["seed"] + 1}
        assert (repeat.outcome, repeat.step) == ("completed", 8)
        assert repeat.final_metrics["test_loss"] > 0


def test_the_report_ranks_finalists_by_their_mean_on_test_rows(swept):
    first, second = swept.report.finals
    assert len(first.values) == len(second.values) == 2
    assert first.mean == pytest.approx(sum(first.values) / 2)
    assert first.mean <= second.mean
    assert first.half_width > 0
    told = swept.report.separation.text
    assert f"trial {first.trial.number} and trial {second.trial.number}" in told


def test_the_leaderboard_is_the_search_alone(swept):
    assert sorted(swept.report.leaderboard["trial"]) == list(range(TRIALS))
    assert set(swept.report.leaderboard["host_s"] > 0) == {True}


def test_the_pareto_front_has_the_best_and_the_smallest(swept):
    board = swept.report.leaderboard.set_index("trial")
    assert board["eval_loss"].idxmin() in swept.report.pareto
    small = board[board["trainable_params"] == board["trainable_params"].min()]
    assert small["eval_loss"].idxmin() in swept.report.pareto


def test_a_repeat_is_a_run_that_says_what_it_repeats(swept):
    runs = tracked(swept.storage)
    assert sorted(runs) == list(range(TRIALS + 2))
    tags = {number: run.data.tags.get("lorchestra.repeat_of") for number, run in runs.items()}
    finalists = {str(one.trial.number) for one in swept.report.finals}
    assert {tags[number] for number in range(TRIALS, TRIALS + 2)} == finalists
    assert {tags[number] for number in range(TRIALS)} == {None}


def test_the_version_is_the_adapter_that_stands_for_the_winner(swept):
    uri = f"sqlite:///{swept.storage.parent / 'mlflow.db'}"
    champion = Registry(uri).get("tiny-adapter@champion")
    winner = swept.report.finals[0]
    assert champion.tags["lorchestra.trial"] == str(winner.adapter.number)
    assert float(champion.tags["finals.mean"]) == pytest.approx(winner.mean, rel=1e-4)
    assert swept.report.best.trial == winner.adapter.number


def test_each_finalist_is_scored_as_it_would_be_served(swept):
    for standing in swept.report.finals:
        forms = read_history(swept.storage).trials[standing.adapter.number].forms
        assert list(forms) == ["trained", "merged"]
        # what PEFT makes of the bundle is what the engine measured
        measured = standing.adapter.final_metrics
        assert forms["trained"]["loss"] == pytest.approx(measured["test_loss"], rel=1e-4)
        assert forms["trained"]["accuracy"] == measured["test_accuracy"]
        assert forms["trained"]["exact_match"] == measured["test_accuracy"]
        # an unquantized base merged in float32 says the same
        assert abs(forms["merged"]["loss.difference"]) < 1e-3
        assert (
            forms["merged"]["loss.low"] <= forms["merged"]["loss"] <= forms["merged"]["loss.high"]
        )


def test_what_was_scored_is_kept_with_the_version(swept):
    uri = f"sqlite:///{swept.storage.parent / 'mlflow.db'}"
    champion = Registry(uri).get("tiny-adapter@champion")
    evaluations = Registry(uri).evaluations(champion.ref)
    assert {one.form for one in evaluations} == {"trained", "merged"}
    assert {one.data.digest for one in evaluations} == {champion.tags["data.test"]}
    assert champion.tags["checkpoints"] == "4"
    (move,) = Registry(uri).history("tiny-adapter")
    assert (move.alias, move.target) == ("champion", champion.version)
    assert "sweep tiny" in move.why


def test_what_was_spent_is_told(swept):
    assert swept.report.spent["cpu_seconds"] > 0
    assert swept.report.spent["wall_clock_s"] > 0
    assert swept.report.ended_early == ""


@pytest.fixture(scope="module")
def more_seeds(swept):
    """The same folder with one seed more in the finals."""
    spec = replace(swept.spec, finals=replace(swept.spec.finals, seeds=2))
    report, said = run_quietly(spec, swept.storage)
    return SimpleNamespace(report=report, said=said)


def test_more_seeds_train_only_what_is_new(swept, more_seeds):
    assert "searching" not in more_seeds.said
    events = list(read_events(swept.storage / "events.jsonl"))
    started = [each.event.trial for each in events if each.kind == "trial_started"]
    assert sorted(started) == list(range(TRIALS + 4))
    assert [len(one.values) for one in more_seeds.report.finals] == [3, 3]


def test_gpu_seconds_cannot_be_limited_without_a_gpu(local_ray, tiny_base, tiny_data, tmp_path):
    values = sweep_of(tiny_base, tiny_data, budget={"trials": 2, "gpu_seconds": 60})
    with pytest.raises(ValueError, match=r"budget\.gpu_seconds: got 60.*no GPU"):
        run_quietly(parse_sweep(values, tmp_path), tmp_path / "runs" / "tiny")


@pytest.fixture
def in_bucket(local_ray, tiny_base, tiny_data, tmp_path, s3_location, no_tracking_server):
    """A sweep in a bucket, run by a machine that then forgot all it knew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
        values = sweep_of(tiny_base, tiny_data, finals={"top": 1, "seeds": 0, "forms": []})
        spec = parse_sweep(values | {"budget": {"trials": 2}}, tmp_path)
        first, _ = run_quietly(spec, s3_location)
        shutil.rmtree(SweepStorage(s3_location).folder)
        yield SimpleNamespace(spec=spec, location=s3_location, first=first)


def test_a_sweep_in_a_bucket_is_known_on_another_machine(in_bucket):
    first, location = in_bucket.first, in_bucket.location
    assert (first.status, first.best.ref) == ("completed", "tiny-adapter/1")
    assert read_history(location).status == "completed"
    again, said = run_quietly(in_bucket.spec, location)
    assert "searching" not in said
    assert again.best == first.best


@pytest.mark.slow
def test_a_sweep_in_a_bucket_goes_on_from_another_machine(in_bucket):
    more, _ = run_quietly(replace(in_bucket.spec, budget=BudgetSpec(trials=3)), in_bucket.location)
    assert sorted(more.leaderboard["trial"]) == [0, 1, 2]
    storage = SweepStorage(in_bucket.location)
    storage.pull("report")
    assert (storage.folder / "report" / "report.html").is_file()
