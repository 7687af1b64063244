"""Versions side by side, on a real database."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry import Registry
from registry.errors import AdapterNotFoundError, RefError
from registry.evaluations.comparison import TRAINING
from registry.versions.versions import AdapterVersion
from tests.support.bundles import new_document, write_manifest

Build = Callable[..., Path]
NewDocument = Callable[..., dict[str, Any]]

GOOD = [0.1, 0.2, 0.15, 0.1, 0.3, 0.2, 0.1, 0.15]
BAD = [one + 1 for one in GOOD]


@pytest.fixture
def versions(adapters: Registry, new_bundle: Build, name: str) -> list[AdapterVersion]:
    """Two versions that differ in rank and seed."""
    metrics = {"eval_loss": 1.5, "test_loss": 1.25, "peak_memory_gib": 2.0, "tokens_per_s": 9.0}
    lora = {
        "rank": 16, "alpha": 8.0, "targets": ["q_proj"], "dropout": 0.0, "rslora": False,
        "init": "kaiming", "scaling": 0.5,
    }  # fmt: skip
    bundles = [new_bundle(1, metrics), new_bundle(2, metrics, lora=lora)]
    return [adapters.register(bundle, name) for bundle in bundles]


@pytest.fixture
def evaluate(adapters: Registry) -> Callable[..., None]:
    def record(version: AdapterVersion, losses: list[float], **more: Any) -> None:
        document = new_document(losses, adapter=version.digest, **more)
        adapters.record_evaluation(version.ref, document)

    return record


def refs_of(versions):
    return [str(version.ref) for version in versions]


def test_identity_holds_what_differs_apart_from_what_does_not(adapters, versions):
    found = adapters.compare(refs_of(versions))
    assert found.adapters == tuple(refs_of(versions))
    assert found.differing["lora.rank"] == ("4", "16")
    assert found.differing["seed"] == ("1", "2")
    assert set(found.differing) == {"lora.rank", "lora.targets", "seed"}
    assert found.shared["base.model"] == "owner/name"
    assert found.shared["optim.learning_rate"] == "0.001"
    assert not any(key.startswith("lorchestra") for key in (*found.shared, *found.differing))


def test_scores_have_intervals_and_differences_say_who_is_better(adapters, versions, evaluate):
    first, second = versions
    evaluate(first, BAD)
    evaluate(second, GOOD)
    names = refs_of(versions)
    found = adapters.compare(names)
    losses = {one.adapter: one for one in found.scores if one.measure == "loss"
              and not one.is_recorded}  # fmt: skip
    assert set(losses) == set(names)
    for one in losses.values():
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.value < one.high
    (loss,) = (one for one in found.differences if one.measure == "loss")
    assert loss.interval is not None
    assert loss.interval.estimate == pytest.approx(-0.5)  # one nat per row of two tokens
    assert loss.is_clear
    assert loss.better == names[1]
    assert (loss.form, loss.data, loss.reason) == ("trained", "test", "")
    (accuracy,) = (one for one in found.differences if one.measure == "accuracy")
    assert not accuracy.is_clear
    assert accuracy.better is None
    turned = adapters.compare(names[::-1])
    (loss,) = (one for one in turned.differences if one.measure == "loss")
    assert loss.interval.estimate == pytest.approx(0.5)
    assert loss.better == names[1]


def test_a_version_that_was_not_evaluated_has_what_was_recorded(adapters, versions, evaluate):
    first, second = versions
    evaluate(first, GOOD)
    found = adapters.compare(refs_of(versions))
    recorded = [one for one in found.scores if one.adapter == str(second.ref)]
    assert [(one.data, one.measure, one.value) for one in recorded] == [
        ("test", "loss", 1.25),
        ("validation", "loss", 1.5),
    ]
    assert all(one.is_recorded and one.low is None and one.rows is None for one in recorded)
    assert recorded[0].digest == "sha256:cc"
    assert any(note.startswith(f"{second.ref} was not evaluated") for note in found.notes)
    (difference,) = found.differences
    assert difference.interval is None
    assert f"no evaluation of {second.ref}" in difference.reason
    ours = [one for one in found.scores if one.adapter == str(first.ref) and one.is_recorded]
    assert [(one.data, one.measure) for one in ours] == [("validation", "loss")]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"data": {"digest": "sha256:other", "name": "more.jsonl"}}, "different data: "),
        ({"form": "merged"}, "no rows in the same form"),
    ],
    ids=["rows", "form"],
)
def test_pairs_without_anything_in_common_say_why(adapters, versions, evaluate, other, reason):
    evaluate(versions[0], GOOD)
    evaluate(versions[1], GOOD, **other)
    (difference,) = adapters.compare(refs_of(versions)).differences
    assert difference.reason.startswith(reason)
    assert (difference.interval, difference.measure) == (None, "")


def test_measures_per_token_need_the_same_tokens_and_others_do_not(adapters, versions, evaluate):
    evaluate(versions[0], GOOD)
    evaluate(versions[1], GOOD, data={"tokenizer_digest": "sha256:another"})
    found = adapters.compare(refs_of(versions))
    by_measure = {one.measure: one for one in found.differences}
    loss = by_measure["loss"]
    assert loss.interval is None
    assert f"{versions[1].ref} has tokenizer_digest sha256:another" in loss.reason
    assert by_measure["bits_per_byte"].interval is not None


def test_the_newest_evaluation_counts(adapters, versions, evaluate):
    evaluate(versions[0], BAD, generation={"max_new_tokens": 8})
    evaluate(versions[0], GOOD, generation={"max_new_tokens": 16})
    found = adapters.compare(refs_of(versions))
    (loss,) = (one for one in found.scores
               if one.measure == "loss" and one.adapter == str(versions[0].ref)
               and not one.is_recorded)  # fmt: skip
    assert loss.value == pytest.approx(sum(GOOD) / 16)


def test_costs_are_of_training_and_of_each_evaluation(adapters, versions, evaluate):
    evaluate(versions[0], GOOD, form="merged")
    evaluate(versions[0], GOOD)
    costs = adapters.compare(refs_of(versions)).costs
    assert [(one.adapter, one.form) for one in costs] == [
        (str(versions[0].ref), TRAINING),
        (str(versions[0].ref), "trained"),
        (str(versions[0].ref), "merged"),
        (str(versions[1].ref), TRAINING),
    ]
    assert costs[0].peak_memory_gib == 2.0
    assert (costs[1].adapter_bytes, costs[1].seconds, costs[1].data) == (1234.0, 1.5, "test")


def test_the_frame_has_a_row_for_each_score(adapters, versions, evaluate):
    evaluate(versions[0], GOOD)
    found = adapters.compare(refs_of(versions))
    frame = found.to_frame()
    assert len(frame) == len(found.scores)
    losses = frame[(frame["measure"] == "loss") & (frame["data"] == "test")]
    assert losses["adapter_bytes"].tolist()[0] == 1234.0
    assert math.isnan(losses["low"].tolist()[1])
    assert frame["value"].dtype == "float64"


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ([], "got no adapter; allowed: two or more"),
        (["{name}/1"], "allowed: two or more"),
        (["{name}/2", "{name}@champion"], "which are both"),
    ],
    ids=["none", "one", "the same twice"],
)
def test_fewer_than_two_versions_are_refused(adapters, versions, name, refs, message):
    adapters.set_alias(versions[1].ref, "champion")
    with pytest.raises(RefError, match=message):
        adapters.compare([ref.format(name=name) for ref in refs])


def test_unknown_versions_and_impossible_levels_are_refused(adapters, versions, name):
    with pytest.raises(AdapterNotFoundError, match=f"{name}/9"):
        adapters.compare([f"{name}/1", f"{name}/9"])
    with pytest.raises(RefError, match="confidence: got 95"):
        adapters.compare(refs_of(versions), confidence=95)


def test_the_same_adapter_under_two_names_is_compared_and_said(
    adapters, versions, new_bundle, name
):
    metrics = {"test_loss": 1.25}
    twin = adapters.register(new_bundle(1, metrics), f"{name}-twin")
    found = adapters.compare([versions[0].ref, twin.ref])
    assert found.differing == {}
    assert f"{versions[0].ref} and {twin.ref} are the same adapter." in found.notes


def test_an_earlier_step_is_compared_with_the_end_of_its_training(
    adapters, new_bundle, tmp_path, name
):
    bundle = new_bundle()
    earlier = tmp_path / "step-20"
    shutil.copytree(bundle, earlier)
    digest = write_manifest(earlier, steps=20)["digest"]
    adapters.register(bundle, name, checkpoints={20: earlier})
    step = f"{name}/1@step-20"
    adapters.record_evaluation(step, new_document(BAD, adapter=digest))
    found = adapters.compare([step, f"{name}/1"])
    assert found.adapters == (step, f"{name}/1")
    assert found.differing == {"steps": ("20", "80")}
    scores = {(one.adapter, one.is_recorded) for one in found.scores}
    assert scores == {(step, False), (f"{name}/1", True)}  # metrics are of the end
    (difference,) = found.differences
    assert f"no evaluation of {name}/1" in difference.reason
    with pytest.raises(AdapterNotFoundError, match="step-20"):
        adapters.compare([f"{name}/1@step-30", f"{name}/1"])
