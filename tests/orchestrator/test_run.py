"""Real sweeps on a tiny base, through `run_sweep` and the command, and what they leave behind."""

import doctest
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import mlflow
import pandas as pd
import psutil
import pytest
import torch
import yaml
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM

from orchestrator import (
    BestAdapter,
    OpenedSweep,
    SweepFailedError,
    SweepReport,
    SweepSpec,
    SweepStorageError,
    open_sweep,
    run_sweep,
)
from orchestrator.cli import main
from orchestrator.journal.log import read_events
from orchestrator.spec.finals_sections import FinalsSpec
from orchestrator.spec.sections import BudgetSpec
from orchestrator.spec.sweep import parse_sweep
from orchestrator.wording import format_metric
from registry import Registry
from registry.tracking.connection import connect
from trainables.base.loading import load_base
from trainables.errors import DataError, SpecError
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec

pytestmark = pytest.mark.ray

TRIALS = 4
PROMPT_IDS = torch.tensor([[70, 80, 90, 100, 110, 120]])


def sweep_of(base, data, **changes):
    """A sweep that takes seconds, as plain values."""
    return {
        "name": "tiny",
        "base": {"model": str(base)},
        "data": {
            "train": str(data), "validation_fraction": 0.2, "test_fraction": 0.2, "max_tokens": 32,
        },
        "optim": {"steps": 8, "batch_size": 4},
        "eval": {"every": 4},
        "space": {
            "base.quantization": {"choice": ["nf4", "fp4"]},
            "lora.rank": {"choice": [2, 4]},
            "optim.learning_rate": {"log_uniform": [2e-3, 2e-2]},
        },
        "schedule": {"algorithm": "none"},
        "budget": {"trials": TRIALS},
        "hosts": {"seats": 2},
        "finals": {"top": 1, "seeds": 0, "forms": []},
        "register": {"name": "tiny-adapter"},
        **changes,
    }  # fmt: skip


def run_quietly(spec, storage):
    console = Console(file=io.StringIO(), width=100)
    report = run_sweep(spec, storage, console=console)
    return report, console.file.getvalue()


def tracked(storage):
    """What MLflow holds of the sweeps beside each other: the sweep's run, trials, versions."""
    client = connect(f"sqlite:///{storage.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lorchestra")
    runs = client.search_runs([experiment.experiment_id])
    trials = {
        int(run.data.tags["lorchestra.trial"]): run
        for run in runs
        if run.data.tags["lorchestra.kind"] == "trial"
    }
    versions = client.search_model_versions("name = 'tiny-adapter'")
    return SimpleNamespace(
        client=client,
        sweeps=[run for run in runs if run.data.tags["lorchestra.kind"] == "sweep"],
        trials=trials,
        run_count=len(runs),
        versions=sorted(int(version.version) for version in versions),
    )


def steps_of(client, run, metric="eval_loss"):
    return [point.step for point in client.get_metric_history(run.info.run_id, metric)]


@pytest.fixture(scope="module", autouse=True)
def no_tracking_server() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def swept(local_ray, tiny_base, tiny_data, tmp_path_factory):
    """One whole sweep over two stored forms of the base."""
    storage = tmp_path_factory.mktemp("runs") / "tiny"
    spec = parse_sweep(sweep_of(tiny_base, tiny_data), tiny_data.parent)
    report, said = run_quietly(spec, storage)
    return SimpleNamespace(
        spec=spec,
        storage=storage,
        report=report,
        said=said,
        events=list(read_events(storage / "events.jsonl")),
        tracked=tracked(storage),
        uri=f"sqlite:///{storage.parent / 'mlflow.db'}",
    )


@pytest.fixture(scope="module")
def again(swept):
    """The same call on the same folder."""
    report, said = run_quietly(swept.spec, swept.storage)
    events = list(read_events(swept.storage / "events.jsonl"))
    return SimpleNamespace(
        report=report,
        said=said,
        new_events=events[len(swept.events) :],
        tracked=tracked(swept.storage),
    )


@pytest.fixture(scope="module")
def extended(swept, again):
    """The same folder with two trials more."""
    spec = replace(swept.spec, budget=BudgetSpec(trials=TRIALS + 2))
    report, _ = run_quietly(spec, swept.storage)
    return SimpleNamespace(
        report=report,
        tracked=tracked(swept.storage),
        events=list(read_events(swept.storage / "events.jsonl")),
    )


# -------------------------------------------------------------------------------- one sweep


