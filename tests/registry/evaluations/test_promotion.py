"""A candidate becomes champion only when it is measured to be better by more than chance."""

import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry import Registry
from registry.errors import RefError, RuleError
from registry.evaluations.gate import PromotionDecision, PromotionRule
from registry.versions.versions import AdapterVersion
from tests.support.bundles import new_document

Build = Callable[..., Path]
NewDocument = Callable[..., dict[str, Any]]
Losses = Sequence[float] | float | None
RULE = PromotionRule()


def rows_of(mean: float, count: int = 30) -> list[float]:
    """Losses of rows that are hard for everybody alike."""
    hardness = np.random.default_rng(0).gamma(2.0, 0.5, count)
    return [float(loss) for loss in hardness - hardness.mean() + 2 * mean]


@pytest.fixture
def add(adapters: Registry, new_bundle: Build, name: str) -> Callable[..., AdapterVersion]:
    """Registers a version and records an evaluation of it."""

    def build(seed: int, losses: Losses = None, **more: Any) -> AdapterVersion:
        version = adapters.register(new_bundle(seed=seed), name)
        if losses is not None:
            rows = rows_of(losses) if isinstance(losses, float) else losses
            document = new_document(rows, adapter=version.digest, **more)
            adapters.record_evaluation(version.ref, document)
        return version

    return build


@pytest.fixture
def judge(adapters: Registry) -> Callable[..., PromotionDecision]:
    def promote_it(
        version: AdapterVersion, rule: PromotionRule = RULE, **more: Any
    ) -> PromotionDecision:
        return adapters.promote(version.ref, rule, **more)

    return promote_it


Add = Callable[..., AdapterVersion]
Judge = Callable[..., PromotionDecision]


def aliases(adapters: Registry, name: str) -> dict[int, tuple[str, ...]]:
    return {v.version: v.aliases for v in adapters.versions(name=name)}


def test_first_version_is_promoted_and_stays(
    add: Add, judge: Judge, adapters: Registry, name: str
) -> None:
    first = add(1, 1.0)
    decision = judge(first)
    assert decision.promoted
    assert "no champion" in decision.reason
    again = judge(first)
    assert again.promoted
    assert "already" in again.reason
    assert aliases(adapters, name) == {1: ("champion",)}
    assert [move.why for move in adapters.history(name)] == [decision.reason]


@pytest.mark.parametrize(
    ("old", "new", "promoted"),
    [
        pytest.param(1.0, 0.8, True, id="better"),
        pytest.param(1.0, 1.2, False, id="worse"),
        pytest.param(1.0, 1.0, False, id="same"),
        pytest.param(1.0, [1.0, math.nan], False, id="diverged"),
        pytest.param([1.0, math.nan], 1.0, True, id="against-diverged"),
        pytest.param([1.0, math.nan], [math.nan, 1.0], False, id="both-diverged"),
    ],
)
def test_better_candidate_takes_the_alias(
    add: Add, judge: Judge, adapters: Registry, name: str, old: Losses, new: Losses, promoted: bool
) -> None:
    rows = {"rows": 30}
    pad = [1.0] * 28
    judge(add(1, old if isinstance(old, float) else [*old, *pad], data=rows))
    decision = judge(add(2, new if isinstance(new, float) else [*new, *pad], data=rows))
    assert decision.promoted == promoted
    assert f"{name}/2" in decision.reason
    expected = {1: (), 2: ("champion",)} if promoted else {1: ("champion",), 2: ("challenger",)}
    assert aliases(adapters, name) == expected


def test_better_by_chance_is_not_enough(add: Add, judge: Judge) -> None:
    noise = np.random.default_rng(1).normal(0.0, 1.0, 30)
    noise -= noise.mean()
    judge(add(1, 1.0))
    luck = add(2, [loss + 0.1 * n - 0.02 for loss, n in zip(rows_of(1.0), noise, strict=True)])
    decision = judge(luck)
    assert not decision.promoted
    assert decision.interval is not None
    assert decision.interval.low < 0 < decision.interval.estimate < decision.interval.high
    assert "does not lie above 0" in decision.reason
    assert judge(luck, PromotionRule(confidence=0.3)).promoted


def test_improvement_must_be_as_large_as_asked(add: Add, judge: Judge) -> None:
    judge(add(1, 1.0))
    better = add(2, 0.9)
    for too_much in (0.2, 0.1):
        assert not judge(better, PromotionRule(min_improvement=too_much)).promoted
    decision = judge(better, PromotionRule(min_improvement=0.05))
    assert decision.promoted
    assert "loss 0.9 of" in decision.reason
    assert (
        "better by 0.1, 97.5 % interval 0.1 to 0.1 (sign-flip test), which lies above 0.05 "
        "(30 test rows"
    ) in decision.reason


