"""Finalists with several seeds: their means, their intervals, and who is really better."""

from dataclasses import replace

import pytest
from scipy import stats

from orchestrator.finals.standings import compare_first_two, finalists, rank_finalists
from orchestrator.journal.history import SweepHistory
from orchestrator.spec.finals_sections import FinalsSpec, RegisterSpec
from orchestrator.spec.sections import ObjectiveSpec
from tests.support.events import entry
from tests.support.sweeps import build_finals_sweep as build_spec


class Finals:
    """A history that a test writes."""

    def __init__(self):
        self.history = SweepHistory()
        self.add("sweep_started", sweep_id="s", spec={}, digest="d")

    def add(self, kind, **fields):
        self.history.apply(entry(kind, 0.0, **fields))

    def run(self, number, loss, test=None, outcome="completed", repeat_of=None, seed=0):
        kin = {} if repeat_of is None else {"repeat_of": repeat_of}
        self.add("trial_started", trial=number, knobs={}, spec={"seed": seed}, **kin)
        metrics = {"eval_loss": loss, "eval_accuracy": 1 - loss}
        self.add("report", trial=number, step=20, metrics=metrics)
        end = {"outcome": outcome, "reason": "", "step": 20, "bundle": f"b{number}"}
        self.add("trial_ended", trial=number, **end)
        if test is not None:
            metrics = {"test_loss": test, "test_accuracy": 1 - test}
            self.add("final_evaluated", trial=number, metrics=metrics)
        return self


@pytest.mark.parametrize(
    ("finals", "register", "numbers"),
    [
        (FinalsSpec(top=1, seeds=0), None, [1]),
        (FinalsSpec(top=2), None, [1, 2]),
        (FinalsSpec(top=9), RegisterSpec(top=2), [1, 2, 0]),
    ],
    ids=["one", "two", "all"],
)
def test_finalists_are_the_best_on_validation_rows(finals, register, numbers):
    finals_of = Finals().run(0, 0.3).run(1, 0.1).run(2, 0.2).run(3, 0.0, outcome="diverged")
    spec = build_spec(finals=finals, register=register)
    assert [trial.number for trial in finalists(spec, finals_of.history)] == numbers


def test_the_mean_over_seeds_on_test_rows_decides():
    finals = Finals().run(0, 0.1, 0.50).run(1, 0.2, 0.30)
    finals.run(2, 0.1, 0.40, repeat_of=0).run(3, 0.1, 0.60, repeat_of=0)
    finals.run(4, 0.2, 0.35, repeat_of=1).run(5, 0.2, 0.25, repeat_of=1)
    first, second = rank_finalists(build_spec(), finals.history)
    assert (first.trial.number, second.trial.number) == (1, 0)
    assert (first.mean, second.mean) == (pytest.approx(0.3), pytest.approx(0.5))
    assert sorted(first.values) == [0.25, 0.30, 0.35]
    low, high = stats.t.interval(0.95, 2, 0.3, stats.sem([0.25, 0.30, 0.35]))
    assert (first.mean - first.half_width, first.mean + first.half_width) == (
        pytest.approx(low),
        pytest.approx(high),
    )


def test_more_is_better_for_an_accuracy():
    finals = Finals().run(0, 0.1, 0.5).run(1, 0.2, 0.3)
    finals.run(2, 0.1, 0.5, repeat_of=0).run(3, 0.2, 0.3, repeat_of=1)
    spec = build_spec(objective=ObjectiveSpec(metric="eval_accuracy"))
    first, _ = rank_finalists(spec, finals.history)
    assert (first.trial.number, first.metric, first.mean) == (1, "test_accuracy", 0.7)


def test_an_early_stopped_finalist_is_judged_by_its_repeats():
    finals = Finals().run(0, 0.1, 0.9, outcome="stopped")
    finals.run(1, 0.1, 0.40, repeat_of=0).run(2, 0.1, 0.50, repeat_of=0)
    (standing,) = rank_finalists(build_spec(), finals.history)
    assert [run.number for run in standing.runs] == [1, 2]
    assert standing.mean == pytest.approx(0.45)


def test_without_repeats_an_early_stopped_one_stands_for_itself():
    (standing,) = rank_finalists(build_spec(), Finals().run(0, 0.1, 0.9, "stopped").history)
    assert (standing.values, standing.half_width, standing.adapter.number) == ((0.9,), None, 0)


def test_a_repeat_that_failed_does_not_count():
    finals = Finals().run(0, 0.1, 0.5).run(1, 1e9, None, outcome="failed", repeat_of=0)
    (standing,) = rank_finalists(build_spec(), finals.history)
    assert standing.values == (0.5,)


