"""Lengths are counted ones, or the limit, and the user is told which."""

from orchestrator.capacity.lengths import SweepLengths
from tests.support.sweeps import build_finals_sweep
from trainables.rows.lengths import Lengths
from trainables.spec import TrialSpec


def counted(*lengths: int, answers: int = 3) -> Lengths:
    return Lengths(
        all=lengths, limit=512, kept=len(lengths), ends_lost=0, answers=(answers,) * len(lengths)
    )


def trial(**data) -> TrialSpec:
    spec = build_finals_sweep()
    values = {"base": spec.base, "optim": spec.optim, "data": spec.data, "eval": spec.eval}
    return TrialSpec(**values)


def test_counted_rows_give_means_limits_and_percentiles():
    found = SweepLengths(splits={"train": counted(10, 20, 30), "validation": counted(8, 2000)})
    assert found.trained(trial()) == 20
    assert found.limits.of(trial()).train == 30
    assert found.limits.of(trial()).evaluation == trial().data.max_tokens
    assert found.limits.train_answers == 3
    assert found.describe(512) == (
        "Training rows have 20 tokens at the median, 30 at the 95th percentile and 30 at most."
    )
    assert found.describe(15).endswith("15 at the 95th percentile and 15 at most.")
    assert found.to_dict()["source"] == "tokenizer"


def test_uncounted_rows_are_as_long_as_the_limit_and_say_why():
    found = SweepLengths(why="the rows are not on this machine")
    most = trial().data.max_tokens
    assert (found.trained(trial()), found.evaluated(trial())) == (most, 0)
    assert found.limits.of(trial()).train == most
    said = found.describe(most)
    assert said == (
        f"Rows count with data.max_tokens ({most}), an upper bound: the rows are not on this "
        "machine."
    )
    assert found.to_dict() == {"source": "data.max_tokens", "why": found.why}
