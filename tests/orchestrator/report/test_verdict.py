"""What a sweep found, in sentences."""

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.finals.standings import Separation
from orchestrator.report.measurements import BaseComparison, Generated
from orchestrator.report.verdict import Evidence, reach_verdict


def stand(trial: int, *values: float) -> Any:
    return SimpleNamespace(trial=SimpleNamespace(number=trial), values=values)


def compare(measure: str, base: float | None, adapter: float, split: str = "test"):
    return BaseComparison(split, measure, base, adapter)


def serve(value: float, change: float, margin: float = 0.01) -> dict[str, float]:
    interval = {"loss.difference.low": change - margin, "loss.difference.high": change + margin}
    return {"loss": value, "loss.difference": change, **interval}


FOUND: dict[str, Any] = {
    "trial": 5,
    "value": 0.27,
    "metric": "eval_loss",
    "mode": "min",
    "finals": (stand(5, 0.24, 0.26), stand(1, 0.25, 0.29)),
    "separation": Separation(is_clear=False, text=""),
    "comparisons": (
        compare("accuracy", 0.1, 0.6, "validation"),
        compare("accuracy", 0.0, 0.69),
        compare("loss", 3.1, 0.25),
    ),
    "forms": {"trained": {"loss": 0.25}, "unquantized": serve(0.3825, 0.1325)},
    "stored_form": "fp4",
}


def reach(**changes: Any) -> Any:
    return reach_verdict(Evidence(**FOUND | changes))


def test_a_whole_sweep_is_told_in_three_sentences():
    assert reach().text == (
        "Trial 5 won; trial 1 is as good within noise, 2 seeds each. Test accuracy 69%, base 0%. "
        "Serve on the fp4 base: unquantized its loss is 53% higher."
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param(
            {"separation": Separation(is_clear=True, text="")},
            "Trial 5 won over trial 1 beyond noise, 2 seeds each.",
            id="clear",
        ),
        pytest.param(
            {"finals": (stand(5, 0.2), stand(1, 0.3))},
            "Trial 5 won over trial 1, but with a single run each the difference can be noise.",
            id="single runs",
        ),
        pytest.param(
            {"finals": (stand(5, 0.2, 0.2, 0.3), stand(1, 0.3, 0.3))},
            "Trial 5 won; trial 1 is as good within noise, 3 and 2 seeds.",
            id="other counts",
        ),
        pytest.param(
            {"finals": (stand(5, 0.2, 0.3),), "separation": None},
            "Trial 5 won, with 2 seeds.",
            id="one finalist",
        ),
        pytest.param(
            {"finals": (), "is_over": False},
            "Trial 5 leads so far, with eval_loss 0.2700.",
            id="running",
        ),
        pytest.param(
            {"finals": ()},
            "Trial 5 leads the search with eval_loss 0.2700; the rows that decide were not "
            "evaluated.",
            id="no finals",
        ),
        pytest.param(
            {"trial": None}, "No adapter: no trial ended with a finite eval_loss.", id="none"
        ),
    ],
)
def test_the_winner_is_named_with_what_is_known_of_noise(changes, said):
    assert reach(**changes).sentences[0] == said


@pytest.mark.parametrize(
    ("forms", "said"),
    [
        pytest.param(
            {"unquantized": serve(0.38, 0.13), "merged": serve(0.5, 0.25)},
            "Serve on the fp4 base: unquantized its loss is 52% higher, merged 100% higher.",
            id="worse",
        ),
        pytest.param(
            {"merged": serve(0.2, -0.05), "requantized": serve(0.3, 0.05)},
            "Serve merged: its loss is 20% lower than on the fp4 base.",
            id="better",
        ),
        pytest.param(
            {"merged": serve(0.25, 0.001)},
            "Serve it in any measured form (merged too): none differs beyond noise.",
            id="equal",
        ),
    ],
)
def test_the_form_to_serve_follows_from_intervals(forms, said):
    assert reach(forms={"trained": {"loss": 0.25}, **forms}).sentences[-1] == said


def test_a_form_without_an_interval_gives_no_advice():
    verdict = reach(forms={"trained": {"loss": 0.25}, "merged": {"loss": 0.5}})
    assert "Serve" not in verdict.text


def test_a_loss_is_told_where_no_row_is_ever_all_right():
    comparisons = (compare("accuracy", 0.0, 0.0), compare("loss", 3.1, 0.25))
    verdict = reach(comparisons=comparisons, has_answers=False)
    assert verdict.sentences[1] == "Test loss 0.2500, base 3.1000."
    assert verdict.warnings == ()


def test_doubtful_winners_get_warnings():
    assert reach().warnings == ()
    worse = reach(comparisons=(compare("accuracy", 0.0, 0.0), compare("loss", 3.1, 3.2)))
    assert worse.warnings == (
        "the adapter is no better than the bare base: test loss 3.2000, base 3.1000.",
        "the adapter is right on none of the test rows.",
    )
    (endless,) = reach(generated=Generated(accuracy=0.9, exact_match=0.1)).warnings
    assert "10.0% of the completions" in endless


def test_more_is_better_where_the_objective_says_so():
    less = reach(metric="eval_accuracy", mode="max", comparisons=(compare("accuracy", 0.7, 0.6),))
    assert "no better than the bare base: test accuracy 0.6000" in less.warnings[0]