def test_few_rows_are_refused_with_the_number_that_is_needed(add: Add, judge: Judge) -> None:
    judge(add(1, [1.0] * 4))
    assert "4 test rows are too few to compare on; at least 5" in judge(add(2, [0.5] * 4)).reason


def test_rows_too_few_for_the_level_promote_nobody(add: Add, judge: Judge) -> None:
    judge(add(1, [1.0] * 6))
    better = add(2, [0.5] * 6)
    decision = judge(better)
    assert not decision.promoted
    assert "interval -inf to inf" in decision.reason
    assert decision.reason.endswith("for challenge 1, at least 7 rows are needed")
    assert judge(better, PromotionRule(confidence=0.9)).promoted


def test_each_challenge_of_a_champion_on_the_same_rows_needs_more(
    add: Add, judge: Judge, adapters: Registry, name: str
) -> None:
    judge(add(1, 1.0))
    for number, candidate in enumerate([add(2, 1.1), add(3, 1.2), add(4, 1.3)], start=1):
        for _ in range(2):  # the same comparison again is no new challenge
            decision = judge(candidate)
            assert f"challenge {number} of {name}/1 on these rows" in decision.reason
        assert decision.interval is not None
        assert decision.interval.confidence == pytest.approx(1 - 0.05 / number / (number + 1))
        assert f"challenge {number} of" in adapters.history(name)[-1].why
    assert "challenge 4 of" in judge(add(2), PromotionRule(metric="mean_loss")).reason
    other = {"digest": "sha256:other"}
    add(1, 1.0, data=other)
    assert "challenge 1 of" in judge(add(5, 1.0, data=other)).reason
    assert judge(add(6, 0.9)).promoted
    assert f"challenge 1 of {name}/6" in judge(add(2)).reason
    counted = [(one.champion, one.candidate, one.number) for one in adapters.challenges(name)]
    assert counted == [(1, 2, 1), (1, 3, 2), (1, 4, 3), (1, 2, 4), (1, 5, 1), (1, 6, 5), (6, 2, 1)]


def test_no_comparison_is_no_challenge(
    add: Add, judge: Judge, adapters: Registry, name: str
) -> None:
    judge(add(1, 1.0))
    judge(add(2), force=True)
    judge(add(3, [math.nan] * 30))
    assert adapters.challenges(name) == []


def test_more_is_better_where_the_measure_says_so(
    add: Add, judge: Judge, adapters: Registry
) -> None:
    versions = [add(1), add(2)]
    for version, right in zip(versions, ([0] * 20, [1] * 20), strict=True):
        document = new_document(rows_of(1.0, 20), adapter=version.digest)
        document["examples"]["exact_match"] = right
        document["measures"]["exact_match"]["value"] = float(right[0])
        adapters.record_evaluation(version.ref, document)
    rule = PromotionRule(metric="exact_match")
    assert judge(versions[0], rule).promoted
    decision = judge(versions[1], rule)
    assert decision.promoted
    assert decision.interval is not None
    assert decision.interval.estimate == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"digest": "sha256:other"}},
        {"data": {"max_tokens": 512}},
        {"data": {"tokenizer_digest": "sha256:ee"}},
        {"data": {"template_digest": "sha256:bb"}},
        {"form": "merged"},
        None,
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused_with_what_there_is(
    add: Add, judge: Judge, adapters: Registry, name: str, change: dict[str, Any] | None
) -> None:
    judge(add(1, 1.0))
    decision = judge(add(2) if change is None else add(2, 0.5, **change))
    assert not decision.promoted
    assert "not comparable by loss in the form trained" in decision.reason
    shown = {"form": "no such evaluation"} if change is None else change
    for value in shown.get("data", {"": "no such evaluation"}).values():
        assert str(value) in decision.reason
    assert aliases(adapters, name) == {1: ("champion",), 2: ("challenger",)}


def test_bits_per_byte_compare_between_tokenizers(add: Add, judge: Judge) -> None:
    judge(add(1, 1.0))
    other = add(2, 0.5, data={"tokenizer_digest": "sha256:ee", "max_tokens": 512})
    assert not judge(other).promoted
    assert judge(other, PromotionRule(metric="bits_per_byte")).promoted


