"""A small engine that trains nothing: deterministic losses, states as JSON, faults on demand.

`base.model` is the folder it logs its calls to. `lora.targets` orders faults by name and step:
`nan:15`, `raise:15`, `oom:15`, `inf-eval:20`, `no-join:0`, `exit:15` (the process dies each time),
`exit-once:15`, `oom-whole:15` (not in two passes); `crowd:1` runs out of memory when stepped with
more than one seat.
"""

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

from trainables.errors import BaseModelError, BundleError, DataError
from trainables.hosts.bench import Bench


@dataclass(frozen=True)
class FakeState:
    step: int = 0
    weight: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class FakeStep:
    step: int
    loss: float
    tokens: int
    is_finite: bool


class UnknownMemory:
    """Stands for the forecasts of an engine whose memory is not known."""

    def room(self):
        return None

    def take_reading(self):
        return None

    def trial_bytes(self, name):
        return None


class FakeEngine:
    foresight = UnknownMemory()

    def __init__(self, log: Path):
        self.log_file = log / "log.txt"
        self.seats = {}
        self.passes = {}
        self.widest_pass = 0
        self.log("build", os.getpid())

    def log(self, *words):
        with self.log_file.open("a") as file:
            file.write(" ".join(map(str, words)) + "\n")

    def faults(self, seat):
        spec, _ = self.seats[seat]
        targets = () if isinstance(spec.lora.targets, str) else spec.lora.targets
        return {name.split(":")[0]: int(name.split(":")[1]) for name in targets if ":" in name}

    def join(self, seat, spec, state=None, passes=1):
        assert seat not in self.seats
        self.passes[seat] = passes
        self.seats[seat] = (spec, state or FakeState())
        self.log("join", seat, self.seats[seat][1].step)
        if "no-join" in self.faults(seat):
            del self.seats[seat]
            raise DataError("data.train: no such file. Name the data.")

    def save_memory(self):
        return False

    def rehearse(self, seats):
        return False

    def leave(self, seat):
        del self.seats[seat]
        self.log("leave", seat)

    def step(self, seats):
        self.log("step", *(f"{seat}@{self.seats[seat][1].step + 1}" for seat in seats))
        for seat in seats:
            self.meet_faults(seat, len(seats))
        return {seat: self.step_one(seat) for seat in seats}

    def meet_faults(self, seat, crowd):
        faults, (spec, state) = self.faults(seat), self.seats[seat]
        step = state.step + 1
        if faults.get("crowd", 99) < crowd:
            raise MemoryError("the pack is too large")
        if faults.get("raise") == step:
            raise RuntimeError("a broken kernel")
        if faults.get("oom") == step:
            raise MemoryError("no room for activations")
        if faults.get("oom-whole") == step and self.passes[seat] == 1:
            raise MemoryError("no room for a whole batch")
        once = self.log_file.with_name(f"exited-{spec.seed}")
        if faults.get("exit") == step or (faults.get("exit-once") == step and not once.exists()):
            once.touch()
            os._exit(1)

    def step_one(self, seat):
        spec, state = self.seats[seat]
        step = state.step + 1
        if self.faults(seat).get("nan") == step:
            return FakeStep(state.step, math.nan, state.tokens, False)
        loss = 1000 * spec.optim.learning_rate + 1 / step
        weight = 0.7 * state.weight + loss * math.sin(spec.seed + step)
        self.seats[seat] = (spec, FakeState(step, weight, state.tokens + 10))
        return FakeStep(step, loss, state.tokens + 10, True)

    def evaluate(self, seat, split="validation"):
        spec, state = self.seats[seat]
        loss = 1000 * spec.optim.learning_rate + 1 / max(1, state.step)
        if self.faults(seat).get("inf-eval") == state.step:
            loss = math.inf
        return {"eval_loss": loss, "eval_accuracy": state.weight, "eval_token_accuracy": 0.5}

    def evaluate_base(self, spec, split="validation"):
        return {"eval_loss": 9.0, "eval_accuracy": 0.0, "eval_token_accuracy": 0.0}

    def snapshot(self, seat):
        return self.seats[seat][1]

    def export(self, seat, folder, metrics):
        self.log("export", seat, metrics["step"])
        folder.mkdir(parents=True, exist_ok=True)
        state = self.seats[seat][1]
        assert state.step == metrics["step"]
        (folder / "manifest.json").write_text(json.dumps({**metrics, "weight": state.weight}))

    def trainable_params(self, seat):
        return 7


def save_state(state, folder):
    (folder / "state.json").write_text(json.dumps(state.__dict__))


def load_state(folder):
    return replace(FakeState(), **json.loads((folder / "state.json").read_text()))


def load_bundle(folder, spec):
    try:
        metrics = json.loads((folder / "manifest.json").read_text())
    except ValueError as error:
        raise BundleError(f"{folder}: no readable manifest.json; export it again") from error
    weight = metrics.pop("weight")
    return FakeState(metrics["step"], weight, metrics["tokens"]), metrics


def build_bench(base):
    if (Path(base.model) / "no-base").exists():
        raise BaseModelError("base.model: got nothing; allowed: a model. Name one.")
    return Bench(
        engine=FakeEngine(Path(base.model)),
        save_state=save_state,
        load_state=load_state,
        load_bundle=load_bundle,
        peak_memory_gib=lambda: 0.25,
    )
