"""Tokens per second and memory of packs, beside plain PEFT and beside separate processes.

Each cell trains `seats` adapters (rank 16 on all linear layers) on one base of a real shape with
random weights; a step of every trial has the given tokens, in rows of at most `--row` tokens. The
figures are medians over steps after a warm-up. `alone` is a pack of one with the same engine, and
`exact` the same pack with the exact engine; the engines take their steps in turn. `PEFT` is the
usual way: `get_peft_model` on the same layers and torch's AdamW, one trial; `processes` are as
many processes with one such trial each, at the same time. On a CPU, tokens per second are per
CPU-second, so that other work on the machine counts little.

`products` is the part of a step that its matrix products would take at the speed which this device
reaches for one large product; `dequantizing` is the measured time for making all 4-bit weights
dense, as often as a step does; the rest is everything else: small operations, their launches,
attention, the optimizer.

    python benchmarks/packing.py --shape tiny --tokens 64 256 --engine exact batched
    python benchmarks/packing.py --shape 8b --forms nf4 none --tokens 256 512 1024 4096 8192
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import Any

import peft
import torch
from random_base import base_spec, build_base, machine, rows_of, wait_for
from torch.nn import functional as F

from trainables.base.layers import linear_layers
from trainables.base.loading import LoadedBase
from trainables.engine import Engine
from trainables.packing.kernels import dense_weight, layer_shape
from trainables.spec import LoraSpec, OptimSpec, TrialSpec

RANK = 16


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement.

    Attributes:
        seats: Trials at a time.
        tokens: Tokens of each trial's step.
        step_s: Seconds of a step of all of them; CPU-seconds on a CPU.
        memory_gib: Peak memory of the GPU; NaN on a CPU.
    """

    seats: int
    tokens: int
    step_s: float
    memory_gib: float

    @property
    def speed(self) -> float:
        """Tokens per second of all trials."""
        return self.seats * self.tokens / self.step_s


