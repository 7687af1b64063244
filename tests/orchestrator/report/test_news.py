"""Many events become little news, which says the same."""

import pytest

from orchestrator.report.news import NewsDesk, SweepClosing, SweepOpening
from orchestrator.spec.sweep import BudgetSpec, SweepSpec
from registry.tracking.trial_news import TrialNews
from tests.support.events import entry
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec

SPEC = SweepSpec(
    name="tiny",
    base=BaseSpec(model="owner/name"),
    data=DataSpec(train="owner/rows"),
    optim=OptimSpec(steps=20),
    eval=EvalSpec(every=10),
    budget=BudgetSpec(trials=2),
    space={"lora.rank": {"choice": [4, 8]}},
)


class Clock:
    """Makes events, a second after each other."""

    def __init__(self):
        self.at = 100.0

    def __call__(self, kind, **fields):
        self.at += 1.0
        return entry(kind, self.at, **fields)

    def started(self, trial, **kinship):
        spec = TrialSpec(
            base=BaseSpec(model="owner/name"),
            lora=LoraSpec(rank=4),
            optim=OptimSpec(steps=20),
            data=DataSpec(train="owner/rows"),
            eval=EvalSpec(every=10),
        ).to_dict()
        return self("trial_started", trial=trial, knobs={}, spec=spec, **kinship)

    def report(self, trial, step, loss, **more):
        return self("report", trial=trial, step=step, metrics={"eval_loss": loss}, **more)

    def ended(self, trial, outcome="completed", reason="trained"):
        return self("trial_ended", trial=trial, outcome=outcome, reason=reason, step=20, bundle="")


@pytest.fixture
def event():
    return Clock()


@pytest.fixture
def desk(event):
    desk = NewsDesk(SPEC)
    desk.add(event("sweep_started", sweep_id="s1", spec=SPEC.to_dict(), digest=SPEC.digest))
    desk.take()
    return desk


def add_all(desk, *events):
    for each in events:
        desk.add(each)
    return desk.take()


def test_events_of_a_trial_are_one_piece_of_news(desk, event):
    news = add_all(
        desk,
        event.started(0),
        event.started(1),
        event.report(0, 10, 2.0),
        event.report(1, 10, 3.0),
        event.report(0, 20, 1.0),
        event.ended(0),
    )
    assert [each.trial for each in news] == [0, 1]
    assert [(p.step, p.metrics["eval_loss"]) for p in news[0].points] == [(10, 2.0), (20, 1.0)]
    assert (news[0].is_begun, news[0].started_at_s, news[0].points[0].at_s) == (True, 102.0, 104.0)
    assert (news[0].end.outcome, news[0].end.reason) == ("completed", "trained")
    assert news[1].end is None
    assert news[0].params["lora.rank"] == 4
    assert desk.take() == []


def test_what_was_taken_is_not_added_to(desk, event):
    first = add_all(desk, event.started(0), event.report(0, 10, 2.0))
    second = add_all(desk, event.report(0, 20, 1.0))
    assert [point.step for point in first[0].points] == [10]
    assert [point.step for point in second[0].points] == [20]
    assert not second[0].is_begun
    assert second[0].started_at_s == first[0].started_at_s


def test_news_of_the_sweep_keep_their_place(desk, event):
    news = add_all(
        desk,
        event.started(0),
        event.report(0, 10, 2.0),
        event.ended(0),
        event("sweep_ended", status="completed", reason=""),
        event("sweep_resumed"),
        event("trial_resumed", trial=0, step=10),
        event.report(0, 20, 1.0),
    )
    assert [type(each) for each in news] == [TrialNews, SweepClosing, SweepOpening, TrialNews]
    assert news[1].metrics == {"best/eval_loss": 2.0}
    assert news[1].about.startswith("Trial 0 ")
    assert "Best: trial 0" in news[1].about
    assert "| eval_loss | 2.0000 | - |" in news[1].about
    assert news[2].about in news[1].about
    assert [point.step for point in news[3].points] == [20]
    assert news[3].is_begun


def test_an_end_that_was_taken_back_is_no_news(desk, event):
    news = add_all(
        desk,
        event.started(0),
        event.ended(0, "cancelled", "budget"),
        event("trial_resumed", trial=0, step=0),
    )
    assert [(each.trial, each.end) for each in news] == [(0, None)]


def test_stand_ins_of_a_fault_and_unknown_trials_are_no_news(desk, event):
    news = add_all(
        desk,
        event.started(0),
        event.report(0, 10, 1e9, is_fault=True),
        event.report(7, 10, 1.0),
        event("phase", name="searching", seconds=1.0),
    )
    assert [(each.trial, each.points) for each in news] == [(0, [])]


def test_what_was_told_before_is_known_but_no_news(desk, event):
    desk.add(event.started(0, repeat_of=3), is_told=True)
    desk.add(event.report(0, 10, 2.0), is_told=True)
    news = add_all(desk, event("final_evaluated", trial=0, metrics={"test_loss": 1.5}))
    assert [(p.step, p.metrics) for p in news[0].points] == [(10, {"test_loss": 1.5})]
    assert news[0].tags == {"lorchestra.repeat_of": "3"}
    assert not news[0].is_begun


def test_a_sweep_without_an_adapter_says_so_in_its_note(desk, event):
    (news,) = add_all(desk, event("sweep_ended", status="failed", reason="all diverged"))
    assert "Failed: all diverged. No adapter was found." in news.about