def test_the_best_adapter_is_a_version_and_champion(swept):
    best = swept.report.best
    assert (swept.report.status, best.ref, best.is_champion) == (
        "completed",
        "tiny-adapter/1",
        True,
    )
    champion = Registry(swept.uri).get("tiny-adapter@champion")
    assert str(champion.ref) == best.ref
    assert champion.run_id == swept.tracked.trials[best.trial].info.run_id
    assert champion.metrics["test_loss"] == pytest.approx(best.test_metrics["test_loss"])


def test_the_leaderboard_ranks_every_trial_by_the_objective(swept):
    board = swept.report.leaderboard
    assert list(board.columns) == [
        "rank", "trial", "outcome", "step", "eval_loss", "eval_accuracy", "train_loss",
        "quantization", "lora.rank", "optim.learning_rate",
        "tokens_per_s", "peak_memory_gib", "trainable_params", "host_s", "seconds", "reason",
    ]  # fmt: skip
    assert list(board["rank"]) == [1, 2, 3, 4]
    assert sorted(board["trial"]) == list(range(TRIALS))
    assert list(board["eval_loss"]) == sorted(board["eval_loss"])
    assert board["trial"].iloc[0] == swept.report.best.trial
    assert set(board["outcome"]) == {"completed"}
    assert (board["step"] == 8).all()


def test_the_champion_beats_the_bare_base_on_rows_it_never_saw(swept):
    report = swept.report
    assert report.best.test_metrics["test_loss"] < report.base_metrics["test"]["test_loss"]
    assert report.best.metrics["eval_loss"] < report.base_metrics["validation"]["eval_loss"]


def test_there_is_one_run_for_the_sweep_and_one_below_it_for_each_trial(swept):
    (sweep,) = swept.tracked.sweeps
    assert swept.tracked.run_count == 1 + TRIALS
    assert sorted(swept.tracked.trials) == list(range(TRIALS))
    parents = {run.data.tags["mlflow.parentRunId"] for run in swept.tracked.trials.values()}
    assert parents == {sweep.info.run_id}
    assert sweep.info.status == "FINISHED"
    assert sweep.info.run_name == "tiny"


def test_a_trial_run_has_all_its_hyperparameters(swept):
    for row in swept.report.leaderboard.to_dict("records"):
        params = swept.tracked.trials[row["trial"]].data.params
        assert params["quantization"] == row["quantization"]
        assert params["lora.rank"] == str(row["lora.rank"])
        assert params["optim.learning_rate"] == str(row["optim.learning_rate"])
        assert (params["optim.steps"], params["optim.batch_size"]) == ("8", "4")
        assert {"base", "lora.alpha", "lora.targets", "seed", "data.max_tokens"} <= params.keys()


def test_a_trial_run_has_its_metrics_by_step_and_its_end(swept):
    for row in swept.report.leaderboard.to_dict("records"):
        run = swept.tracked.trials[row["trial"]]
        assert steps_of(swept.tracked.client, run) == [4, 8]
        assert run.data.metrics["eval_loss"] == pytest.approx(row["eval_loss"])
        assert run.info.status == "FINISHED"
        assert run.data.tags["lorchestra.outcome"] == "completed"
        assert run.data.tags["lorchestra.reason"] == "trained 8 steps"


def test_the_sweep_run_holds_the_report_and_the_totals(swept):
    (sweep,) = swept.tracked.sweeps
    files = {file.path for file in swept.tracked.client.list_artifacts(sweep.info.run_id)}
    assert files >= {"report.html", "leaderboard.csv", "learning_curves.png", "sweep.yaml"}
    report, metrics = swept.report, sweep.data.metrics
    for name in ("eval_loss", "eval_accuracy"):
        assert metrics[f"best/{name}"] == pytest.approx(report.best.metrics[name])
    assert metrics["best/test_loss"] == pytest.approx(report.best.test_metrics["test_loss"])
    assert all(name.startswith("best/") for name in metrics)  # no loss that sorts before a trial's
    note = sweep.data.tags["mlflow.note.content"]
    assert format_metric(report.base_metrics["test"]["test_loss"]) in note
    assert report.links is not None


def test_the_sweep_file_among_the_artifacts_is_the_sweep(swept, tmp_path):
    (sweep,) = swept.tracked.sweeps
    path = swept.tracked.client.download_artifacts(sweep.info.run_id, "sweep.yaml", str(tmp_path))
    again = parse_sweep(yaml.safe_load(Path(path).read_text()), tmp_path)
    assert again.digest == swept.spec.digest == sweep.data.tags["lorchestra.digest"]
    assert SweepSpec.from_yaml(swept.storage / "sweep.yaml") == swept.spec


