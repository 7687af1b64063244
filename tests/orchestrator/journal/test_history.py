"""The history of a sweep is the fold of its events."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.journal.history import SweepHistory, exceeded
from orchestrator.journal.log import EventLog
from orchestrator.outcome import Outcome
from orchestrator.spec.sections import ObjectiveSpec
from tests.support.events import ANY_TRIAL, entry, event


def fold(*events: tuple[str, dict[str, Any]]) -> SweepHistory:
    history = SweepHistory()
    for at, (kind, fields) in enumerate(events):
        history.apply(entry(kind, float(at), **fields))
    return history


def started(trial: int) -> tuple[str, dict[str, Any]]:
    return "trial_started", {"trial": trial, "knobs": {"lora.rank": trial}, "spec": ANY_TRIAL}


def report(trial: int, step: int, loss: float) -> tuple[str, dict[str, Any]]:
    return "report", {
        "trial": trial,
        "step": step,
        "metrics": {"eval_loss": loss, "eval_accuracy": loss},
    }


def ended(trial: int, outcome: str = "completed") -> tuple[str, dict[str, Any]]:
    fields = {"outcome": outcome, "reason": "why", "step": 0, "bundle": f"/b/{trial}"}
    return "trial_ended", {"trial": trial, **fields}


def test_log_folds_into_a_whole_sweep(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.append(event("sweep_started", sweep_id="s", spec={"name": "x"}, digest="d"))
        log.append(
            event("base_evaluated", base="m nf4 auto", split="test", metrics={"eval_loss": 3.0})
        )
        log.append(event("phase", name="search", seconds=1.0))
        for kind, fields in (started(0), report(0, 10, 2.0), ended(0), started(1)):
            log.append(event(kind, **fields))
        log.append(event("sweep_resumed"))
        log.append(event("phase", name="search", seconds=2.0))
        log.append(event("final_evaluated", trial=0, metrics={"eval_loss": 2.5}))
        log.append(event("registered", trial=0, ref="x/1", digest="a"))
        log.append(event("promoted", ref="x/1", promoted=True, reason="better"))
        log.append(event("sweep_ended", status="completed", reason="budget spent"))
    history = SweepHistory.read(path)
    assert (history.sweep_id, history.digest, history.spec) == ("s", "d", {"name": "x"})
    assert (history.status, history.reason, history.resumes) == ("completed", "budget spent", 1)
    assert history.base_metrics == {"m nf4 auto": {"test": {"eval_loss": 3.0}}}
    assert history.phases == {"search": 3.0}
    assert history.promotions[0].promoted is True
    record = history.trials[0]
    assert (record.outcome, record.reason, record.bundle) == (Outcome.COMPLETED, "why", "/b/0")
    assert (record.final_metrics, record.ref) == ({"eval_loss": 2.5}, "x/1")
    assert record.ended_at is not None
    assert record.started_at <= record.ended_at
    assert [each.number for each in history.ended()] == [0]
    assert [each.number for each in history.unfinished()] == [1]


def test_steps_done_again_after_a_lost_host_count_once() -> None:
    history = fold(
        started(0), report(0, 10, 3.0), report(0, 20, 2.0), report(0, 30, 1.0), report(0, 20, 2.5)
    )
    assert [(each.step, each.metrics["eval_loss"]) for each in history.trials[0].reports] == [
        (10, 3.0),
        (20, 2.5),
    ]
    assert [each.step for _, each in history.reports] == [10, 20, 30, 20]


def test_trial_started_again_keeps_what_it_had() -> None:
    history = fold(started(0), report(0, 10, 3.0), started(0))
    assert history.trials[0].step == 10


def test_unknown_events_and_unknown_trials_change_nothing() -> None:
    assert fold(("invented_later", {"x": 1}), ended(7)) == SweepHistory()


@pytest.mark.parametrize(
    ("events", "best"),
    [
        ([], None),
        ([started(0), report(0, 10, 1.0)], None),
        ([started(0), report(0, 10, 1.0), ended(0, "diverged")], None),
        ([started(0), report(0, 10, float("nan")), ended(0)], None),
        ([started(0), report(0, 10, 1.0), ended(0, "stopped")], 0),
        ([started(0), report(0, 10, 1.0), report(0, 20, 3.0), ended(0)], 0),
    ],
    ids=["nothing", "unfinished", "diverged", "nan", "stopped", "completed"],
)
def test_best_is_an_adapter_that_was_measured(events: list[Any], best: int | None) -> None:
    record = fold(*events).best(ObjectiveSpec())
    assert (record.number if record else None) == best


def test_ranking_goes_by_last_value_then_by_steps() -> None:
    history = fold(
        *(started(trial) for trial in range(4)),
        *(report(0, 10, 1.0), report(0, 20, 4.0), ended(0)),
        *(report(1, 10, 2.0), ended(1, "stopped")),
        *(report(2, 20, 2.0), ended(2, "stopped")),
        *(report(3, 20, 2.0), ended(3)),
    )
    assert [each.number for each in history.ranking(ObjectiveSpec())] == [3, 2, 1, 0]
    assert [each.number for each in history.ranking(ObjectiveSpec(metric="eval_accuracy"))] == [
        0,
        3,
        2,
        1,
    ]


def test_a_trial_that_the_budget_cut_short_ranks_by_what_it_measured() -> None:
    history = fold(
        *(started(0), report(0, 10, 2.0), ended(0)),
        *(started(1), report(1, 10, 1.0), ended(1, "cancelled")),
        *(started(2), ended(2, "cancelled")),
    )
    assert [record.number for record in history.ranking(ObjectiveSpec())] == [1, 0]


def test_an_ended_trial_that_is_resumed_has_no_end_any_more() -> None:
    history = fold(
        *(started(0), report(0, 10, 2.0), ended(0, "cancelled")),
        ("trial_resumed", {"trial": 0, "step": 10}),
    )
    assert [(record.number, record.step) for record in history.unfinished()] == [(0, 10)]
    assert history.ended() == []


def test_a_trial_beyond_a_constraint_is_not_ranked() -> None:
    history = fold(
        *(started(0), report(0, 10, 1.0), ended(0)),
        *(started(1), report(1, 10, 3.0), ended(1)),
    )
    bounded = ObjectiveSpec(constraints=("eval_accuracy >= 2",))
    assert [record.number for record in history.ranking(bounded)] == [1]
    assert exceeded(history.trials[0], bounded) == "eval_accuracy >= 2"
    unknown = ObjectiveSpec(constraints=("peak_memory_gib <= 20",))
    assert history.ranking(unknown) == []


def test_repeats_are_no_part_of_the_search() -> None:
    repeat = ("trial_started", {"trial": 1, "knobs": {}, "spec": ANY_TRIAL, "repeat_of": 0})
    history = fold(
        *(started(0), report(0, 10, 2.0), ended(0)), repeat, report(1, 10, 1.0), ended(1)
    )
    assert [record.number for record in history.ranking(ObjectiveSpec())] == [0]
    assert [record.number for record in history.searched()] == [0]
    assert [record.number for record in history.repeats_of(0)] == [1]


def test_a_trial_keeps_its_parent_and_who_cancelled_it() -> None:
    parent = {"trial": 0, "step": 10, "replaces": 2}
    end = {"outcome": "cancelled", "reason": "", "step": 0, "bundle": None, "by": "user"}
    history = fold(
        ("trial_started", {"trial": 3, "knobs": {}, "spec": ANY_TRIAL, "parent": parent}),
        ("trial_ended", {"trial": 3, **end}),
    )
    assert history.trials[3].parent == parent
    assert history.trials[3].ended_by == "user"


def test_what_was_measured_of_a_trial_is_forgotten_when_it_goes_on() -> None:
    history = fold(
        *(started(0), report(0, 10, 2.0), ended(0, "cancelled")),
        ("final_evaluated", {"trial": 0, "metrics": {"test_loss": 1.0}}),
        ("registered", {"trial": 0, "ref": "x/1", "digest": "d"}),
        ("trial_resumed", {"trial": 0, "step": 10}),
    )
    record = history.trials[0]
    assert (record.final_metrics, record.ref, record.bundle) == (None, None, None)
    assert record.step == 10


def test_what_was_pruned_of_a_trial_is_gone_until_it_goes_on() -> None:
    left = (started(0), report(0, 10, 2.0), ended(0, "cancelled"))
    states = ("pruned", {"what": "state", "trials": [0, 7]})
    bundles = ("pruned", {"what": "bundle", "trials": [0]})
    record = fold(*left, states).trials[0]
    assert (record.pruned, record.bundle) == ({"state"}, fold(*left).trials[0].bundle)
    record = fold(*left, states, bundles).trials[0]
    assert (record.pruned, record.bundle) == ({"state", "bundle"}, None)
    assert record.last("eval_loss") == 2.0
    again = fold(*left, states, ("trial_resumed", {"trial": 0, "step": 10})).trials[0]
    assert again.pruned == frozenset()


def test_finals_of_an_earlier_search_are_not_those_of_this_one() -> None:
    ends = [
        ("stage_ended", {"stage": s, "reason": "", "under": {}}) for s in ("search", "repeats")
    ]
    assert fold(*ends).stages.keys() == {"search", "repeats"}
    assert fold(*ends, ends[0]).stages.keys() == {"search"}
