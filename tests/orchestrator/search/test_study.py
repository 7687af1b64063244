"""The Optuna study that a sampler gets for observed trials."""

from typing import Any

import pytest
from optuna.trial import TrialState

from orchestrator.errors import SweepStorageError
from orchestrator.outcome import Outcome
from orchestrator.search.study import Observation, build_study, most_telling
from orchestrator.spec.sections import ObjectiveSpec, SearchSpec
from orchestrator.spec.sweep import BudgetSpec, SweepSpec
from trainables.hosts.orders import fault_metrics
from trainables.spec import BaseSpec, DataSpec, EvalSpec, OptimSpec


def build_sweep(**sections: Any) -> SweepSpec:
    settings: dict[str, Any] = {
        "name": "tiny",
        "base": BaseSpec(model="owner/name"),
        "data": DataSpec(train="owner/rows"),
        "optim": OptimSpec(steps=40),
        "eval": EvalSpec(every=10),
        "budget": BudgetSpec(trials=9),
        "search": SearchSpec(startup_trials=3),
        "space": {"lora.rank": {"int": [1, 64]}},
        **sections,
    }
    return SweepSpec(**settings)


SPEC = build_sweep()
OUTCOMES = (*Outcome, None)


def seen_as(outcome: Outcome | None, **more: Any) -> Observation:
    return Observation(knobs={"lora.rank": 4}, outcome=outcome, **more)


def states(with_values: bool, **options: Any) -> dict[Outcome | None, TrialState]:
    values = {10: 2.0} if with_values else {}
    seen = {i: seen_as(one, values=dict(values)) for i, one in enumerate(OUTCOMES)}
    study = build_study(SPEC.search_space, SPEC.objective, seen, **options)
    told = study.get_trials(deepcopy=False)
    return dict(zip(OUTCOMES, (trial.state for trial in told), strict=True))


def test_running_trials_with_values_teach_tpe_and_those_without_keep_it_away() -> None:
    assert states(with_values=True) == {
        Outcome.COMPLETED: TrialState.COMPLETE,
        Outcome.STOPPED: TrialState.PRUNED,
        Outcome.INFEASIBLE: TrialState.COMPLETE,
        Outcome.DIVERGED: TrialState.COMPLETE,
        Outcome.FAILED: TrialState.FAIL,
        Outcome.CANCELLED: TrialState.FAIL,
        None: TrialState.PRUNED,
    }
    silent = states(with_values=False)
    assert silent[None] is TrialState.RUNNING
    assert silent[Outcome.COMPLETED] is silent[Outcome.STOPPED] is TrialState.FAIL
    assert silent[Outcome.DIVERGED] is TrialState.COMPLETE


def test_samplers_of_complete_trials_are_shown_last_values() -> None:
    told = states(with_values=True, ranks_pruned=False)
    assert told[None] is told[Outcome.STOPPED] is TrialState.COMPLETE
    seen = {0: seen_as(None, values={10: 3.0, 20: 2.5})}
    study = build_study(SPEC.search_space, SPEC.objective, seen, ranks_pruned=False)
    assert study.trials[0].value == 2.5


@pytest.mark.parametrize(("metric", "sign"), [("eval_loss", 1), ("eval_accuracy", -1)])
@pytest.mark.parametrize("outcome", [Outcome.DIVERGED, Outcome.INFEASIBLE])
def test_configuration_that_cannot_work_is_worse_than_every_value(
    metric: Any, sign: int, outcome: Outcome
) -> None:
    seen = {
        0: seen_as(None, values={10: 90.0, 40: 2.0}),
        1: seen_as(Outcome.STOPPED, values={10: -90.0}),
        2: seen_as(outcome, values={20: sign * 1e9}),
    }
    study = build_study(SPEC.search_space, ObjectiveSpec(metric=metric), seen)
    value = study.trials[2].value
    assert value is not None
    assert 90.0 < sign * value < 1e3