def test_the_best_adapter_loads_from_the_registry_or_its_bundle(swept):
    best = swept.report.best
    loaded = [best.load(), replace(best, ref=None).load(), best.load(form="merged")]
    with torch.no_grad():
        registered, bundle, merged = (one.model(PROMPT_IDS).logits for one in loaded)
    assert torch.equal(registered, bundle)
    assert not torch.equal(registered, merged)
    assert loaded[0].tokenizer.decode(PROMPT_IDS[0].tolist()) != ""
    with pytest.raises(SpecError, match="form: got 'fused'"):
        best.load(form="fused")


def test_an_opened_sweep_shows_what_the_report_shows(swept):
    opened = open_sweep(swept.storage)
    assert opened.is_over
    pd.testing.assert_frame_equal(opened.report.leaderboard, swept.report.leaderboard)
    assert opened.report.best == swept.report.best
    assert opened.report.curves["step"].tolist() == [4, 8] * TRIALS


@pytest.fixture
def folder_of_docs(swept, tmp_path, monkeypatch):
    """A working directory as the documentation has it, but with the names of this sweep."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny-adapter").symlink_to(swept.storage)
    (tmp_path / "runs" / "mlflow.db").symlink_to(swept.storage.parent / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_code_on_serving_gives_the_adapter_that_was_measured(swept, folder_of_docs):
    page = Path(__file__).parents[2] / "docs" / "serving.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("wordnet-classes", "tiny-adapter"), names)
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype="auto")
    best = swept.report.best
    # Where the processor computes in bfloat16, what is not quantized is rounded in the first only.
    for model, form, margin in ((names["model"], "trained", 0.4), (merged, "merged", 0.0)):
        with torch.no_grad():
            expected = best.load(form=form).model(PROMPT_IDS).logits
            found = model(PROMPT_IDS).logits
        torch.testing.assert_close(found.float(), expected.float(), atol=margin, rtol=0.0)


@pytest.mark.parametrize("kind", [BestAdapter, OpenedSweep, Registry, SweepReport])
def test_the_examples_of_docstrings_hold(folder_of_docs, kind):
    named = kind if kind is not OpenedSweep else open_sweep
    text = str(named.__doc__).replace("wordnet-classes", "tiny-adapter")
    names = {"Registry": Registry, "open_sweep": open_sweep}
    example = doctest.DocTestParser().get_doctest(text, names, kind.__name__, None, None)
    assert len(example.examples) >= 3
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_report_is_on_disk(swept):
    board = pd.read_csv(swept.storage / "report" / "leaderboard.csv")
    assert list(board["trial"]) == list(swept.report.leaderboard["trial"])
    assert swept.report.best.ref in (swept.storage / "report" / "report.html").read_text()


def test_the_terminal_has_the_products_own_lines_only(swept):
    lines = swept.said.splitlines()
    assert any("trial 0  completed" in line for line in lines)
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
    assert [line for line in lines if not re.match(stamp, line)] == []
    # First the sweep, then what is known of the rows, then what happens.
    said = [re.sub(stamp, "", line) for line in lines]
    assert said[0].startswith("lorchestra: sweep tiny, ")
    assert any(line.startswith("Rows are read as ") for line in said[1:8]), swept.said


@pytest.fixture(scope="module")
def logits_of_champion(swept):
    """The champion's logits, as MLflow alone loads it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", swept.uri)
        model = mlflow.pyfunc.load_model("models:/tiny-adapter@champion")
    return logits(model.unwrap_python_model().model)


def logits(model):
    with torch.no_grad():
        return model(input_ids=PROMPT_IDS, use_cache=False).logits


def test_the_champion_answers_as_the_pulled_folder_does_in_plain_peft(
    swept, logits_of_champion, tiny_base, tmp_path
):
    folder = Registry(swept.uri).pull("tiny-adapter@champion", tmp_path / "adapter")
    form = swept.report.best.hyperparameters["quantization"]
    base = load_base(BaseSpec(model=str(tiny_base), quantization=form)).model
    bare = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, str(folder)).eval())
    assert (adapted - logits_of_champion).abs().max().item() == 0.0
    assert (adapted - bare).abs().max().item() > 0.01


# ----------------------------------------------------------------------- on the same folder