def build_trial(base: LoadedBase, tokens: int, row: int, seed: int) -> TrialSpec:
    """A trial whose steps have so many tokens."""
    length = min(row, tokens)
    return TrialSpec(
        base=base_spec(base),
        lora=LoraSpec(rank=RANK, targets="all-linear"),
        optim=OptimSpec(steps=1000, batch_size=max(1, tokens // length)),
        data=rows_of(length, 4 * max(1, tokens // length)),
        seed=seed,
    )


def measure(step: Callable[[], Any], base: LoadedBase, repeats: int) -> tuple[float, float]:
    """Median seconds of a step, and the peak memory in GiB."""
    return measure_in_turn([step], base, repeats)[0]


def measure_in_turn(
    steps: Sequence[Callable[[], Any]], base: LoadedBase, repeats: int
) -> list[tuple[float, float]]:
    """The same for several steps, one after the other in each repeat."""
    is_gpu = base.device.type == "cuda"
    clock = time.perf_counter if is_gpu else time.process_time
    for step in steps:
        step()
    seconds: list[list[float]] = [[] for _ in steps]
    peaks = [0.0 if is_gpu else float("nan") for _ in steps]
    for _ in range(repeats):
        for number, step in enumerate(steps):
            wait_for(base.device)
            if is_gpu:
                torch.cuda.reset_peak_memory_stats(base.device)
            begun = clock()
            step()
            wait_for(base.device)
            seconds[number].append(clock() - begun)
            if is_gpu:
                peak = torch.cuda.max_memory_allocated(base.device) / 2**30
                peaks[number] = max(peaks[number], peak)
    return list(zip(map(statistics.median, seconds), peaks, strict=True))


def measure_packs(
    engines: Mapping[str, Engine], trial: TrialSpec, seats: int, repeats: int
) -> dict[str, Cell]:
    """A pack of equal trials with different seeds, with each engine."""
    names = [f"seat {number}" for number in range(seats)]
    for engine in engines.values():
        for number, name in enumerate(names):
            engine.join(name, replace(trial, seed=number))
    steps = [partial(engine.step, names) for engine in engines.values()]
    base = next(iter(engines.values())).base
    found = measure_in_turn(steps, base, repeats)
    for engine in engines.values():
        for name in names:
            engine.leave(name)
    return {
        kind: Cell(seats=seats, tokens=_tokens(trial), step_s=step_s, memory_gib=memory)
        for kind, (step_s, memory) in zip(engines, found, strict=True)
    }


def measure_plain(base: LoadedBase, trial: TrialSpec, repeats: int) -> Cell:
    """One trial as plain PEFT trains it; the base is changed by it."""
    linears = linear_layers(base.model)
    model = peft.get_peft_model(
        base.model,
        peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=list(linears)),
    )
    model.train()
    weights = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4)
    rows, length = trial.optim.batch_size, _row(trial)
    ids = torch.randint(2, 258, (rows, length), device=base.device)
    labels = ids[:, 1:].clone()
    labels[:, : length // 2] = -100

    def step() -> None:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step_s, memory = measure(step, base, repeats)
    return Cell(seats=1, tokens=_tokens(trial), step_s=step_s, memory_gib=memory)


def measure_processes(options: argparse.Namespace, form: str, tokens: int, count: int) -> Cell:
    """As many processes with one plain trial each, at the same time; the slowest counts."""
    command = [
        sys.executable, __file__, "--shape", options.shape, "--forms", form,
        "--tokens", str(tokens), "--row", str(options.row), "--repeats", str(options.repeats),
        "--worker",
    ]  # fmt: skip
    workers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(count)
    ]
    answers = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        return Cell(seats=count, tokens=tokens, step_s=float("nan"), memory_gib=float("nan"))
    cells = [json.loads(answer.splitlines()[-1]) for answer in answers]
    is_gpu = torch.cuda.is_available()
    # On a CPU, seconds are CPU-seconds: those of all processes count.
    step_s = (max if is_gpu else sum)(cell["step_s"] for cell in cells)
    memory = sum(cell["memory_gib"] for cell in cells)
    return Cell(seats=count, tokens=tokens, step_s=step_s, memory_gib=memory)


def products_s(base: LoadedBase, tokens: int, learned: int) -> float:
    """Seconds for the matrix products of a step with a frozen base, at this device's best speed.

    Every linear layer has one product forward and one backward, for the gradient of its input; the
    head has both for the positions that are learned.
    """
    size = 4096 if base.device.type == "cuda" else 768
    a, b = (torch.randn(size, size, device=base.device, dtype=base.compute_dtype) for _ in "ab")
    best, _ = measure(lambda: a @ b, base, 20)
    per_flop = best / (2 * size**3)
    layers = sum(
        wide * high for wide, high in map(layer_shape, linear_layers(base.model).values())
    )
    head = base.model.get_input_embeddings().weight.numel()
    return per_flop * 4 * (tokens * layers + learned * head)


def dequantizing_s(base: LoadedBase) -> float:
    """Seconds for making all 4-bit weights dense, forward and backward."""
    layers = [
        layer
        for layer in linear_layers(base.model).values()
        if getattr(layer.weight, "quant_state", None) is not None
    ]

    def once() -> None:
        for layer in layers:
            dense_weight(layer, base.compute_dtype)

    return 2 * measure(once, base, 5)[0] if layers else 0.0


def print_table(options: argparse.Namespace, form: str) -> None:
    """Measure and print all cells of one form."""
    unit = "tok/s" if torch.cuda.is_available() else "tok/CPU-s"
    print(f"\n### {options.shape}, {form}, rows of {options.row}\n")
    print(
        f"| tokens of a trial's step | seats | engine | {unit} | x alone | x exact | x PEFT |"
        " x processes | GiB | products | dequantizing | rest |"
    )
    print("|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    plain = {}
    for tokens in options.tokens:
        base = build_base(options.shape, form, options.compute_dtype)
        plain[tokens] = measure_plain(
            base, build_trial(base, tokens, options.row, 0), options.repeats
        )
        del base
    base = build_base(options.shape, form, options.compute_dtype)
    dequantizing = dequantizing_s(base)
    products = {tokens: products_s(base, tokens, tokens // 2) for tokens in options.tokens}
    engines = {}
    for kind in options.engine:
        base = base if not engines else build_base(options.shape, form, options.compute_dtype)
        engines[kind] = Engine(base, kind=kind)
    for tokens in options.tokens:
        trial = build_trial(base, tokens, options.row, 0)
        alone: dict[str, Cell] = {}
        for seats in options.seats:
            cells = measure_packs(engines, trial, seats, options.repeats)
            alone = alone or cells
            others = None
            if seats in options.processes:
                others = measure_processes(options, form, tokens, seats)
            for kind, cell in cells.items():
                exact = _ratio(cell, cells.get("exact")) if kind != "exact" else ""
                shares = (seats * products[tokens] / cell.step_s, dequantizing / cell.step_s)
                rest = max(0.0, 1 - sum(shares))
                memory = "" if cell.memory_gib != cell.memory_gib else f"{cell.memory_gib:.2f}"
                print(
                    f"| {tokens} | {seats} | {kind} | {cell.speed:,.0f} "
                    f"| {_ratio(cell, alone[kind])} | {exact} | {_ratio(cell, plain[tokens])} "
                    f"| {_ratio(cell, others)} | {memory} "
                    f"| {shares[0]:.0%} | {shares[1]:.0%} | {rest:.0%} |",
                    flush=True,
                )


def _ratio(cell: Cell, other: Cell | None) -> str:
    return "" if other is None else f"{cell.speed / other.speed:.2f}"


def _row(trial: TrialSpec) -> int:
    return trial.data.max_tokens or 0


def _tokens(trial: TrialSpec) -> int:
    return _row(trial) * trial.optim.batch_size


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--shape", default="tiny", choices=["tiny", "135m", "1b", "8b"])
    parser.add_argument("--forms", nargs="+", default=["nf4", "none"])
    parser.add_argument("--engine", nargs="+", default=["exact"], choices=["exact", "batched"])
    parser.add_argument("--seats", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--row", type=int, default=512, help="most tokens of a row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", nargs="*", type=int, default=[], metavar="SEATS")
    parser.add_argument("--compute-dtype", default="auto")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    if options.worker:
        base = build_base(options.shape, options.forms[0], options.compute_dtype)
        trial = build_trial(base, options.tokens[0], options.row, 0)
        cell = measure_plain(base, trial, options.repeats)
        print(json.dumps({"step_s": cell.step_s, "memory_gib": cell.memory_gib}))
        return
    print(f"{date.today()}; {machine()}")
    for form in options.forms:
        print_table(options, form)


if __name__ == "__main__":
    main()
