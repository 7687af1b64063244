"""Which runs the finals want, in which order, and what a resume still owes."""

from functools import partial

import pytest
from ray.tune.search import Searcher

from orchestrator.finals.repeats import (
    RepeatSearcher,
    are_repeated,
    plan_repeats,
    unwanted_repeats,
)
from orchestrator.journal.history import SweepHistory
from orchestrator.spec.finals_sections import FinalsSpec
from tests.support.events import entry
from tests.support.sweeps import build_finals_sweep
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec

build_spec = partial(build_finals_sweep, seed=7)


def trial_spec(rank, seed=7):
    return TrialSpec(
        base=BaseSpec(model="owner/name"),
        lora=LoraSpec(rank=rank),
        optim=OptimSpec(steps=20),
        data=DataSpec(train="owner/rows"),
        eval=EvalSpec(every=10),
        seed=seed,
    ).to_dict()


class Search:
    """A search that is over: three trials, of which number 1 is best and 2 second."""

    def __init__(self):
        self.history = SweepHistory()
        self.add("sweep_started", sweep_id="s", spec={}, digest="d")
        for number, loss in enumerate((0.3, 0.1, 0.2)):
            self.begin(number, trial_spec(rank=2 ** (number + 1)))
            self.end(number, loss)

    def add(self, kind, **fields):
        self.history.apply(entry(kind, 0.0, **fields))

    def begin(self, number, spec, **kin):
        knobs = {"lora.rank": spec["lora"]["rank"]}
        self.add("trial_started", trial=number, knobs=knobs, spec=spec, **kin)

    def end(self, number, loss):
        self.add("report", trial=number, step=20, metrics={"eval_loss": loss})
        end = {"outcome": "completed", "reason": "", "step": 20, "bundle": "b"}
        self.add("trial_ended", trial=number, **end)

    def searcher(self, spec, may_start=str):
        return RepeatSearcher(spec, self.history, {"storage": "/s"}, may_start)


@pytest.fixture
def search():
    return Search()


def planned(spec, history):
    return [(one.trial.number, one.seed) for one in plan_repeats(spec, history)]


def test_every_finalist_is_looked_at_before_one_is_looked_at_twice(search):
    assert planned(build_spec(), search.history) == [(1, 8), (2, 8), (1, 9), (2, 9)]


def test_a_repeat_differs_by_its_seed_alone(search):
    repeat = plan_repeats(build_spec(), search.history)[0]
    assert repeat.spec().to_dict() == {**search.history.trials[1].spec, "seed": 8}


def test_without_seeds_nothing_is_repeated(search):
    spec = build_spec(finals=FinalsSpec(seeds=0))
    assert planned(spec, search.history) == []
    assert are_repeated(spec, search.history)


def test_what_was_started_is_not_planned_again(search):
    search.begin(3, trial_spec(rank=4, seed=8), repeat_of=1)
    assert planned(build_spec(), search.history) == [(2, 8), (1, 9), (2, 9)]
    assert not are_repeated(build_spec(), search.history)


def test_the_finals_are_over_when_every_repeat_has_ended(search):
    spec = build_spec(finals=FinalsSpec(top=1, seeds=1))
    search.begin(3, trial_spec(rank=4, seed=8), repeat_of=1)
    assert not are_repeated(spec, search.history)
    search.end(3, 0.1)
    assert are_repeated(spec, search.history)


def test_ray_tune_is_given_repeats_under_new_numbers(search):
    searcher = search.searcher(build_spec())
    configs = [searcher.suggest(f"id-{n}") for n in range(4)]
    assert [(c["trial"], c["repeat_of"], c["spec"]["seed"]) for c in configs] == [
        (3, 1, 8), (4, 2, 8), (5, 1, 9), (6, 2, 9),
    ]  # fmt: skip
    assert {c["storage"] for c in configs} == {"/s"}
    assert configs[0]["knobs"] == {"lora.rank": 4}
    assert searcher.suggest("id-4") == Searcher.FINISHED
    assert searcher.suggest("id-1") == configs[1]


def test_an_unfinished_repeat_goes_on_first(search):
    search.begin(3, trial_spec(rank=8, seed=8), repeat_of=2)
    searcher = search.searcher(build_spec())
    configs = [searcher.suggest(f"id-{n}") for n in range(2)]
    assert [(c["trial"], c["repeat_of"]) for c in configs] == [(3, 2), (4, 1)]


def test_an_unfinished_trial_of_the_search_is_none_of_the_finals(search):
    search.begin(3, trial_spec(rank=16))
    spec = build_spec(finals=FinalsSpec(seeds=0))
    assert search.searcher(spec).suggest("id-0") == Searcher.FINISHED


def test_a_spent_budget_leaves_repeats_out_and_says_why(search):
    answers = iter(["", "no money left", "never asked"])
    searcher = search.searcher(build_spec(), lambda: next(answers))
    assert searcher.suggest("id-0")["trial"] == 3
    assert searcher.suggest("id-1") == Searcher.FINISHED
    assert searcher.suggest("id-2") == Searcher.FINISHED
    assert searcher.finish_reason == "no money left"


def test_repeats_of_what_is_no_finalist_any_more_are_unwanted(search):
    search.begin(3, trial_spec(rank=2, seed=8), repeat_of=0)
    search.begin(4, trial_spec(rank=4, seed=8), repeat_of=1)
    assert [one.number for one in unwanted_repeats(build_spec(), search.history)] == [3]


def test_finalists_that_differ_by_their_seed_alone_share_no_new_one(search):
    space = {"lora.rank": {"choice": [2, 4, 8, 16]}, "seed": {"int": [0, 99]}}
    spec = build_spec(space=space)
    for number in range(3):
        search.history.trials[number].spec["seed"] = number
    seeds = [seed for _, seed in planned(spec, search.history)]
    assert len({*seeds, 0, 1, 2}) == 3 + len(seeds)