def test_the_adapter_is_chosen_on_validation_rows_and_not_on_test_rows():
    finals = Finals().run(0, 0.20, 0.30)
    finals.run(1, 0.10, 0.50, repeat_of=0).run(2, 0.30, 0.10, repeat_of=0)
    (standing,) = rank_finalists(build_spec(), finals.history)
    assert standing.adapter.number == 1


def test_without_new_seeds_test_rows_choose_nobody():
    finals = Finals().run(0, 0.1, 0.5).run(1, 0.2, 0.3)
    spec = build_spec(finals=FinalsSpec(top=2, seeds=0))
    assert [one.trial.number for one in rank_finalists(spec, finals.history)] == [0, 1]


def test_without_test_rows_validation_rows_are_what_there_is():
    finals = Finals().run(0, 0.1).run(1, 0.3, repeat_of=0)
    spec = build_spec()
    spec = replace(spec, data=replace(spec.data, test_fraction=0.0))
    (standing,) = rank_finalists(spec, finals.history)
    assert (standing.metric, standing.mean) == ("eval_loss", pytest.approx(0.2))


def finals_of(first, second):
    finals = Finals().run(0, 0.1, first[0]).run(1, 0.2, second[0])
    for number, value in enumerate([*first[1:], *second[1:]]):
        finals.run(2 + number, 0.2, value, repeat_of=0 if number < len(first) - 1 else 1)
    return finals.history


def test_a_difference_within_the_noise_is_said_to_be_none():
    history = finals_of([0.30, 0.40, 0.35], [0.36, 0.34, 0.41])
    verdict = compare_first_two(rank_finalists(build_spec(), history), 0.95)
    assert not verdict.is_clear
    assert "trial 0 and trial 1 cannot be told apart" in verdict.text
    interval = stats.ttest_ind([0.30, 0.40, 0.35], [0.36, 0.34, 0.41], equal_var=False)
    margin = interval.confidence_interval(0.95).high - (0.35 - 0.37)
    assert f"± {margin:.2g} in test_loss at 95%" in verdict.text


def test_a_difference_beyond_the_noise_is_said_to_be_one():
    history = finals_of([0.300, 0.301, 0.302], [0.401, 0.400, 0.402])
    verdict = compare_first_two(rank_finalists(build_spec(), history), 0.95)
    assert verdict.is_clear
    assert "trial 0 and trial 1 differ by -0.1" in verdict.text


def test_single_runs_prove_nothing():
    history = finals_of([0.1], [0.9])
    verdict = compare_first_two(rank_finalists(build_spec(), history), 0.95)
    assert not verdict.is_clear
    assert "single run" in verdict.text


def test_one_finalist_is_compared_with_nobody():
    assert (
        compare_first_two(rank_finalists(build_spec(), Finals().run(0, 0.1, 0.2).history), 0.95)
        is None
    )


def test_single_runs_are_not_chosen_among_by_test_rows_though_repeats_were_wanted():
    finals = Finals().run(0, 0.1, 0.5).run(1, 0.2, 0.3)
    assert [one.trial.number for one in rank_finalists(build_spec(), finals.history)] == [
        0,
        1,
    ]


def test_one_that_was_not_repeated_stands_behind_those_that_were():
    finals = Finals().run(0, 0.1, 0.1).run(1, 0.2, 0.6).run(2, 0.2, 0.7, repeat_of=1)
    assert [one.trial.number for one in rank_finalists(build_spec(), finals.history)] == [
        1,
        0,
    ]


def test_a_repeat_beyond_a_constraint_stands_for_nobody():
    spec = build_spec(objective=ObjectiveSpec(constraints=("eval_accuracy >= 0.5",)))
    finals = Finals().run(0, 0.3, 0.4).run(1, 0.2, 0.1, repeat_of=0).run(2, 0.9, 0.1, repeat_of=0)
    (standing,) = rank_finalists(spec, finals.history)
    assert [run.number for run in standing.runs] == [1, 0]


def test_a_copy_of_another_trial_is_judged_by_its_repeats_from_the_start():
    finals = Finals().run(0, 0.1, 0.9).run(1, 0.2, 0.4, repeat_of=0).run(2, 0.2, 0.5, repeat_of=0)
    finals.history.trials[0].parent = {"trial": 9, "step": 10, "replaces": 8}
    (standing,) = rank_finalists(build_spec(), finals.history)
    assert sorted(standing.values) == [0.4, 0.5]
