"""Trials that diverge or overfit end with a reason."""

import pytest

from orchestrator.outcome import Outcome
from orchestrator.search.exits import find_exit
from orchestrator.spec.sections import ExitSpec
from trainables.errors import SpecError
from trainables.hosts.orders import fault_metrics, is_stand_in


def curve(eval_losses, train_losses=None):
    """Reports of every tenth step; by default, the training loss falls."""
    train_losses = train_losses or [1 / (i + 1) for i in range(len(eval_losses))]
    return [
        {"step": 10 * (i + 1), "eval_loss": eval_loss, "train_loss": train_loss}
        for i, (eval_loss, train_loss) in enumerate(zip(eval_losses, train_losses, strict=True))
    ]


def test_a_loss_of_many_times_the_first_is_divergence():
    end = find_exit(ExitSpec(divergence=3), curve([3.2, 2.0, 12.1]))
    assert end.outcome is Outcome.DIVERGED
    assert end.reason == "eval_loss 12.1000 at step 30 is more than 3 times the first, 3.2000"


@pytest.mark.parametrize(
    ("exits", "losses"),
    [
        pytest.param(ExitSpec(divergence=3), [3.0, 9.0], id="just that many times"),
        pytest.param(ExitSpec(divergence=3), [0.1], id="the first itself"),
        pytest.param(ExitSpec(divergence=3), [0.0, 0.5], id="nothing to compare with"),
        pytest.param(ExitSpec(divergence=0), [1.0, 100.0], id="switched off"),
    ],
)
def test_other_losses_are_no_divergence(exits, losses):
    assert find_exit(exits, curve(losses)) is None


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_always_ends_a_trial(loss):
    end = find_exit(ExitSpec(divergence=0), curve([1.0, loss]))
    assert end.outcome is Outcome.DIVERGED
    assert end.reason == f"eval_loss is {loss} at step 20"


def test_a_loss_above_its_lowest_for_long_is_overfitting():
    end = find_exit(ExitSpec(overfitting=3), curve([0.9, 0.41, 0.5, 0.45, 0.6]))
    assert end.outcome is Outcome.STOPPED
    assert end.reason == (
        "overfits: eval_loss above its lowest (0.4100 at step 20) for 3 evaluations "
        "while train_loss fell"
    )


@pytest.mark.parametrize(
    ("patience", "losses", "train_losses"),
    [
        pytest.param(3, [0.9, 0.41, 0.5, 0.45], None, id="not for long enough"),
        pytest.param(2, [0.9, 0.4, 0.5, 0.4, 0.6], None, id="it came back to its lowest"),
        pytest.param(2, [0.4, 0.5, 0.6], [0.3, 0.4, 0.5], id="the training loss rises, too"),
        pytest.param(0, [0.4, 0.5, 0.6, 0.7], None, id="switched off"),
    ],
)
def test_other_curves_are_not_overfitting(patience, losses, train_losses):
    exits = ExitSpec(overfitting=patience)
    assert find_exit(exits, curve(losses, train_losses)) is None


def test_overfitting_is_not_looked_for_where_no_training_loss_is_reported():
    reports = [{"step": step, "eval_loss": step / 10} for step in (10, 20, 30)]
    assert find_exit(ExitSpec(divergence=0, overfitting=1), reports) is None


def test_metrics_of_a_broken_trial_are_no_measurement():
    assert is_stand_in(fault_metrics({"step": 20, "eval_loss": 0.5}))
    assert not is_stand_in({"step": 20, "eval_loss": 0.5})


RULES = """
def plateau(reports):
    if len(reports) >= 3 and reports[-1]["eval_loss"] > reports[-3]["eval_loss"] - 0.01:
        return f"no gain since step {reports[-3]['step']}"

def broken(reports):
    raise ZeroDivisionError("by hand")

def flag(reports):
    return True

def names(reports):
    return " ".join(sorted(reports[-1]))
"""


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.py"
    path.write_text(RULES)
    return path


def test_a_rule_of_the_user_stops_with_its_reason(rules):
    exits = ExitSpec(stop=f"{rules}:plateau")
    assert find_exit(exits, curve([3.0, 2.0, 1.0])) is None
    end = find_exit(exits, curve([3.0, 2.0, 1.999, 1.995]))
    assert (end.outcome, end.reason) == (Outcome.STOPPED, "no gain since step 20")
    diverged = find_exit(exits, curve([1.0, 1.0, 9.0]))
    assert diverged.outcome is Outcome.DIVERGED, "the rule is asked last"


def test_a_rule_sees_what_the_log_keeps_so_that_a_resume_asks_alike(rules):
    live = curve([1.0])[0] | {"eval_f1": 0.5, "training_iteration": 3, "hostname": "a"}
    end = find_exit(ExitSpec(stop=f"{rules}:names"), [live])
    assert end.reason == "eval_f1 eval_loss step train_loss"


def test_a_changed_rule_is_asked_anew(rules):
    exits, reports = ExitSpec(stop=f"{rules}:plateau"), curve([1.0, 1.0, 1.0])
    assert find_exit(exits, reports) is not None
    rules.write_text("def plateau(reports):\n    return None\n")
    assert find_exit(exits, reports) is None


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [("broken", "raised ZeroDivisionError: by hand"), ("flag", "gave True; allowed: a function")],
)
def test_a_rule_that_does_not_work_is_named(rules, rule, complaint):
    with pytest.raises(SpecError, match=rf"exits\.stop: .*:{rule} {complaint}"):
        find_exit(ExitSpec(stop=f"{rules}:{rule}"), curve([1.0]))