def test_test_rows_come_before_validation_rows(add: Add, judge: Judge) -> None:
    validation = {"digest": "sha256:bb", "name": "validation"}
    judge(add(1, 1.0))
    add(1, 1.0, data=validation)
    both = add(2, 1.5)
    add(2, 0.5, data=validation)
    decision = judge(both)
    assert not decision.promoted
    assert "30 test rows" in decision.reason
    only_validation = add(3, 0.5, data=validation)
    assert "validation rows" in judge(only_validation).reason


def test_what_is_missing_is_measured_once_if_somebody_can(
    add: Add, judge: Judge, tracking_uri: str
) -> None:
    judge(add(1, 1.0))
    calls: list[list[int]] = []

    def reevaluate(versions: Sequence[AdapterVersion]) -> None:
        calls.append([version.version for version in versions])
        add(1, 1.0, data={"digest": "sha256:other"})

    assert judge(add(2, 0.5, data={"digest": "sha256:other"}), reevaluate=reevaluate).promoted
    assert calls == [[2, 1]]


def test_measuring_again_in_vain_is_not_tried_twice(add: Add, judge: Judge) -> None:
    judge(add(1, 1.0))
    calls: list[object] = []
    assert not judge(add(2), reevaluate=calls.append).promoted
    assert len(calls) == 1


def test_nothing_is_measured_when_there_is_no_need(add: Add, judge: Judge) -> None:
    calls: list[object] = []
    first = add(1)
    for version in (first, first):
        assert judge(version, reevaluate=calls.append).promoted
    assert calls == []


def test_force_promotes_without_comparing(
    add: Add, judge: Judge, adapters: Registry, name: str
) -> None:
    judge(add(1, 1.0))
    decision = judge(add(2), force=True, why="an incident")
    assert decision.promoted
    assert adapters.history(name)[-1].why == f"an incident: {decision.reason}"


@pytest.mark.parametrize("force", [False, True])
def test_retired_candidate_is_refused(
    add: Add, judge: Judge, adapters: Registry, name: str, force: bool
) -> None:
    judge(add(1, 1.0))
    version = add(2, 0.5)
    adapters.retire(version.ref, "leaks names")
    decision = judge(version, force=force)
    assert not decision.promoted
    assert "leaks names" in decision.reason
    assert aliases(adapters, name) == {1: ("champion",), 2: ()}


def test_promoted_challenger_is_no_challenger_any_more(
    add: Add, judge: Judge, adapters: Registry, name: str
) -> None:
    judge(add(1, 1.0))
    version = add(2, 0.9)
    judge(version, PromotionRule(min_improvement=0.5))
    judge(version)
    assert aliases(adapters, name) == {1: (), 2: ("champion",)}


def test_a_promotion_that_was_cut_short_is_finished_by_the_next(
    add: Add, judge: Judge, adapters: Registry, name: str
) -> None:
    version = add(1, 1.5)
    for alias in ("challenger", "champion"):  # killed before the first of them was dropped
        version = adapters.set_alias(version.ref, alias)
    judge(version)
    assert aliases(adapters, name) == {1: ("champion",)}


def test_step_is_no_candidate(add: Add, adapters: Registry, name: str) -> None:
    add(1)
    with pytest.raises(RefError, match=f"Write {name}/1"):
        adapters.promote(f"{name}/1@step-40", RULE)


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({"metric": ""}, "metric"),
        ({"form": "pruned"}, "form"),
        ({"min_improvement": -0.1}, "min_improvement"),
        ({"min_improvement": math.nan}, "min_improvement"),
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": 95}, "confidence"),
    ],
)
def test_rule_that_makes_no_sense_is_refused(rule: dict[str, Any], field: str) -> None:
    with pytest.raises(RuleError, match=f"^{field}: got"):
        PromotionRule(**rule)


def test_of_two_promotions_at_once_the_better_one_stays(
    add: Add, judge: Judge, adapters: Registry, name: str
) -> None:
    judge(add(1, 1.0))
    candidates = [add(2, 0.9), add(3, 0.8)]
    start = threading.Barrier(2)
    decisions: dict[int, PromotionDecision] = {}

    def run(version: AdapterVersion) -> None:
        start.wait()
        decisions[version.version] = judge(version)

    threads = [threading.Thread(target=run, args=[version]) for version in candidates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert decisions[3].promoted
    assert adapters.get(f"{name}@champion").version == 3
    moves = [move for move in adapters.history(name) if move.alias == "champion"]
    champions = [move.target for move in moves]
    assert champions == ([1, 2, 3] if decisions[2].promoted else [1, 3])