def test_the_same_call_again_trains_nothing(swept, again):
    assert {event.kind for event in again.new_events} <= {"phase"}
    assert "searching" not in again.said
    assert again.tracked.run_count == swept.tracked.run_count
    assert again.tracked.versions == swept.tracked.versions == [1]


def test_the_same_call_again_gives_the_same_report(swept, again):
    assert again.report.best == swept.report.best
    assert again.report.base_metrics == swept.report.base_metrics
    assert (again.report.status, again.report.reason) == ("completed", "4 trials")
    pd.testing.assert_frame_equal(again.report.leaderboard, swept.report.leaderboard)


def test_the_same_call_again_adds_no_points(swept, again):
    for trial, run in again.tracked.trials.items():
        assert run.data.metrics == swept.tracked.trials[trial].data.metrics
        assert steps_of(again.tracked.client, run) == [4, 8]


def test_a_bigger_budget_adds_trials_and_repeats_none(swept, extended):
    started = [e.event.trial for e in extended.events if e.kind == "trial_started"]
    assert sorted(started) == list(range(TRIALS + 2))
    assert not [e for e in extended.events if e.kind == "trial_resumed"]
    assert sorted(extended.report.leaderboard["trial"]) == list(range(TRIALS + 2))
    assert extended.tracked.run_count == 1 + TRIALS + 2
    board = extended.report.leaderboard.set_index("trial")
    before = swept.report.leaderboard.set_index("trial")
    assert (board.loc[before.index, "eval_loss"] == before["eval_loss"]).all()


def test_a_bigger_budget_registers_only_what_is_new(swept, extended):
    is_new_best = extended.report.best.trial != swept.report.best.trial
    assert extended.tracked.versions == ([1, 2] if is_new_best else [1])
    registered = [e.event.ref for e in extended.events if e.kind == "registered"]
    assert registered == [f"tiny-adapter/{version}" for version in extended.tracked.versions]
    (sweep,) = extended.tracked.sweeps
    assert sweep.info.status == "FINISHED"
    assert sweep.data.metrics["best/eval_loss"] == pytest.approx(
        extended.report.best.metrics["eval_loss"]
    )


def test_another_sweep_does_not_enter_the_folder(swept):
    other = replace(swept.spec, seed=99)
    before = (swept.storage / "events.jsonl").read_bytes()
    with pytest.raises(
        SweepStorageError, match=r"of another spec \(seed was \d+, is 99\); allowed"
    ):
        run_quietly(other, swept.storage)
    assert (swept.storage / "events.jsonl").read_bytes() == before


# -------------------------------------------------------------------------------- from code


@pytest.mark.slow
def test_rows_may_be_given_in_code(local_ray, tiny_base, tiny_data, tmp_path):
    rows = [json.loads(line) for line in tiny_data.read_text().splitlines()]
    spec = SweepSpec(
        name="in-code",
        base=BaseSpec(model=str(tiny_base)),
        data=DataSpec(
            train=rows[:48], validation=datasets.Dataset.from_list(rows[48:]), test=iter(rows[:8])
        ),
        lora=LoraSpec(rank=2),
        optim=OptimSpec(steps=4, learning_rate=1e-2, batch_size=4),
        eval=EvalSpec(every=4),
        budget=BudgetSpec(trials=1),
        finals=FinalsSpec(seeds=0, forms=()),
    )
    report, _ = run_quietly(spec, tmp_path / "runs" / "in-code")
    assert (report.best.trial, report.best.ref) == (0, None)
    assert report.best.test_metrics.keys() >= {"test_loss", "test_accuracy"}
    assert report.base_metrics.keys() == {"validation", "test"}
    (saved,) = (tmp_path / "runs" / "in-code" / "data").glob("validation-*.jsonl")
    assert [json.loads(line) for line in saved.read_text().splitlines()] == rows[48:]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [("{", "line 65 is not JSON"), ('["prompt"]', "line 65 is a list")],
    ids=["not-json", "no-mapping"],
)
def test_a_bad_row_is_found_before_anything_starts(tiny_base, tiny_data, tmp_path, row, complaint):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(tiny_data.read_text() + row + "\n")
    spec = parse_sweep(sweep_of(tiny_base, rows), tmp_path)
    with pytest.raises(DataError, match=complaint):
        run_quietly(spec, tmp_path / "runs" / "tiny")
    assert not (tmp_path / "runs" / "tiny" / "events.jsonl").exists()


