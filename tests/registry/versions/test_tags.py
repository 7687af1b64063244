"""A version has about ten tags of its own; all facts come back from them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from registry import Registry
from registry.versions.tags import FACTS_TAG, fold, merge, unfold

MANIFEST = {"base.model": "m", "seed": "7", "metric.eval_loss": "1.5", "package.torch": "2"}


def test_facts_that_are_folded_come_back() -> None:
    given = {"team": "a", "seed": "9", "lorchestra.sweep": "ab", "finals.runs": "2"}
    folded = fold(MANIFEST, given)
    assert folded.keys() == {"base.model", "metric.eval_loss", "team", "seed", FACTS_TAG}
    assert unfold(folded) == {**given, **MANIFEST}


def test_new_facts_are_added_to_old_ones() -> None:
    old = fold({"seed": "7", "steps": "80"}, {})
    assert unfold(merge(old, fold({"seed": "8"}, {}))) == {"seed": "8", "steps": "80"}
    assert merge(old, {"team": "a"}) == {"team": "a"}


def test_tags_of_an_earlier_release_are_read_as_they_are() -> None:
    assert unfold(MANIFEST) == MANIFEST


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"seed": 7}'])
def test_a_tag_of_facts_that_somebody_changed_hides_no_other_tag(text: str) -> None:
    assert unfold({"base.model": "m", FACTS_TAG: text}) == {"base.model": "m"}


def test_a_version_has_about_ten_tags_in_mlflow_and_tells_all_facts(
    adapters: Registry, client: MlflowClient, new_bundle: Callable[..., Path], name: str
) -> None:
    sweep = {"lorchestra.sweep": "ab", "lorchestra.trial": "5", "lorchestra.rank": "1"}
    metrics = {"eval_loss": 1.0, "test_loss": 2.0, "tokens_per_s": 3.0, "host_s": 4.0}
    version = adapters.register(new_bundle(metrics=metrics), name, tags=sweep)
    assert len(client.get_model_version(name, "1").tags) <= 14
    assert version.metrics == metrics
    assert {**sweep, "seed": "7", "steps": "80"}.items() <= version.tags.items()
