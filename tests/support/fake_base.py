"""A folder that stands for a base whose trials the fake engine trains."""

import json
from pathlib import Path

from orchestrator.journal.paths import bundle_folder
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec


class FakeBase:
    """A folder that stands for a base: its log, its trials' specs and what became of them."""

    def __init__(self, storage: Path, name: str = "base"):
        self.storage = storage
        self.folder = storage / name
        self.folder.mkdir()

    def build_spec(self, trial, *faults, steps=40, every=10, lr=1e-3):
        return TrialSpec(
            base=BaseSpec(model=str(self.folder)),
            lora=LoraSpec(targets=("q_proj", *faults)),
            optim=OptimSpec(steps=steps, learning_rate=lr),
            data=DataSpec(train="rows.jsonl"),
            eval=EvalSpec(every=every),
            seed=trial,
        )

    def log(self, word):
        lines = (self.folder / "log.txt").read_text().splitlines()
        return [line for line in lines if line.startswith(word)]

    def furthest_step(self, trial):
        words = " ".join(self.log("step")).split()
        return max(int(w.split("@")[1]) for w in words if w.startswith(f"t{trial:04d}."))

    def bundle(self, trial):
        return json.loads((self.storage / bundle_folder(trial) / "manifest.json").read_text())
