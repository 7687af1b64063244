"""A metric of the user during training: its values, its cost, and what it may give."""

from dataclasses import replace

import pytest

from trainables.errors import SpecError
from trainables.evaluation.evaluate import evaluate_bundle
from trainables.evaluation_spec import EvaluationSpec
from trainables.spec import EvalSpec

SOURCE = """
def shared(predictions, references):
    pairs = zip(predictions, references, strict=True)
    return [len(set(p) & set(r)) / len(set(p) | set(r) or {1}) for p, r in pairs]

def nats(scores):
    return scores["loss_sum"]

def short(scores):
    return scores["loss_sum"][1:]

def broken(scores):
    raise KeyError("logits")

def holes(scores):
    return [float("nan")] * len(scores["loss_sum"])
"""


@pytest.fixture
def measure(train, tmp_path):
    """The metrics of a trained adapter whose trial has another evaluation."""
    trained = train()
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)

    def ask(function, split="test", **fields):
        spec = replace(trained.spec, eval=EvalSpec(metric=f"{path}:{function}", **fields))
        trained.engine.join("asked", spec, trained.engine.snapshot("seat"))
        try:
            return trained.engine.evaluate("asked", split)
        finally:
            trained.engine.leave("asked")

    ask.trained, ask.path = trained, path
    return ask


def test_completions_are_those_of_the_served_adapter(measure):
    found = measure("shared", max_new_tokens=4, batch_size=3)
    how = EvaluationSpec(max_new_tokens=4, metrics=(f"{measure.path}:shared",))
    source = (measure.trained.spec.data, "test")
    (served,) = evaluate_bundle(measure.trained.bundle, ["trained"], source, how)
    assert found["eval_shared"] == pytest.approx(served["measures"]["shared"]["value"])
    assert 0.2 < found["eval_shared"] <= 1
    assert found["metric_s"] > 0


def test_row_scores_cost_no_completion_and_leave_other_metrics_as_they_were(measure):
    found = measure("nats")
    plain = measure.trained.engine.evaluate("seat", "test")
    assert {name: found[name] for name in plain} == plain
    rows = measure.trained.engine.evaluate_rows("seat", "test")
    assert found["eval_nats"] == pytest.approx(sum(rows.loss_sum) / len(rows.loss_sum))


def test_the_bare_base_has_the_metric_too(measure):
    spec = replace(measure.trained.spec, eval=EvalSpec(metric=f"{measure.path}:nats"))
    base = measure.trained.engine.evaluate_base(spec, "test")
    assert base["eval_nats"] > measure("nats")["eval_nats"]


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        ("short", r"gave \d+ numbers; allowed: a list of \d+ finite numbers"),
        ("broken", r"raised KeyError: 'logits'; allowed: a list"),
        ("holes", r"gave nan; allowed: a list"),
    ],
)
def test_what_is_no_number_for_each_row_is_told(measure, function, complaint):
    with pytest.raises(SpecError, match=rf"eval\.metric: .*:{function} {complaint}"):
        measure(function)


def test_completions_beyond_the_bases_positions_are_refused(measure):
    with pytest.raises(SpecError, match=r"eval\.max_new_tokens: got 600 .*at most 512"):
        measure("shared", max_new_tokens=600)
