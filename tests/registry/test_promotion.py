"""A candidate becomes champion only when it was measured to be better on the same test data."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from registry.adapters import AdapterVersion, get, list_adapters, register, set_alias
from registry.promotion import promote

Build = Callable[..., Path]


@pytest.fixture
def add(tracking_uri: str, new_bundle: Build, name: str) -> Callable[..., AdapterVersion]:
    def build(
        seed: int, loss: float, test: str | None = "sha256:cc", **more: object
    ) -> AdapterVersion:
        data: Mapping[str, object] = {"test": test, "prompt_style": "plain", **more}
        bundle = new_bundle(seed=seed, metrics={"test_loss": loss}, data=data)
        return register(bundle, name, tracking_uri=tracking_uri)

    return build


def aliases(tracking_uri: str, name: str) -> dict[int, tuple[str, ...]]:
    return {v.version: v.aliases for v in list_adapters(tracking_uri=tracking_uri, name=name)}


def test_first_version_is_promoted_and_stays(
    add: Callable[..., AdapterVersion], tracking_uri: str, name: str
) -> None:
    first = add(1, 1.5)
    decision = promote(first, metric="test_loss", mode="min", tracking_uri=tracking_uri)
    assert decision.promoted
    assert "no champion" in decision.reason
    again = promote(first, metric="test_loss", mode="min", tracking_uri=tracking_uri)
    assert again.promoted
    assert "already" in again.reason
    assert aliases(tracking_uri, name) == {1: ("champion",)}


@pytest.mark.parametrize(
    ("mode", "old", "new", "promoted"),
    [
        ("min", 1.5, 1.0, True),
        ("min", 1.5, 2.0, False),
        ("min", 1.5, 1.5, False),
        ("min", 1.5, math.nan, False),
        ("min", math.nan, 1.5, True),
        ("max", 1.5, 2.0, True),
        ("max", 1.5, math.inf, False),
    ],
)
def test_better_candidate_takes_the_alias(
    add: Callable[..., AdapterVersion],
    tracking_uri: str,
    name: str,
    mode: str,
    old: float,
    new: float,
    promoted: bool,
) -> None:
    options = {"metric": "test_loss", "mode": mode, "tracking_uri": tracking_uri}
    promote(add(1, old), **options)  # type: ignore[arg-type]
    decision = promote(add(2, new), **options)  # type: ignore[arg-type]
    assert decision.promoted == promoted
    assert f"{name}/2" in decision.reason
    expected = {1: (), 2: ("champion",)} if promoted else {1: ("champion",), 2: ("challenger",)}
    assert aliases(tracking_uri, name) == expected


@pytest.mark.parametrize("test", ["sha256:other", None])
def test_other_test_data_is_not_compared(
    add: Callable[..., AdapterVersion], tracking_uri: str, name: str, test: str | None
) -> None:
    promote(add(1, 1.5), metric="test_loss", mode="min", tracking_uri=tracking_uri)
    decision = promote(
        add(2, 0.1, test), metric="test_loss", mode="min", tracking_uri=tracking_uri
    )
    assert not decision.promoted
    assert "not comparable" in decision.reason
    assert get(f"{name}@champion", tracking_uri=tracking_uri).version == 1


@pytest.mark.parametrize(
    ("field", "old", "new"),
    [
        ("max_tokens", 256, 512),
        ("tokenizer_digest", "sha256:dd", "sha256:ee"),
        ("template_digest", "sha256:aa", "sha256:bb"),
        ("template_digest", None, "sha256:bb"),
    ],
)
def test_rows_made_into_other_tokens_are_not_compared(
    add: Callable[..., AdapterVersion],
    tracking_uri: str,
    name: str,
    field: str,
    old: object,
    new: object,
) -> None:
    promote(add(1, 1.5, **{field: old}), metric="test_loss", mode="min", tracking_uri=tracking_uri)
    decision = promote(
        add(2, 0.1, **{field: new}), metric="test_loss", mode="min", tracking_uri=tracking_uri
    )
    assert not decision.promoted
    assert f"not comparable: {name}/2 has data.{field} {new}" in decision.reason
    assert get(f"{name}@champion", tracking_uri=tracking_uri).version == 1


def test_validation_metric_needs_the_same_validation_rows(
    new_bundle: Build, tracking_uri: str, name: str
) -> None:
    decisions = []
    for seed, rows in enumerate(["sha256:bb", "sha256:bb", "sha256:other"]):
        bundle = new_bundle(
            seed=seed,
            metrics={"eval_loss": 1.0 - seed / 10},
            data={"test": None, "validation": rows, "prompt_style": "plain"},
        )
        version = register(bundle, name, tracking_uri=tracking_uri)
        decisions.append(
            promote(version, metric="eval_loss", mode="min", tracking_uri=tracking_uri).promoted
        )
    assert decisions == [True, True, False]


def test_unmeasured_candidate_is_not_promoted(
    add: Callable[..., AdapterVersion], tracking_uri: str
) -> None:
    promote(add(1, 1.5), metric="f1", mode="max", tracking_uri=tracking_uri)
    decision = promote(add(2, 0.1), metric="f1", mode="max", tracking_uri=tracking_uri)
    assert not decision.promoted
    assert "has no f1" in decision.reason


def test_promoted_challenger_is_no_challenger_any_more(
    add: Callable[..., AdapterVersion], tracking_uri: str, name: str
) -> None:
    promote(add(1, 1.5), metric="test_loss", mode="min", tracking_uri=tracking_uri)
    promote(add(2, 2.0), metric="test_loss", mode="min", tracking_uri=tracking_uri)
    measured_again = add(2, 1.0)
    promote(measured_again, metric="test_loss", mode="min", tracking_uri=tracking_uri)
    assert aliases(tracking_uri, name) == {1: (), 2: ("champion",)}


def test_a_promotion_that_was_cut_short_is_finished_by_the_next(
    add: Callable[..., AdapterVersion], tracking_uri: str, name: str
) -> None:
    version = add(1, 1.5)
    for alias in ("challenger", "champion"):  # killed before the first of them was dropped
        version = set_alias(version.ref, alias, tracking_uri=tracking_uri)
    promote(version, metric="test_loss", mode="min", tracking_uri=tracking_uri)
    assert aliases(tracking_uri, name) == {1: ("champion",)}
