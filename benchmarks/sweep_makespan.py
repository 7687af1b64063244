"""CPU-seconds and wall time of the same trials here and as the usual recipe.

    here     `lorchestra run`: trials take seats on hosts that keep a quantized base
    recipe   Ray Tune with a `TorchTrainer` in each trial, which quantizes the base while loading
             it and trains with transformers' `Trainer`; `reuse_actors` and early stopping hang
             together in Ray 2.60, so actors are not reused

Both search once: `here` goes first, and the recipe trains the configurations that it drew, on the
same token sequences with the same batch size, schedule and steps, and evaluates at the same steps.
`short` are trials of 10 steps that nothing stops; `quickstart` is the search of the shipped sweep
with its ASHA. Both ways evaluate, stop and keep their adapters; neither repeats, registers or
scores in serving forms. Base caches are empty at the start, so `here` pays its one quantization.

CPU-seconds are those of all processes of a way, sampled every fifth of a second until they end.
Losses are means over the answer tokens of the same validation rows.

    python benchmarks/sweep_makespan.py --case short --trials 32 --out sweep_makespan.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from transformers import AutoTokenizer

sys.path.insert(1, str(Path(__file__).parents[1]))

from orchestrator.journal.sweep_storage import read_history
from trainables.rows.data import load_splits
from trainables.rows.sampling import sample
from trainables.spec import DataSpec, TrialSpec

SWEEPS = Path(__file__).parents[1] / "sweeps"
SAMPLE_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the trials of one way cost.

    Attributes:
        way: `here` or `recipe`, with what was set.
        trials: Trials that ended well.
        cpu_s: CPU-seconds of all processes.
        wall_s: Seconds from the start of the command to its end.
        losses: Last validation loss of each trial, by its number.
    """

    way: str
    trials: int
    cpu_s: float
    wall_s: float
    losses: Mapping[int, float]


