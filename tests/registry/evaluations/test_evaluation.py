"""An evaluation's document is believed only as far as it agrees with itself."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from registry.errors import IntegrityError
from registry.evaluations.evaluation import Evaluation, read_evaluation
from tests.support.bundles import new_document

NewDocument = Callable[..., dict[str, Any]]


def test_document_is_read_whole() -> None:
    found = Evaluation.from_document(new_document([1.0, 2.0, 3.0]))
    assert (found.adapter, found.form, found.data.rows) == ("sha256:a1", "trained", 3)
    assert found.measures["loss"].value == pytest.approx(1.0)
    assert found.measures["perplexity"].value == pytest.approx(math.e)
    assert found.measures["bits_per_byte"].value == pytest.approx(1 / 3 / math.log(2))
    assert found.examples["prediction"] == ("text 0", "text 1", "text 2")
    assert (found.peak_memory_gib, found.model_bytes) == (0.5, 123456.0)
    of, per = found.columns("loss")
    assert (of.tolist(), per.tolist()) == ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    assert found.columns("exact_match")[1].tolist() == [1.0, 1.0, 1.0]


def test_digest_is_over_what_was_measured_and_not_over_what_came_of_it() -> None:
    one = Evaluation.from_document(new_document([1.0, 2.0])).digest
    slower = {**new_document([1.5, 2.0]), "seconds": 9.0, "packages": {}}
    renamed = new_document([1.0, 2.0], data={"name": "held-out.jsonl"})
    assert Evaluation.from_document(slower).digest == one
    assert Evaluation.from_document(renamed).digest == one
    fewer_measures = new_document([1.0, 2.0])
    del fewer_measures["measures"]["mean_loss"]
    others = [
        new_document([1.0, 2.0], adapter="sha256:a2"),
        new_document([1.0, 2.0], form="merged"),
        new_document([1.0, 2.0], data={"digest": "sha256:other"}),
        new_document([1.0, 2.0], data={"max_tokens": 128}),
        new_document([1.0, 2.0], generation={"max_new_tokens": 8}),
        fewer_measures,
    ]
    assert len({one, *(Evaluation.from_document(other).digest for other in others)}) == 7


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("format",), "lorchestra.evaluation/2", "format"),
        (("form",), "pruned", "pruned"),
        (("adapter",), None, "digests"),
        (("data",), None, "AttributeError"),
        (("data", "rows"), 4, "column loss_sum has 4 entries, not 3"),
        (("data", "rows"), 0, "rows"),
        (("examples", "loss_sum"), [1.0, 2.0], "column loss_sum has 3 entries, not 2"),
        (("examples", "loss_sum"), ["1.0", 2.0, 0.5], "entry '1.0'"),
        (("examples", "answer_tokens"), None, "TypeError"),
        (("measures", "loss", "of"), "nothing", "no column 'nothing'"),
        (("measures", "loss", "per"), "nothing", "no column 'nothing'"),
        (("measures", "loss", "scale"), "log", "scale"),
        (("measures", "loss", "mode"), "best", "mode"),
        (("measures", "loss", "value"), 0.01, r"value 0\.01; allowed: 0\.58"),
        (("measures", "loss", "value"), None, "value nan"),
        (("measures", "loss", "value"), "0.5", "'0.5' where a number belongs"),
        (("measures", "a:b"), {"of": "loss_sum"}, "value"),
        (("seconds",), "fast", "'fast'"),
    ],
)
def test_document_that_does_not_agree_with_itself_is_refused(
    path: tuple[str, ...], value: object, problem: str
) -> None:
    document = new_document([1.0, 2.0, 0.5])
    record = document
    for key in path[:-1]:
        record = record[key]
    record[path[-1]] = value
    with pytest.raises(IntegrityError, match=problem):
        Evaluation.from_document(document)


def test_name_that_mlflow_cannot_hold_is_refused() -> None:
    document = new_document()
    document["measures"]["f1 (macro)"] = document["measures"].pop("exact_match")
    with pytest.raises(IntegrityError, match="name for a metric"):
        Evaluation.from_document(document)


@pytest.mark.parametrize("lost", [None, math.nan])
def test_row_without_a_number_leaves_a_measure_without_value(lost: float | None) -> None:
    document = new_document([1.0, math.nan])
    document["examples"]["loss_sum"][1] = lost
    document["measures"]["loss"]["value"] = lost
    found = Evaluation.from_document(document)
    assert math.isnan(found.measures["loss"].value)
    assert math.isfinite(found.measures["exact_match"].value)


def test_evaluation_without_examples_says_so() -> None:
    found = read_evaluation({**new_document(), "examples": {}})
    assert found.measures["loss"].value > 0
    with pytest.raises(IntegrityError, match="none were read"):
        found.columns("loss")
    with pytest.raises(IntegrityError, match="allowed: accuracy, bits_per_byte"):
        found.columns("f1")
