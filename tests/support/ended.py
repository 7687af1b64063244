"""A sweep whose trials have ended, with the folders that they leave, written without training."""

from orchestrator.journal.history import SweepHistory
from orchestrator.journal.lease import Lease
from orchestrator.journal.paths import bundle_folder
from orchestrator.journal.recording import SweepRecord
from orchestrator.journal.sweep_storage import SweepStorage, read_history
from orchestrator.pruning import plan_pruning, prune
from orchestrator.resuming import SweepProgress
from orchestrator.spec.sweep import BudgetSpec, FinalsSpec, SweepSpec
from tests.support.events import event
from trainables.hosts.progress import save_progress
from trainables.hosts.storage import file_sizes, put_folder
from trainables.spec import BaseSpec, DataSpec, EvalSpec, OptimSpec, TrialSpec

ENDED_SPEC = SweepSpec(
    name="tiny",
    base=BaseSpec(model="owner/name"),
    data=DataSpec(train="owner/rows", test_fraction=0.0),
    optim=OptimSpec(steps=20),
    eval=EvalSpec(every=10),
    budget=BudgetSpec(trials=8),
    space={"optim.learning_rate": {"log_uniform": [1e-4, 1e-2]}},
    finals=FinalsSpec(top=1, seeds=0, forms=()),
)
LOSSES = {0: 4.0, 1: 1.0, 2: 3.0, 3: 2.0}
TRIAL_SPEC = TrialSpec(
    base=ENDED_SPEC.base, optim=ENDED_SPEC.optim, data=ENDED_SPEC.data, eval=ENDED_SPEC.eval
)
STATE, BUNDLE = 5000, 100
"""Bytes of what each trial leaves."""


class EndedSweep:
    """A sweep that is over: four trials completed, one of them a finalist."""

    def __init__(self, location, spec=ENDED_SPEC):
        self.spec, self.storage = spec, SweepStorage(location)
        self.log = self.open_log()
        self.record = SweepRecord(self.log, SweepHistory(), lambda history: None)
        self.progress = SweepProgress(spec=spec, storage=self.storage, record=self.record)
        self.progress.start_or_resume()
        for number, loss in LOSSES.items():
            self.trial(number, "completed", loss)

    def open_log(self):
        return self.storage.open_log(Lease(self.storage.location, settle_s=0.0))

    def trial(self, number, outcome, loss, step=20, reason="", **more):
        self.record.add(
            event("trial_started", trial=number, knobs={}, spec=TRIAL_SPEC.to_dict(), **more)
        )
        self.record.add(event("report", trial=number, step=step, metrics={"eval_loss": loss}))
        self.leave(number, step)
        if outcome:
            end = {"outcome": outcome, "reason": reason, "step": step}
            bundle = bundle_folder(number) if outcome != "diverged" else None
            self.record.add(event("trial_ended", trial=number, bundle=bundle, **end))

    def leave(self, number, step=20, part=""):
        """Put a state and a bundle into the storage."""
        folder = self.storage.folder / f"made-{number}{part}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(b"{}".ljust(BUNDLE))
        put_folder(folder, self.storage.bundle_location(number) + part)
        location = self.storage.state_location(number)
        self.save(location, step, 1000)
        own = [size for name, size in file_sizes(location).items() if "_whole" not in name]
        self.save(location, step, 1000 + STATE - sum(own))

    def save(self, location, step, size):
        """Save a state whose weights take `size` bytes."""
        save_progress(
            location,
            step,
            [{"step": float(step)}],
            lambda into: (into / "state.json").write_bytes(b"s" * size),
            TRIAL_SPEC,
        )

    def end(self, status="completed"):
        for stage in ("search", "repeats"):
            self.progress.end(stage, "")
        self.record.add(event("sweep_ended", status=status, reason=""))
        self.log.close()
        return self

    def plan(self, keep=0, bundles=False, spec=None):
        history = read_history(self.storage.location)
        return plan_pruning(self.storage, history, spec or self.spec, keep=keep, bundles=bundles)

    def prune(self, plan):
        prune(plan, self.storage, self.spec, lease=Lease(self.storage.location, settle_s=0.0))

    def again(self, spec=None):
        """Open the sweep as a driver does that runs it again; gives its progress."""
        with self.open_log() as log:
            record = SweepRecord(log, SweepHistory.read(log.path), lambda history: None)
            progress = SweepProgress(spec=spec or self.spec, storage=self.storage, record=record)
            progress.start_or_resume()
        return progress

    def files(self):
        """`(trial, what)` of all that lies in the storage."""
        names = file_sizes(f"{self.storage.location}/trials")
        return {(int(name[1:5]), name.split("/")[1]) for name in names}