class ProcessMeter:
    """CPU-seconds of a process and all that descend from it, while the context is open."""

    def __init__(self, process: psutil.Process) -> None:
        self._root = process
        self._spent: dict[psutil.Process, float] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> ProcessMeter:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._thread.join()

    @property
    def cpu_s(self) -> float:
        """CPU-seconds of all processes seen so far."""
        return sum(self._spent.values())

    def _watch(self) -> None:
        while not self._closing.wait(SAMPLE_S):
            try:
                seen = [self._root, *self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            # A process whose parent has ended is no descendant any more, but was seen before.
            for process in {*seen, *self._spent}:
                try:
                    times = process.cpu_times()
                except psutil.NoSuchProcess:
                    continue  # ended: the last reading stands
                self._spent[process] = times.user + times.system


def run_measured(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """CPU-seconds and wall seconds of a command, which must succeed.

    Raises:
        RuntimeError: The command failed; the message holds the end of its output.
    """
    environment = {
        **os.environ, "LORCHESTRA_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]), "RAY_AUTH_MODE": "disabled",
    }  # fmt: skip
    environment.pop("MLFLOW_TRACKING_URI", None)
    output = folder / "output.txt"
    started = time.monotonic()
    with output.open("w") as stream:
        process = psutil.Popen(
            list(command), cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
        with ProcessMeter(process) as meter:
            code = process.wait()
    wall_s = time.monotonic() - started
    if code != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {code}: {output.read_text()[-2000:]}")
    return meter.cpu_s, wall_s


# ----------------------------------------------------------------------------------------- here


def sweep_values(case: str, trials: int, seats: int) -> dict[str, Any]:
    """The sweep file of a case, as plain values: the quickstart without its finals."""
    values: dict[str, Any] = yaml.safe_load((SWEEPS / "quickstart.yaml").read_text())
    for split in ("train", "validation", "test"):
        values["data"][split] = str(SWEEPS / values["data"][split])
    values["finals"] = {"top": 1, "seeds": 0, "forms": ["trained"]}
    values["hosts"] = {"seats": seats}
    del values["register"]
    if case == "short":
        values["space"]["base.quantization"] = {"choice": ["nf4"]}
        values["optim"]["steps"] = 10
        values["eval"]["every"] = 10
        values["search"] = {"algorithm": "random"}
        values["schedule"] = {"algorithm": "none"}
        values["budget"] = {"trials": trials}
    return values


def run_here(values: Mapping[str, Any], settings: Sequence[str], folder: Path) -> Measured:
    """Run the sweep; its log stays in `folder`."""
    (folder / "sweep.yaml").write_text(yaml.safe_dump(dict(values)))
    changes = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "orchestrator.cli", "run", "sweep.yaml", "--plain", *changes]
    cpu_s, wall_s = run_measured(command, folder)
    ended = read_history(str(folder / "runs" / str(values["name"]))).searched()
    losses = {
        trial.number: trial.reports[-1].metrics["eval_loss"] for trial in ended if trial.reports
    }
    way = " ".join(["here", *settings])
    return Measured(way=way, trials=len(losses), cpu_s=cpu_s, wall_s=wall_s, losses=losses)


# --------------------------------------------------------------------------------------- recipe


def write_task(values: Mapping[str, Any], here: Path, folder: Path) -> None:
    """What the recipe trains: the base's folder, tokens and configurations of a run here."""
    (plain,) = (here / "cache" / "bases").glob("*/plain")
    splits = load_splits(DataSpec(**values["data"]), AutoTokenizer.from_pretrained(plain), ())
    history = read_history(str(here / "runs" / str(values["name"])))
    specs = [TrialSpec.from_dict(trial.spec) for trial in history.searched()]
    rows, limit = splits.validation.rows, values["eval"]["max_rows"]
    chosen = [rows[i] for i in sample(len(rows), limit, splits.validation.digest)]
    task = {
        "base": str(plain),
        "train": [_labelled(row) for row in splits.train.rows],
        "validation": [_labelled(row) for row in chosen],
        "trials": [spec.to_dict() for spec in specs],
        "every": values["eval"]["every"],
        "asha": values["schedule"] if values["schedule"]["algorithm"] == "asha" else None,
    }
    (folder / "task.json").write_text(json.dumps(task))


def _labelled(row: Any) -> dict[str, list[int]]:
    tokens = row.input_ids.tolist()
    scored = row.is_answer.tolist()
    labels = [
        token if is_scored else -100 for token, is_scored in zip(tokens, scored, strict=True)
    ]
    return {"input_ids": tokens, "labels": labels}


def run_recipe(folder: Path, concurrent: int) -> Measured:
    """Train the task of `write_task` in a process of its own."""
    command = [sys.executable, __file__, "--recipe", str(folder), "--concurrent", str(concurrent)]
    cpu_s, wall_s = run_measured(command, folder)
    found = json.loads((folder / "losses.json").read_text())
    losses = {int(number): loss for number, loss in found.items()}
    return Measured(way="recipe", trials=len(losses), cpu_s=cpu_s, wall_s=wall_s, losses=losses)


def train_as_usual(config: Mapping[str, Any]) -> None:
    """The training function of a Ray Train worker, as guides write it."""
    import ray.train
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    folder = Path(config["folder"])
    task = json.loads((folder / "task.json").read_text())
    number = config["number"]
    spec = TrialSpec.from_dict(task["trials"][number])
    dtype = torch.bfloat16
    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=spec.base.quantization,
        bnb_4bit_compute_dtype=dtype,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        task["base"], quantization_config=quantized, dtype=dtype, device_map={"": "cpu"}
    )
    targets = spec.lora.targets
    named = {
        "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "mlp": ["gate_proj", "up_proj", "down_proj"],
    }
    modules = (
        "all-linear" if targets == "all-linear"
        else named[targets] if isinstance(targets, str) else list(targets)
    )  # fmt: skip
    model.enable_input_require_grads()
    model = get_peft_model(
        model, LoraConfig(r=spec.lora.rank, lora_alpha=spec.lora.alpha, target_modules=modules)
    )

    class Report(TrainerCallback):
        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: Any, **kw: Any
        ) -> None:
            kw["model"].save_pretrained(folder / "adapters" / str(number))
            ray.train.report({"step": state.global_step, "eval_loss": metrics["eval_loss"]})

    optim = spec.optim
    arguments = TrainingArguments(
        output_dir=str(folder / "out" / str(number)), max_steps=optim.steps,
        per_device_train_batch_size=optim.batch_size, per_device_eval_batch_size=32,
        learning_rate=optim.learning_rate, warmup_steps=optim.warmup_steps,
        lr_scheduler_type=optim.schedule, weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm, eval_strategy="steps", eval_steps=task["every"],
        save_strategy="no", report_to=[], use_cpu=True, seed=spec.seed, bf16=False,
        logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    Trainer(
        model=model, args=arguments, train_dataset=task["train"], eval_dataset=task["validation"],
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(task["base"])),
        callbacks=[Report()],
    ).train()  # fmt: skip