def report(value: float, memory: float | None = None) -> dict[str, float]:
    return {"eval_loss": value} | ({} if memory is None else {"peak_memory_gib": memory})


OBJECTIVE = ObjectiveSpec(also={"peak_memory_gib": "min"}, constraints=("peak_memory_gib <= 20",))


def observe_four() -> dict[int, Observation]:
    """Four trials: good, too large, of unknown size, and out of memory."""
    seen = {i: seen_as(None) for i in range(4)}
    seen[0].report(10, report(1.0, 10.0), OBJECTIVE)
    seen[1].report(10, report(2.0, 25.0), OBJECTIVE)
    seen[2].report(10, report(3.0), OBJECTIVE)
    seen[3].report(10, report(0.5, 1.0), OBJECTIVE)
    seen[3].outcome = Outcome.INFEASIBLE
    return seen


def test_every_goal_is_an_objective_and_every_bound_a_constraint() -> None:
    trials = build_study(SPEC.search_space, OBJECTIVE, observe_four()).trials
    assert [trial.values for trial in trials[:2]] == [[1.0, 10.0], [2.0, 25.0]]
    excesses = [next(iter(trial.constraints.values())) for trial in trials]
    assert excesses[:3] == [-10.0, 5.0, 0.0]


def test_running_out_of_memory_is_no_low_peak_of_memory() -> None:
    trial = build_study(SPEC.search_space, OBJECTIVE, observe_four()).trials[3]
    loss, memory = trial.values
    assert loss > 3.0
    assert memory > 25.0
    assert next(iter(trial.constraints.values())) > 5.0


def test_diverged_trial_is_bad_in_the_first_objective_only() -> None:
    seen = observe_four()
    seen[3].outcome = Outcome.DIVERGED
    loss, memory = build_study(SPEC.search_space, OBJECTIVE, seen).trials[3].values
    assert loss > 3.0
    assert memory == 1.0


def test_what_a_trial_with_a_fault_reports_is_no_measurement() -> None:
    seen = seen_as(None)
    seen.report(10, report(2.0, 5.0), OBJECTIVE)
    seen.report(20, fault_metrics({"step": 20}), OBJECTIVE)
    seen.report(30, report(float("nan")), OBJECTIVE)
    assert seen.values == {10: 2.0}
    assert seen.metrics == {"eval_loss": 2.0, "peak_memory_gib": 5.0}
    assert seen.last == 2.0


def test_steps_done_again_replace_those_that_were_lost() -> None:
    seen = seen_as(None)
    for step, value in ((10, 3.0), (20, 2.0), (10, 2.9)):
        seen.report(step, report(value), OBJECTIVE)
    assert seen.values == {10: 2.9}


def test_generations_are_numbered_among_complete_trials() -> None:
    seen = {i: seen_as(Outcome.COMPLETED, values={40: 1.0 + i}) for i in range(7)}
    seen[1].outcome = Outcome.FAILED
    study = build_study(SPEC.search_space, SPEC.objective, seen, generations=("gen", 2))
    found = [trial.system_attrs.get("gen") for trial in study.trials]
    assert found == [0, None, 0, 1, 1, 2, 2]


def test_newest_and_best_trials_tell_most() -> None:
    seen = {i: seen_as(Outcome.COMPLETED, values={40: abs(i - 3.0)}) for i in range(20)}
    assert sorted(most_telling(seen, "min", 6)) == [2, 3, 4, 17, 18, 19]
    assert most_telling(seen, "min", 20) is seen
    assert sorted(most_telling(seen, "max", 4)) == [16, 17, 18, 19]
    assert not most_telling(seen, "min", 0)


@pytest.mark.parametrize("knobs", [{"lora.rank": 100}, {"lora.rnk": 4}], ids=["value", "name"])
def test_history_of_another_space_is_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(SweepStorageError, match=r"trial 0: its knobs .* another storage folder"):
        build_study(SPEC.search_space, SPEC.objective, {0: Observation(knobs=knobs)})
