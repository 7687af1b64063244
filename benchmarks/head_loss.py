"""Time and peak memory of the loss behind a frozen head: whole logits against chunks.

Whole logits are those of transformers' own loss: product, float32, `cross_entropy`, backward.
Chunks are those of `trainables.packing.head`. Both give the gradient of the hidden states. Time is
the process's CPU time on a CPU, and wall clock on a GPU; memory is the peak of tensors made in a
step.

    PYTHONPATH=. python benchmarks/head_loss.py --repeats 3
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import Any

import torch
from random_base import machine, wait_for
from torch.nn import functional as F

from trainables.base.loading import default_device
from trainables.memory.loss_bytes import LOGITS_PER_CHUNK
from trainables.packing.head import PackedHead, Scored
from trainables.packing.pack import Layout
from trainables.training.memory import LiveTensors

VOCABULARIES = (49_152, 131_072)
AT_ONCE = (2**23, 2**24, 2**25, 2**26, 2**27)


def whole(head: PackedHead, states: torch.Tensor, targets: torch.Tensor) -> None:
    logits = head.logits(states)
    (F.cross_entropy(logits.float(), targets, reduction="sum") / len(targets)).backward()


def chunked(head: PackedHead, states: torch.Tensor, targets: torch.Tensor, at_once: int) -> None:
    chunk = at_once // head.vocabulary
    scored = Scored(states=states, to_logits=head.logits, chunk=chunk)
    _, scaled = scored.loss(targets, len(targets), 1.0)
    scaled.backward()


def measure(step: Callable[[], None], device: torch.device, repeats: int) -> tuple[float, float]:
    """Median seconds of a step, and the peak of its tensors in MiB."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    step()
    seconds = []
    for _ in range(repeats):
        begun = clock()
        step()
        wait_for(device)
        seconds.append(clock() - begun)
    live: Any = LiveTensors(())
    with live:
        step()
    return statistics.median(seconds), live.peak / 2**20


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=576)
    options = parser.parse_args()
    device = default_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    print(f"{date.today()}; {machine()}; {options.positions} positions, hidden {options.hidden}\n")
    print("| type | vocabulary | logits at once | seconds | peak MiB |")
    print("|---|---:|---:|---:|---:|")
    for dtype in (torch.float32, torch.bfloat16):
        for vocabulary in VOCABULARIES:
            torch.manual_seed(0)
            linear = torch.nn.Linear(options.hidden, vocabulary, bias=False)
            head = PackedHead(linear.to(device, dtype).requires_grad_(False), Layout())
            shape = (options.positions, options.hidden)
            states = torch.randn(shape, device=device, dtype=dtype).requires_grad_()
            targets = torch.randint(vocabulary, shape[:1], device=device)
            ways = {"whole": partial(whole, head, states, targets)}
            for at_once in AT_ONCE:
                default = " (default)" if at_once == LOGITS_PER_CHUNK else ""
                name = f"2^{at_once.bit_length() - 1}{default}"
                ways[name] = partial(chunked, head, states, targets, at_once)
            for name, way in ways.items():
                seconds, peak = measure(way, device, options.repeats)
                kind = str(dtype).removeprefix("torch.")
                print(
                    f"| {kind} | {vocabulary:,} | {name} | {seconds:.2f} | {peak:,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
