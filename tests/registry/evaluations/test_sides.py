"""A side of a comparison has the scores and costs of its version, or of an earlier step."""

from dataclasses import replace
from datetime import UTC, datetime

from registry import AdapterRef
from registry.evaluations.sides import Side, form_place
from registry.versions.versions import AdapterVersion
from trainables.contract import SERVING_FORMS

VERSION = AdapterVersion(
    name="a",
    version=1,
    digest="sha256:1",
    tags={"data.test": "sha256:rows"},
    metrics={"test_loss": 0.5, "eval_accuracy": 0.9, "train_loss": 0.1, "peak_memory_gib": 2.0},
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)
SIDE = Side(ref=VERSION.ref, version=VERSION, evaluations=[])


def test_recorded_metrics_of_test_and_validation_rows_are_scores() -> None:
    scores = [(one.data, one.measure, one.mode, one.digest) for one in SIDE.scores(0.95)]
    assert scores == [
        ("test", "loss", "min", "sha256:rows"),
        ("validation", "accuracy", "max", ""),
    ]


def test_the_cost_of_training_is_a_cost_of_the_version() -> None:
    (cost,) = SIDE.costs()
    assert cost.form == "training"
    assert cost.peak_memory_gib == 2.0


def test_an_earlier_step_has_no_numbers_of_the_end_of_training() -> None:
    earlier = replace(SIDE, ref=AdapterRef(name="a", version=1, step=4))
    assert list(earlier.scores(0.95)) == []
    assert list(earlier.costs()) == []


def test_forms_have_the_order_of_the_contract_and_unknown_forms_come_last() -> None:
    assert sorted([*reversed(SERVING_FORMS), "new"], key=form_place) == [*SERVING_FORMS, "new"]
