"""The leading trial, by the rule that decides at each point of a sweep."""

from orchestrator.journal.history import SweepHistory
from orchestrator.live.leader import find_leader
from orchestrator.spec.sweep import BudgetSpec, SweepSpec
from tests.support.events import ANY_TRIAL, entry
from trainables.spec import BaseSpec, DataSpec, OptimSpec

SPEC = SweepSpec(
    name="tiny",
    base=BaseSpec(model="owner/name"),
    data=DataSpec(train="owner/rows", test_fraction=0.2),
    optim=OptimSpec(steps=40),
    space={"lora.rank": {"choice": [4, 8, 16]}},
    budget=BudgetSpec(trials=4),
)


def train(history, trial, loss, outcome="completed", **more):
    history.apply(entry("trial_started", trial=trial, knobs={}, spec=ANY_TRIAL, **more))
    history.apply(entry("report", trial=trial, step=40, metrics={"eval_loss": loss}))
    if outcome:
        ended = {"reason": "", "step": 40, "bundle": f"t{trial}"}
        history.apply(entry("trial_ended", trial=trial, outcome=outcome, **ended))


def test_the_last_value_of_the_objective_leads_the_search():
    history = SweepHistory()
    assert find_leader(SPEC, history) is None
    train(history, 0, 0.5)
    train(history, 1, 0.3, outcome=None)
    train(history, 2, 0.1, outcome="failed")
    assert find_leader(SPEC, history) == (
        1, "trial 1 leads by the lowest eval_loss: 0.3000 at step 40/40"
    )  # fmt: skip


def test_the_mean_over_seeds_leads_the_finals():
    history = SweepHistory()
    train(history, 0, 0.5)
    train(history, 1, 0.3)
    history.apply(entry("stage_ended", stage="search", reason="", under={}))
    train(history, 2, 0.5, repeat_of=0)
    train(history, 3, 0.3, repeat_of=1)
    assert find_leader(SPEC, history).number == 1  # not measured on test rows so far
    for trial, loss in enumerate([0.4, 0.9, 0.5, 0.7]):
        history.apply(entry("final_evaluated", trial=trial, metrics={"test_loss": loss}))
    number, text = find_leader(SPEC, history)
    assert number == 0
    assert text.startswith("trial 0 leads by the mean test_loss of its 2 runs: 0.4500 ± ")
