"""A whole sweep with population-based training, and what its log replays to."""

import io

import pytest
from rich.console import Console

from orchestrator import run_sweep
from orchestrator.journal.history import SweepHistory
from orchestrator.outcome import Outcome
from orchestrator.search.schedule import build_scheduler, replay_history
from orchestrator.spec.sweep import parse_sweep

# A whole sweep; test_trial.py has the same below the level of sweeps.
pytestmark = [pytest.mark.ray, pytest.mark.slow]

RATES = [1e-2, 8e-3, 6e-3, 1e-5, 1e-5]
"""Those of the population, the worst last; whoever comes to a rung first is not judged there."""

TRIALS = len(RATES) + 2


@pytest.fixture(scope="module")
def swept(local_ray, tiny_base, tiny_data, tmp_path_factory):
    """Five trials of very different learning rates, and room for two copies."""
    storage = tmp_path_factory.mktemp("runs") / "population"
    spec = parse_sweep(
        {
            "name": "population",
            "base": {"model": str(tiny_base), "quantization": "none"},
            "data": {
                "train": str(tiny_data), "validation_fraction": 0.2, "test_fraction": 0.2,
                "max_tokens": 32,
            },
            "optim": {"steps": 16, "batch_size": 4},
            "eval": {"every": 2},
            "space": {
                "lora.rank": {"choice": [2, 4]},
                "optim.learning_rate": {"log_uniform": [1e-5, 2e-2]},
            },
            "search": {
                "algorithm": "random",
                "start": [{"optim.learning_rate": rate} for rate in RATES],
            },
            "schedule": {"algorithm": "pbt", "grace_steps": 2, "population": 5, "quantile": 0.5},
            "budget": {"trials": TRIALS},
            "finals": {"top": 1, "seeds": 0, "forms": []},
            "hosts": {"seats": 5},
        },
        tiny_data.parent,
    )  # fmt: skip
    report = run_sweep(spec, storage, console=Console(file=io.StringIO(), width=100))
    return spec, report, SweepHistory.read(storage / "events.jsonl")


def test_copies_of_the_best_are_trials_of_the_sweep(swept):
    _, report, history = swept
    assert report.status == "completed"
    children = [record for record in history.trials.values() if record.parent]
    assert 1 <= len(children) <= TRIALS - len(RATES)
    for child in children:
        parent = history.trials[child.parent["trial"]]
        replaced = history.trials[child.parent["replaces"]]
        assert replaced.outcome is Outcome.STOPPED
        assert replaced.reason.startswith(f"trial {parent.number} is better at step ")
        assert replaced.step == child.parent["step"]
        assert child.spec["lora"] == parent.spec["lora"]
        assert child.spec["optim"] != parent.spec["optim"]
        if child.reports:  # its parent may be through by the time it starts
            assert child.reports[0].step > child.parent["step"] or child.reports[0].step == 2


def test_the_log_replays_to_the_same_ends_and_to_no_heir_that_was_started(swept):
    spec, _, history = swept
    scheduler = build_scheduler(spec)
    assert replay_history(scheduler, history, spec.horizon) == {}
    for record in history.trials.values():
        end = scheduler.end_of(record.number)
        assert (end is not None) == (record.outcome is Outcome.STOPPED)
        assert end is None or end.reason == record.reason
    started = {record.parent["replaces"] for record in history.trials.values() if record.parent}
    while (heir := scheduler.next_heir()) is not None:
        assert heir.replaces not in started
