"""A sweep whose search is over, written into its log without training."""

import uuid
from dataclasses import replace

from orchestrator.journal.history import SweepHistory
from orchestrator.journal.log import EventLog
from orchestrator.journal.paths import bundle_folder
from orchestrator.journal.recording import SweepRecord
from orchestrator.spec.finals_sections import FinalsSpec, RegisterSpec
from orchestrator.spec.sweep import BudgetSpec, SweepSpec
from tests.support.events import event
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec

LOSSES = {0: 3.0, 1: 1.0, 2: 2.0}
FORMS = {0: "nf4", 1: "fp4", 2: "nf4"}


def build_searched_spec(test_fraction=0.1, **changes):
    values = {
        "name": "tiny",
        "base": BaseSpec(model="owner/name"),
        "data": DataSpec(train="owner/rows", test_fraction=test_fraction),
        "optim": OptimSpec(steps=20),
        "eval": EvalSpec(every=10),
        "budget": BudgetSpec(trials=4),
        "space": {"lora.rank": {"choice": [2, 4, 8, 16]}},
        "finals": FinalsSpec(top=2, seeds=0),
        "register": RegisterSpec(top=2),
    }
    return SweepSpec(**(values | changes))


def _trial_spec(spec, form):
    base = replace(spec.base, quantization=form)
    return TrialSpec(
        base=base, lora=LoraSpec(), optim=spec.optim, data=spec.data, eval=spec.eval
    ).to_dict()


class SearchedSweep:
    """A sweep whose search is over: three trials ended, one diverged."""

    losses = LOSSES

    def __init__(self, storage, spec):
        self.storage, self.spec = storage, spec
        self.log = EventLog(storage / "events.jsonl")
        self.record = SweepRecord(self.log, SweepHistory(), lambda history: None)
        add = self.record.add
        add(
            event(
                "sweep_started", sweep_id=uuid.uuid4().hex, spec=spec.to_dict(), digest=spec.digest
            )
        )
        for trial, loss in LOSSES.items():
            add(
                event("trial_started", trial=trial, knobs={}, spec=_trial_spec(spec, FORMS[trial]))
            )
            add(event("report", trial=trial, step=20, metrics={"eval_loss": loss}))
            folder = storage / bundle_folder(trial)
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text("{}")
            self.end(trial, "completed", str(folder.relative_to(storage)))
        add(event("trial_started", trial=3, knobs={}, spec=_trial_spec(spec, "nf4")))
        add(event("report", trial=3, step=10, metrics={"eval_loss": 0.1}))
        self.end(3, "diverged", None)

    def repeat(self, trial, of, outcome):
        spec = self.record.history.trials[of].spec
        self.record.add(event("trial_started", trial=trial, knobs={}, spec=spec, repeat_of=of))
        self.record.add(event("report", trial=trial, step=20, metrics={"eval_loss": 1.5}))
        folder = self.storage / bundle_folder(trial)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        self.end(trial, outcome, str(folder.relative_to(self.storage)))

    def end(self, trial, outcome, bundle):
        self.record.add(
            event("trial_ended", trial=trial, outcome=outcome, reason="", step=20, bundle=bundle)
        )
