"""Sections of a sweep file have defaults for missing fields."""

from typing import Any

import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.spec.sections import ObjectiveSpec


@pytest.mark.parametrize(
    ("metric", "mode"), [("eval_loss", "min"), ("train_loss", "min"), ("eval_accuracy", "max")]
)
def test_omitted_mode_fits_the_metric(metric: Any, mode: str) -> None:
    assert ObjectiveSpec(metric=metric).mode == mode


def test_direction_against_the_metric_is_refused() -> None:
    with pytest.raises(
        SweepSpecError, match=r"^objective\.mode: got 'min'.*max for eval_accuracy"
    ):
        ObjectiveSpec(metric="eval_accuracy", mode="min")
