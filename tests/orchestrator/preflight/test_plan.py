"""The plan of a sweep agrees with what the search and the finals would do."""

from orchestrator.preflight.plan import plan_sweep
from orchestrator.spec.finals_sections import FinalsSpec
from orchestrator.spec.sections import BudgetSpec, ScheduleSpec
from tests.support.sweeps import build_finals_sweep


def test_a_space_with_fewer_configurations_than_trials_ends_the_search():
    plan = plan_sweep(build_finals_sweep())
    assert (plan.trials, plan.finalists, plan.repeats) == (4, 2, 4)
    assert plan.lines[0].startswith("Search: 4 trials of up to 20 steps of 8 rows; tpe chooses ")


def test_serving_forms_are_said_for_each_stored_form():
    forms = {"base.quantization": {"choice": ["nf4", "none"]}}
    plan = plan_sweep(build_finals_sweep(space=forms))
    assert plan.forms["none"] == ("trained", "merged")
    assert any("trained, merged of none" in line for line in plan.lines)


def test_finals_without_seeds_train_nothing_and_limits_are_in_their_units():
    spec = build_finals_sweep(
        finals=FinalsSpec(top=1, seeds=0),
        schedule=ScheduleSpec(algorithm="none"),
        budget=BudgetSpec(trials=3, cpu_seconds=7200, money=3.5, price_per_gpu_hour=2.5),
    )
    plan = plan_sweep(spec)
    assert plan.repeats == 0
    assert plan.limits == ("2:00:00 of CPU time", "3.5 at 2.5 for a GPU hour")
    assert any("as the search trained them" in line for line in plan.lines)
    assert "no trial is stopped early" in plan.lines[0]