def test_a_base_that_cannot_be_loaded_fails_the_sweep_with_its_reason(
    local_ray, tiny_base, tiny_data, tmp_path
):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    values = sweep_of(broken, tiny_data, space={}, budget={"trials": 1})
    storage = tmp_path / "runs" / "tiny"
    with pytest.raises(SweepFailedError, match=r"broken cannot be loaded") as failure:
        run_quietly(parse_sweep(values, tmp_path), storage)
    assert str(storage / "lorchestra.log") in str(failure.value)
    (sweep,) = tracked(storage).sweeps
    assert sweep.info.status == "FAILED"
    assert tracked(storage).trials[0].info.status == "FAILED"
    assert "broken cannot be loaded" in tracked(storage).trials[0].data.tags["lorchestra.reason"]


# ------------------------------------------------------------------------------ interrupted


def hear_signals():
    """In a child: signals that are ignored in a shell's background, or below nohup, are not."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Command:
    """`lorchestra run` on a sweep that takes a while, in a folder of its own."""

    def __init__(self, folder, base, data, steps=240, trials=3):
        self.folder, self.steps, self.trials = folder, steps, trials
        self.storage = folder / "runs" / "tiny"
        values = sweep_of(
            base, data, optim={"steps": steps, "batch_size": 4}, eval={"every": 20},
            space={"lora.rank": {"choice": [2, 4, 8]}}, budget={"trials": trials},
        )  # fmt: skip
        (folder / "sweep.yaml").write_text(yaml.safe_dump(values))

    def start(self, *words):
        ours = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *(words or ("run", "sweep.yaml"))],
            cwd=self.folder, env=ours | {"OMP_NUM_THREADS": "1"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=hear_signals,
        )  # fmt: skip

    def events(self):
        return list(read_events(self.storage / "events.jsonl"))

    def say(self, *words):
        """What another `lorchestra` says meanwhile."""
        process = self.start(*words)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
        return said

    def wait_for_reports(self, process, count):
        self.wait_for(process, lambda each: each.kind == "report", count)

    def wait_for(self, process, is_it, count=1, timeout_s=400.0):
        deadline = time.monotonic() + timeout_s
        while sum(map(is_it, self.events())) < count:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def finish(self):
        process = self.start()
        said, _ = process.communicate(timeout=400)
        assert process.returncode == 0, said
        return said


@pytest.fixture
def command(tmp_path, tiny_base, tiny_data):
    return Command(tmp_path, tiny_base, tiny_data)


def assert_finished_once(command):
    """Every trial was trained once, from its start to its end, and recorded once."""
    events = command.events()
    counts = Counter(e.kind for e in events)
    assert (counts["sweep_started"], counts["sweep_resumed"], counts["sweep_ended"]) == (1, 1, 1)
    assert counts["trial_resumed"] >= 1
    steps = {trial: [] for trial in range(command.trials)}
    for each in events:
        if each.kind == "report":
            steps[each.event.trial].append(each.event.step)
    wanted = list(range(20, command.steps + 1, 20))
    assert steps == dict.fromkeys(range(command.trials), wanted)
    begun = Counter(e.event.trial for e in events if e.kind == "trial_started")
    assert begun == dict.fromkeys(range(command.trials), 1)
    found = tracked(command.storage)
    assert (len(found.sweeps), found.run_count) == (1, command.trials + 1)
    assert found.versions == [1]
    for run in found.trials.values():
        assert steps_of(found.client, run) == wanted
        assert run.info.status == "FINISHED"


@pytest.mark.slow  # test_chaos.py ends a driver by SIGTERM; below, Ctrl-C while starting
@pytest.mark.timeout(900)
def test_ctrl_c_leaves_nothing_behind_and_the_same_command_goes_on(tmp_path, tiny_base, tiny_data):
    command = Command(tmp_path, tiny_base, tiny_data, steps=160, trials=2)
    process = command.start()
    command.wait_for_reports(process, 3)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Go on with: lorchestra run sweep.yaml" in said
    assert "Traceback" not in said
    assert len(family) > 5
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive

    assert "completed: 2 trials" in command.finish()
    assert_finished_once(command)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_driver_loses_and_repeats_nothing(command):
    process = command.start()
    command.wait_for_reports(process, 6)
    process.kill()
    process.communicate(timeout=60)
    assert "completed: 3 trials" in command.finish()
    assert_finished_once(command)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_terminal_stops_a_trial_and_cancels_the_sweep(command):
    process = command.start()
    command.wait_for_reports(process, 2)
    assert "trial 0 is told to stop" in command.say("stop", "runs/tiny", "0")
    command.wait_for(process, lambda each: each.kind == "trial_ended")
    (end,) = [each.event for each in command.events() if each.kind == "trial_ended"]
    assert (end.trial, end.outcome, end.by) == (0, "cancelled", "user")
    assert command.say("cancel", "runs/tiny").strip() == "the sweep is told to end"
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "cancelled by the user" in said
    assert "cancelled" in command.say("status", "runs/tiny").splitlines()[0]
    assert tracked(command.storage).versions == []

    process = command.start("resume", "runs/tiny")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    ends = {
        each.event.trial: (each.event.outcome, each.event.step)
        for each in command.events()
        if each.kind == "trial_ended"
    }
    assert ends[1] == ends[2] == ("completed", 240)
    assert ends[0][0] == "cancelled"
    assert tracked(command.storage).versions == [1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("after_s", [0.0, 1.5])
def test_a_signal_while_starting_is_an_interrupt(command, number, after_s):
    process = command.start()
    process.stdout.readline()
    time.sleep(after_s)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in said) == (128 + number, False)


def test_a_signal_while_ray_starts_is_an_interrupt(command):
    """Ray takes SIGTERM for itself in its start, and exits without a word."""
    process = command.start()
    while "starting Ray" not in (line := process.stdout.readline()) and line:
        pass
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in said) == (143, False)
    assert "Go on with: lorchestra run sweep.yaml" in said


def test_a_sweep_killed_before_its_promotion_promotes_when_run_again(swept, tmp_path):
    shutil.copytree(swept.storage.parent, tmp_path / "runs")
    storage = tmp_path / "runs" / "tiny"
    log = storage / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    cut = next(n for n, line in enumerate(lines) if '"event":"promoted"' in line)
    log.write_text("".join(lines[:cut]))
    uri = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    version = Registry(uri).get("tiny-adapter/1")
    connect(uri).delete_registered_model_alias("tiny-adapter", "champion")
    assert "champion" in version.aliases

    spec = replace(swept.spec, budget=BudgetSpec(trials=TRIALS))
    report, said = run_quietly(spec, storage)
    assert report.best.is_champion
    assert "starting Ray" not in said
    assert "champion" in Registry(uri).get("tiny-adapter/1").aliases


def test_what_mlflow_lacks_is_told_by_exit_code_3_and_delivered_by_the_same_command(
    swept, tmp_path, capfd
):
    """Nothing answers at the server's address when the adapters are to be registered."""
    shutil.copytree(swept.storage.parent, tmp_path / "runs")
    storage = tmp_path / "runs" / "tiny"
    log = storage / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    cut = next(n for n, line in enumerate(lines) if '"event":"registered"' in line)
    log.write_text("".join(lines[:cut]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        assert main(["resume", str(storage)]) == 3
        last = capfd.readouterr().out.splitlines()[-1]
        assert last.startswith("Not all is registered: ")
        assert last.endswith(f"Finish it with: lorchestra resume {storage}")
        patch.delenv("MLFLOW_TRACKING_URI")
        assert main(["resume", str(storage)]) == 0
    assert "Promoted: " in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_spent_wall_clock_keeps_what_was_measured_and_goes_on(
    local_ray, tiny_base, tiny_data, tmp_path
):
    values = sweep_of(
        tiny_base, tiny_data, optim={"steps": 4000, "batch_size": 4}, eval={"every": 20},
        space={"lora.rank": {"choice": [2, 4]}}, budget={"trials": 2, "wall_clock_s": 100},
    )  # fmt: skip
    storage = tmp_path / "runs" / "tiny"
    report, _ = run_quietly(parse_sweep(values, tmp_path), storage)
    assert set(report.leaderboard["outcome"]) == {"cancelled"}
    assert report.best.ref == "tiny-adapter/1"
    assert {run.info.status for run in tracked(storage).trials.values()} == {"KILLED"}
    before = dict(zip(report.leaderboard["trial"], report.leaderboard["step"], strict=True))

    report, said = run_quietly(parse_sweep(values, tmp_path), storage)
    assert "searching" not in said  # it is spent for good: over all sessions
    more = values | {"budget": {"trials": 2, "wall_clock_s": 260}}
    report, _ = run_quietly(parse_sweep(more, tmp_path), storage)
    after = dict(zip(report.leaderboard["trial"], report.leaderboard["step"], strict=True))
    assert after.keys() == before.keys()
    assert all(after[trial] > before[trial] for trial in before)
