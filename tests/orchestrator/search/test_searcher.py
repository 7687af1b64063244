"""The next configuration depends only on seed, number and observations."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from orchestrator.errors import SweepStorageError
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.log import EventLog
from orchestrator.outcome import Outcome, TrialOutcome, settle_end
from orchestrator.search.pbt import Heir
from orchestrator.search.searcher import OptunaSearcher, suggest_knobs
from orchestrator.search.study import Observation, observe
from orchestrator.spec.sections import SearchSpec
from orchestrator.spec.sweep import BudgetSpec, SweepSpec
from tests.support.events import ANY_TRIAL, event
from trainables.hosts.orders import fault_metrics
from trainables.spec import BaseSpec, DataSpec, EvalSpec, OptimSpec, TrialSpec

CHOICES = {
    "lora.rank": {"choice": [4, 8, 16]},
    "lora.targets": {"choice": ["attention", ["q_proj", "v_proj"]]},
}
WIDE = CHOICES | {"optim.learning_rate": {"log_uniform": [1e-4, 1e-2]}}


def build_sweep(
    algorithm: Any = "tpe", space: dict[str, Any] | None = None, trials: int = 12, seed: int = 7
) -> SweepSpec:
    return SweepSpec(
        name="tiny",
        base=BaseSpec(model="owner/name"),
        data=DataSpec(train="owner/rows"),
        optim=OptimSpec(steps=40),
        eval=EvalSpec(every=10),
        budget=BudgetSpec(trials=trials),
        search=SearchSpec(algorithm=algorithm, startup_trials=3),
        space=WIDE if space is None else space,
        seed=seed,
    )


def loss_of(knobs: dict[str, Any]) -> float:
    """A smooth stand-in for training: the best rate is 1e-2."""
    return 1.0 / (1e-3 + knobs["optim.learning_rate"]) + knobs["lora.rank"]


class Sweep:
    """Drives a searcher as Ray Tune does, and logs results."""

    def __init__(self, spec: SweepSpec, path: Path) -> None:
        self.log = EventLog(path)
        history = SweepHistory.read(path)
        self.searcher = OptunaSearcher(spec, history)
        self.horizon = spec.horizon
        self.prefix = f"run{history.resumes}-{len(history.trials)}-"
        self.ids: dict[int, str] = {}

    def start(self) -> dict[str, Any]:
        tune_id = f"{self.prefix}{len(self.ids)}"
        config = self.searcher.suggest(tune_id)
        assert isinstance(config, dict)
        self.ids[config["trial"]] = tune_id
        if not config.get("resume"):
            fields = {key: config[key] for key in ("trial", "knobs", "spec")}
            self.log.append(event("trial_started", **fields))
        return config

    def report(self, trial: int, step: int, loss: float) -> None:
        self.log.append(event("report", trial=trial, step=step, metrics={"eval_loss": loss}))
        self.searcher.on_trial_result(self.ids[trial], {"step": step, "eval_loss": loss})

    def end(self, trial: int, outcome: str, step: int, loss: float) -> None:
        self.log.append(event("report", trial=trial, step=step, metrics={"eval_loss": loss}))
        result: dict[str, Any] = {"step": step, "eval_loss": loss}
        if outcome not in ("stopped", "completed"):
            result["outcome"] = outcome
        failure = "no message" if outcome == "failed" else None
        end = settle_end(result, self.horizon, error=failure)
        assert end.outcome == outcome
        fields = {"outcome": end.outcome, "reason": end.reason, "step": step, "bundle": None}
        self.log.append(event("trial_ended", trial=trial, **fields))
        self.searcher.on_trial_complete(self.ids[trial], result, error=outcome == "failed")

    def run_eight(self) -> None:
        """Six ended trials of all kinds and two running trials, one with a report."""
        outcomes = ("completed", "stopped", "diverged", "infeasible", "failed", "completed")
        for outcome in outcomes:
            config = self.start()
            loss = loss_of(config["knobs"])
            if outcome != "infeasible":
                self.report(config["trial"], 10, loss + 1)
            self.end(config["trial"], outcome, 40 if outcome == "completed" else 20, loss)
        self.start()
        self.report(self.start()["trial"], 10, 50.0)


def test_suggestion_is_a_trial_with_its_number_and_knobs() -> None:
    spec = build_sweep()
    searcher = OptunaSearcher(spec)
    configs = [searcher.suggest(f"id{i}") for i in range(3)]
    assert [config["trial"] for config in configs] == [0, 1, 2]
    for config in configs:
        assert json.loads(json.dumps(config)) == config
        trial = TrialSpec.from_dict(config["spec"])
        assert trial.lora.rank == config["knobs"]["lora.rank"]
        assert "resume" not in config
    assert searcher.suggest("id1") == configs[1]


def test_constants_are_in_every_suggestion() -> None:
    searcher = OptunaSearcher(build_sweep(), None, {"storage": "/sweep"})
    assert [searcher.suggest(name)["storage"] for name in "ab"] == ["/sweep", "/sweep"]


@pytest.mark.parametrize("algorithm", ["tpe", "random", "grid"])
def test_same_seed_and_same_news_give_the_same_suggestions(tmp_path: Path, algorithm: str) -> None:
    space = {"optim.learning_rate": {"choice": [i * 1e-4 for i in range(1, 9)]}} | CHOICES
    knobs = []
    for run in range(2):
        sweep = Sweep(build_sweep(algorithm, space), tmp_path / f"{run}.jsonl")
        sweep.run_eight()
        knobs.append([sweep.start()["knobs"] for _ in range(4)])
        sweep.log.close()
    assert knobs[0] == knobs[1]


def test_other_seed_gives_other_suggestions() -> None:
    first, second = (suggest_knobs(build_sweep(seed=seed), 0, {}) for seed in (1, 2))
    assert first != second


def test_order_of_the_news_does_not_matter() -> None:
    spec = build_sweep()
    rng = random.Random(0)
    seen = {}
    for number in range(40):
        knobs = {
            "lora.rank": rng.choice([4, 8, 16]),
            "lora.targets": "attention",
            "optim.learning_rate": rng.uniform(1e-4, 1e-2),
        }
        seen[number] = Observation(
            knobs=knobs, values={40: loss_of(knobs)}, outcome=Outcome.COMPLETED
        )
    backwards = dict(reversed(seen.items()))
    for number in range(40, 50):
        assert suggest_knobs(spec, number, seen) == suggest_knobs(spec, number, backwards)


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_resumed_search_goes_on_as_the_undisturbed_one(tmp_path: Path, algorithm: str) -> None:
    spec = build_sweep(algorithm)
    sweep = Sweep(spec, tmp_path / "events.jsonl")
    sweep.run_eight()
    sweep.log.close()
    resumed = Sweep(spec, tmp_path / "events.jsonl")
    resumed.log.close()
    again = [resumed.searcher.suggest(f"again{i}") for i in range(2)]
    assert [(config["trial"], config["resume"]) for config in again] == [(6, True), (7, True)]
    undisturbed = [sweep.searcher.suggest(f"new{i}") for i in range(3)]
    assert [resumed.searcher.suggest(f"new{i}") for i in range(3)] == undisturbed
    assert [config["trial"] for config in undisturbed] == [8, 9, 10]


def test_trial_started_but_never_logged_is_suggested_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        for number in (0, 2):
            knobs = {"lora.rank": 4 + 4 * number, "lora.targets": "attention"}
            log.append(
                event(
                    "trial_started",
                    trial=number,
                    knobs=knobs | {"optim.learning_rate": 1e-3},
                    spec=ANY_TRIAL,
                )
            )
    searcher = OptunaSearcher(
        build_sweep(space=WIDE | {"lora.rank": {"int": [4, 16]}}), SweepHistory.read(path)
    )
    assert [searcher.suggest(f"id{i}")["trial"] for i in range(4)] == [0, 2, 1, 3]


def test_what_was_heard_is_what_the_log_says(tmp_path: Path) -> None:
    spec = build_sweep()
    sweep = Sweep(spec, tmp_path / "events.jsonl")
    sweep.run_eight()
    sweep.log.close()
    logged = observe(SweepHistory.read(tmp_path / "events.jsonl"), spec.objective)
    assert sweep.searcher._observations == logged


def test_divergence_steers_the_search_away() -> None:
    spec = build_sweep(space={"optim.learning_rate": {"log_uniform": [1e-5, 1e-1]}}, trials=99)
    rates = [10 ** -(1 + i / 5) for i in range(20)]
    seen = {
        number: Observation(
            knobs={"optim.learning_rate": rate},
            values={} if rate > 1e-3 else {40: 3.0 - rate},
            outcome=Outcome.DIVERGED if rate > 1e-3 else Outcome.COMPLETED,
        )
        for number, rate in enumerate(rates)
    }
    suggested = [suggest_knobs(spec, number, seen) for number in range(20, 40)]
    assert all(knobs is not None and knobs["optim.learning_rate"] < 5e-3 for knobs in suggested)


def test_useless_values_and_late_news_are_ignored() -> None:
    searcher = OptunaSearcher(build_sweep())
    searcher.suggest("a")
    searcher.on_trial_result("a", {"step": 10, "eval_loss": float("nan")})
    searcher.on_trial_result("a", {"step": 10})
    searcher.on_trial_result("a", {"step": 20, "eval_loss": 2.0})
    searcher.on_trial_result("a", {"step": 20, "eval_loss": 2.0})
    searcher.on_trial_complete("a", {"step": 30, "eval_loss": 1.0})
    searcher.on_trial_complete("a", error=True)
    searcher.on_trial_result("a", {"step": 40, "eval_loss": 0.0})
    searcher.on_trial_complete("unknown", None)
    seen = searcher._observations[0]
    assert seen.values == {20: 2.0, 30: 1.0}
    assert seen.outcome is Outcome.STOPPED


@pytest.mark.parametrize("algorithm", ["tpe", "random", "grid"])
def test_small_space_is_tried_whole_and_nothing_twice(algorithm: str) -> None:
    searcher = OptunaSearcher(build_sweep(algorithm, CHOICES, trials=50))
    tried = []
    while (config := searcher.suggest(f"id{len(tried)}")) != Searcher.FINISHED:
        tried.append(json.dumps(config["knobs"]))
        result = {"step": 40, "eval_loss": float(config["knobs"]["lora.rank"])}
        searcher.on_trial_complete(f"id{len(tried) - 1}", result)
    assert len(tried) == len(set(tried)) == 6
    assert searcher.finish_reason == "nothing new to try: 6 configurations were tried"


def test_budget_counts_trials_of_every_run(tmp_path: Path) -> None:
    spec = build_sweep(trials=9)
    sweep = Sweep(spec, tmp_path / "events.jsonl")
    sweep.run_eight()
    sweep.log.close()
    searcher = OptunaSearcher(spec, SweepHistory.read(tmp_path / "events.jsonl"))
    numbers = [searcher.suggest(f"id{i}")["trial"] for i in range(3)]
    assert numbers == [6, 7, 8]
    assert searcher.suggest("id3") == Searcher.FINISHED
    assert searcher.finish_reason == "the budget of 9 trials is spent"


def test_sweep_without_space_is_one_trial() -> None:
    searcher = OptunaSearcher(build_sweep(space={}, trials=1))
    assert searcher.suggest("a")["knobs"] == {}
    assert searcher.suggest("b") == Searcher.FINISHED


def test_tune_files_hold_no_search(tmp_path: Path) -> None:
    searcher = OptunaSearcher(build_sweep())
    searcher.save_to_dir(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SweepStorageError, match="event log"):
        searcher.restore(str(tmp_path / "x.pkl"))


def fail(searcher: OptunaSearcher, number: int, reason: str, outcome: str = "failed") -> None:
    assert isinstance(searcher.suggest(f"t{number}"), dict)
    result = fault_metrics({"step": 0}) | {"outcome": outcome, "reason": reason}
    searcher.on_trial_complete(f"t{number}", result)


@pytest.mark.parametrize("outcome", ["failed", "infeasible"])
def test_search_ends_when_the_first_trials_fail_alike(outcome: str) -> None:
    searcher = OptunaSearcher(build_sweep())
    for number in range(3):
        fail(searcher, number, f"process {number * 977} lost", outcome)
    assert searcher.suggest("t3") == Searcher.FINISHED
    assert searcher.finish_reason.startswith(
        "the first 3 trials all failed the same way: process 0 lost"
    )


def test_search_waits_longer_when_the_first_trials_fail_in_different_ways() -> None:
    searcher = OptunaSearcher(build_sweep())
    for number in range(6):
        fail(searcher, number, "no memory" if number % 2 else "no data")
    assert searcher.suggest("t6") == Searcher.FINISHED
    assert "the first 6 trials all failed" in searcher.finish_reason


def test_search_goes_on_after_failures_once_something_was_measured() -> None:
    searcher = OptunaSearcher(build_sweep())
    searcher.suggest("t0")
    searcher.on_trial_result("t0", {"step": 10, "eval_loss": 1.0})
    for number in range(1, 5):
        fail(searcher, number, "the same")
    assert isinstance(searcher.suggest("t5"), dict)


@pytest.mark.parametrize("algorithm", ["tpe", "random", "grid", "nsga2"])
def test_refused_and_repeated_combinations_are_never_suggested(
    algorithm: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "orchestrator.search.searcher")
    spec = replace(build_sweep(algorithm, CHOICES), forbid=({"lora.rank": [4, 8]},))
    searcher = OptunaSearcher(spec)
    tried = [searcher.suggest(f"id{i}") for i in range(3)]
    assert tried[2] == Searcher.FINISHED
    assert [one["knobs"]["lora.rank"] for one in tried[:2]] == [16, 16]
    assert searcher.finish_reason == "nothing new to try: 2 configurations were tried"
    if algorithm != "grid":
        assert "suggestions were refused, at last: forbid[0]" in caplog.text


START = [{"lora.rank": 8, "optim.learning_rate": 2e-3}, {"lora.targets": "attention"}]


def test_start_points_come_first_and_what_they_lack_is_drawn() -> None:
    searcher = OptunaSearcher(build_sweep(), start_points=START)
    knobs = [searcher.suggest(f"id{i}")["knobs"] for i in range(3)]
    assert START[0].items() <= knobs[0].items()
    assert START[1].items() <= knobs[1].items()
    assert knobs[0].keys() == knobs[1].keys() == knobs[2].keys()


def test_resumed_search_goes_on_with_the_next_start_point(tmp_path: Path) -> None:
    spec, path = build_sweep(), tmp_path / "events.jsonl"
    fresh = [OptunaSearcher(spec, start_points=START).suggest("a") for _ in range(2)]
    assert fresh[0] == fresh[1]
    with EventLog(path) as log:
        log.append(
            event("trial_started", **{key: fresh[0][key] for key in ("trial", "knobs", "spec")})
        )
    searcher = OptunaSearcher(spec, SweepHistory.read(path), start_points=START)
    resumed, following = searcher.suggest("a"), searcher.suggest("b")
    assert (resumed["trial"], resumed["resume"]) == (0, True)
    assert START[1].items() <= following["knobs"].items()


def test_start_point_that_is_refused_or_was_tried_gives_way() -> None:
    spec = replace(build_sweep(space=CHOICES), forbid=({"lora.rank": 8},))
    whole = {"lora.rank": 4, "lora.targets": "attention"}
    searcher = OptunaSearcher(spec, start_points=[{"lora.rank": 8}, whole, whole])
    knobs = [searcher.suggest(f"id{i}")["knobs"] for i in range(3)]
    assert knobs[0]["lora.rank"] != 8
    assert len({json.dumps(each) for each in knobs}) == 3


def test_random_trials_of_the_start_come_after_start_points() -> None:
    spec = build_sweep()
    seen = {
        number: Observation(
            knobs={"lora.rank": 4, "lora.targets": "attention", "optim.learning_rate": rate},
            values={40: rate},
            outcome=Outcome.COMPLETED,
        )
        for number, rate in enumerate((1e-4, 2e-4, 3e-4))
    }
    drawn = suggest_knobs(replace(spec, search=SearchSpec(algorithm="random")), 3, seen)
    assert suggest_knobs(spec, 3, seen, START[:1]) == drawn
    assert suggest_knobs(spec, 3, seen) != drawn


def test_budget_may_end_the_search_before_a_new_trial() -> None:
    asked = []

    def may_start(trials: int) -> str:
        asked.append(trials)
        return "the money is spent" if trials == 2 else ""

    searcher = OptunaSearcher(build_sweep(), may_start=may_start)
    found = [searcher.suggest(name) for name in "abc"]
    assert found[2] == Searcher.FINISHED
    assert asked == [0, 1, 2]
    assert searcher.finish_reason == "the money is spent"


class FakeScheduler:
    """A scheduler with two fresh trials and the given copies to start."""

    def __init__(self) -> None:
        self.heirs: list[Heir] = []
        self.ends: dict[int, TrialOutcome] = {}

    def next_heir(self) -> Heir | None:
        return self.heirs.pop() if self.heirs else None

    def may_start_fresh(self, fresh_started: int) -> bool:
        return fresh_started < 2

    def end_of(self, trial: int) -> TrialOutcome | None:
        return self.ends.get(trial)


def test_heir_is_a_changed_copy_and_a_full_population_waits_for_one() -> None:
    scheduler = FakeScheduler()
    searcher = OptunaSearcher(build_sweep(), scheduler=scheduler)
    parent, _other = searcher.suggest("a"), searcher.suggest("b")
    assert searcher.suggest("c") is None
    scheduler.heirs = [Heir(replaces=1, parent=0, step=20)]
    heir = searcher.suggest("c")
    assert heir["parent"] == {"trial": 0, "step": 20, "replaces": 1}
    assert heir["trial"] == 2
    assert heir["knobs"] != parent["knobs"]
    assert heir["knobs"]["lora.rank"] == parent["knobs"]["lora.rank"]
    for name in "abc":
        searcher.on_trial_complete(name, {"step": 40, "eval_loss": 1.0})
    assert searcher.suggest("d") == Searcher.FINISHED


def test_resumed_heir_has_its_parent_and_repeats_are_not_the_searchs(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    knobs = {"lora.rank": 4, "lora.targets": "attention", "optim.learning_rate": 1e-3}
    parent = {"trial": 0, "step": 20, "replaces": 1}
    with EventLog(path) as log:
        log.append(event("trial_started", trial=0, knobs=knobs, spec=ANY_TRIAL, parent=parent))
        log.append(event("trial_started", trial=1, knobs=knobs, spec=ANY_TRIAL, repeat_of=0))
    searcher = OptunaSearcher(build_sweep(trials=2), SweepHistory.read(path))
    resumed, new = searcher.suggest("a"), searcher.suggest("b")
    assert (resumed["trial"], resumed["resume"], resumed["parent"]) == (0, True, parent)
    assert new["trial"] == 2
    assert searcher.suggest("c") == Searcher.FINISHED


def test_end_is_what_the_scheduler_says_it_was() -> None:
    scheduler = FakeScheduler()
    searcher = OptunaSearcher(build_sweep(), scheduler=scheduler)
    searcher.suggest("a")
    scheduler.ends[0] = TrialOutcome(Outcome.DIVERGED, "it ran away")
    searcher.on_trial_complete("a", {"step": 10, "eval_loss": 9.0})
    seen = searcher._observations[0]
    assert (seen.outcome, seen.reason) == (Outcome.DIVERGED, "it ran away")


def too_large(trial: TrialSpec) -> str:
    return "memory: it takes more than the device has" if trial.lora.rank == 16 else ""


@pytest.mark.parametrize("algorithm", ["tpe", "random", "grid"])
def test_a_configuration_that_cannot_fit_is_replaced_and_counts_as_no_trial(
    algorithm, caplog
) -> None:
    caplog.set_level("INFO")
    spec = build_sweep(algorithm, CHOICES)
    searcher = OptunaSearcher(spec, refuse=too_large)
    tried = [searcher.suggest(f"id{i}") for i in range(5)]
    assert {one["knobs"]["lora.rank"] for one in tried[:4]} == {4, 8}
    assert [one["trial"] for one in tried[:4]] == [0, 1, 2, 3]
    assert tried[4] == Searcher.FINISHED
    if algorithm != "grid":
        assert "at last: memory: it takes more" in caplog.text


def test_a_resumed_search_replaces_the_same_configurations(tmp_path: Path) -> None:
    spec, path = build_sweep(), tmp_path / "events.jsonl"
    whole = OptunaSearcher(spec, refuse=too_large)
    first, second = whole.suggest("a"), whole.suggest("b")
    with EventLog(path) as log:
        log.append(
            event("trial_started", **{key: first[key] for key in ("trial", "knobs", "spec")})
        )
    resumed = OptunaSearcher(spec, SweepHistory.read(path), refuse=too_large)
    assert resumed.suggest("a")["trial"] == 0
    assert resumed.suggest("b")["knobs"] == second["knobs"]