def tune_as_usual(folder: Path, concurrent: int) -> None:
    """Ray Tune over the task's configurations; writes the last loss of each."""
    import ray
    import ray.train.torch
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback
    from ray.tune.schedulers import ASHAScheduler

    task = json.loads((folder / "task.json").read_text())

    def start_trainer(config: Mapping[str, Any]) -> None:
        ray.train.torch.TorchTrainer(
            train_as_usual,
            train_loop_config=dict(config),
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(
                name=f"train-{tune.get_context().get_trial_id()}",
                storage_path=str(folder / "train"),
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    asha = task["asha"]
    scheduler = None
    if asha is not None:
        scheduler = ASHAScheduler(
            time_attr="step", max_t=TrialSpec.from_dict(task["trials"][0]).optim.steps,
            grace_period=asha["grace_steps"], reduction_factor=asha["reduction_factor"],
        )  # fmt: skip
    ray.init("local", num_cpus=concurrent, include_dashboard=False, log_to_driver=False)
    found = tune.Tuner(
        tune.with_resources(start_trainer, {"cpu": 0.01}),
        param_space={
            "number": tune.grid_search(list(range(len(task["trials"])))), "folder": str(folder),
        },
        tune_config=tune.TuneConfig(
            metric="eval_loss", mode="min", scheduler=scheduler, max_concurrent_trials=concurrent
        ),
        run_config=tune.RunConfig(name="recipe", storage_path=str(folder / "tune"), verbose=0),
    ).fit()  # fmt: skip
    if found.errors:
        raise RuntimeError(f"{len(found.errors)} trials of the recipe failed: {found.errors[0]}")
    losses = {result.config["number"]: result.metrics["eval_loss"] for result in found}
    (folder / "losses.json").write_text(json.dumps(losses))


# --------------------------------------------------------------------------------------- results


def describe(results: Sequence[Measured]) -> str:
    """A Markdown table of CPU, wall and losses, with ratios to the recipe."""
    recipe = next((one for one in results if one.way == "recipe"), None)
    lines = [
        "| way | trials | CPU-s | wall s | CPU-s per trial | CPU | wall | median loss |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in results:
        cpu = f"{recipe.cpu_s / one.cpu_s:.1f}x" if recipe else ""
        wall = f"{recipe.wall_s / one.wall_s:.1f}x" if recipe else ""
        loss = statistics.median(one.losses.values())
        lines.append(
            f"| {one.way} | {one.trials} | {one.cpu_s:.0f} | {one.wall_s:.0f} | "
            f"{one.cpu_s / one.trials:.1f} | {cpu} | {wall} | {loss:.3f} |"
        )
    if recipe is not None:
        for one in results:
            both = [number for number in one.losses if number in recipe.losses]
            gaps = [abs(one.losses[n] - recipe.losses[n]) for n in both]
            if one is not recipe and gaps:
                typical, most = statistics.median(gaps), max(gaps)
                lines.append(
                    f"\n{one.way}: losses of {len(gaps)} trials differ from the recipe's by "
                    f"{typical:.3f} (median), {most:.3f} (most)."
                )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", choices=["short", "quickstart"], default="short")
    parser.add_argument("--trials", type=int, default=32, help="trials of the short case")
    parser.add_argument("--seats", type=int, default=4)
    parser.add_argument("--concurrent", type=int, default=2, help="trials of the recipe at once")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE[,…]",
                        help="one more run here, with these settings")  # fmt: skip
    parser.add_argument("--no-recipe", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--recipe", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.recipe is not None:
        tune_as_usual(arguments.recipe, arguments.concurrent)
        return
    values = sweep_values(arguments.case, arguments.trials, arguments.seats)
    results = []
    with tempfile.TemporaryDirectory(prefix="makespan-") as work:
        for number, settings in enumerate([[], *(each.split(",") for each in arguments.set)]):
            folder = Path(work, f"here-{number}")
            folder.mkdir()
            results.append(run_here(values, settings, folder))
            print(describe(results), flush=True)
        if not arguments.no_recipe:
            folder = Path(work, "recipe")
            folder.mkdir()
            write_task(values, Path(work, "here-0"), folder)
            results.append(run_recipe(folder, arguments.concurrent))
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "transformers", "peft", "bitsandbytes", "ray")
    }
    print(describe(results))
    print(f"\nPython {platform.python_version()}, {versions}, {os.cpu_count()} cores")
    if arguments.out is not None:
        found = [asdict(one) for one in results]
        arguments.out.write_text(json.dumps({"versions": versions, "results": found}))


if __name__ == "__main__":
    main()
