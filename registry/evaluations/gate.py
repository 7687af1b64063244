"""The promotion gate: a candidate becomes champion if it beats the champion on the same rows.

The improvement must be larger than chance explains: its interval lies wholly above the required
minimum.

The chance of a wrong promotion, (1 - confidence) / 2, holds for all challenges of one champion on
the same rows together. Challenge number k gets the share 1 / (k (k + 1)) of this chance; the
shares add up to at most 1 (alpha spending with an open end). The ledger counts the challenges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from registry.errors import RuleError
from registry.evaluations.evaluation import Evaluation
from registry.evaluations.improvement import improvement_interval, least_rows
from registry.evaluations.significance import Interval, obstacle
from registry.versions.versions import AdapterVersion
from trainables.contract import SERVING_FORMS

LEAST_ROWS = 5
"""Smallest number of rows to compare two versions on."""

_Evaluated = tuple[AdapterVersion, Sequence[Evaluation]]
"""A version with its evaluations, newest first."""


@dataclass(frozen=True, kw_only=True)
class PromotionRule:
    """Conditions for a candidate to become champion.

    >>> PromotionRule(metric="accuracy", min_improvement=0.02).confidence
    0.95

    Attributes:
        metric: Measure to compare by.
        form: Serving form in which both versions must have been evaluated.
        min_improvement: Smallest improvement that counts, in the measure's unit.
        confidence: Level of the improvement's interval, which must lie above `min_improvement`.
            It holds for all challenges of one champion on the same rows together, so the interval
            of one challenge has a higher level.
    """

    metric: str = "loss"
    form: str = "trained"
    min_improvement: float = 0.0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not self.metric:
            raise RuleError("metric: got ''; allowed: the name of a measure. Write loss.")
        if self.form not in SERVING_FORMS:
            raise RuleError(
                f"form: got {self.form!r}; allowed: {', '.join(SERVING_FORMS)}. Choose the form "
                "that is served."
            )
        if not (math.isfinite(self.min_improvement) and self.min_improvement >= 0):
            raise RuleError(
                f"min_improvement: got {self.min_improvement}; allowed: 0 and above, in the "
                "measure's unit. Write 0 for any improvement."
            )
        if not 0 < self.confidence < 1:
            raise RuleError(
                f"confidence: got {self.confidence}; allowed: between 0 and 1. Write 0.95."
            )


@dataclass(frozen=True, kw_only=True)
class PromotionDecision:
    """The decision on a candidate, with its reason.

    Attributes:
        promoted: Whether the candidate is the champion now.
        reason: One sentence with the numbers.
        interval: Interval of the improvement; above zero is better. `None` without a comparison.
    """

    promoted: bool
    reason: str
    interval: Interval | None = None


def decide(
    candidate: AdapterVersion,
    champion: AdapterVersion | None,
    candidate_evaluations: Sequence[Evaluation],
    champion_evaluations: Sequence[Evaluation],
    rule: PromotionRule,
    *,
    challenge: int = 1,
) -> PromotionDecision:
    """The decision on a candidate from evaluations, newest first; moves no alias.

    Args:
        candidate: The version to decide on.
        champion: The present champion, if there is one.
        candidate_evaluations: Of the candidate.
        champion_evaluations: Of the champion.
        rule: Conditions for promotion.
        challenge: Place of this comparison among all of this champion on the same rows, from 1.
    """
    if candidate.retired:
        return _refused(f"{candidate.ref} was retired: {candidate.retired}")
    if champion is None:
        return PromotionDecision(promoted=True, reason=f"{candidate.name} had no champion")
    if champion.version == candidate.version:
        return PromotionDecision(promoted=True, reason=f"{candidate.ref} is the champion already")
    return _decide_by_evaluations(
        (candidate, candidate_evaluations), (champion, champion_evaluations), rule, challenge
    )


def comparable_pairs(
    candidate: Sequence[Evaluation], champion: Sequence[Evaluation], rule: PromotionRule
) -> list[tuple[Evaluation, Evaluation]]:
    """Comparable evaluations of candidate and champion: test rows first, newest first.

    Validation rows count only for a candidate without any other evaluation: the search chose the
    candidate by these rows.
    """
    usable = [one for one in candidate if one.form == rule.form and rule.metric in one.measures]
    held_out = [one for one in usable if one.data.name != "validation"] or usable
    return [
        (new, old)
        for new in sorted(held_out, key=lambda one: one.data.name != "test")
        for old in champion
        if old.form == rule.form and not obstacle(new, old, rule.metric)
    ]


def _decide_by_evaluations(
    candidate: _Evaluated, champion: _Evaluated, rule: PromotionRule, challenge: int
) -> PromotionDecision:
    pairs = comparable_pairs(candidate[1], champion[1], rule)
    if not pairs:
        available = "; ".join(_available(*one, rule) for one in (candidate, champion))
        return _refused(f"not comparable by {rule.metric} in the form {rule.form}: {available}")
    new, old = pairs[0]
    value, previous = new.measures[rule.metric].value, old.measures[rule.metric].value
    values = (
        f"{rule.metric} {value:.6g} of {candidate[0].ref} against {previous:.6g} of "
        f"{champion[0].ref}"
    )
    if not math.isfinite(value):
        return _refused(f"{values}: the candidate has no finite value")
    if not math.isfinite(previous):
        return PromotionDecision(promoted=True, reason=f"{values}, which has no finite value")
    if new.data.rows < LEAST_ROWS:
        return _refused(
            f"{values}: {new.data.rows} {new.data.name} rows are too few to compare on; at least "
            f"{LEAST_ROWS} are needed"
        )
    confidence = confidence_of(challenge, rule)
    found = improvement_interval(new, old, rule.metric, confidence=confidence)
    is_better = is_above(found.low, rule.min_improvement, max(abs(value), abs(previous)))
    reason = (
        f"{values}: better by {found.estimate:.4g}, {_percent(confidence)} interval "
        f"{found.low:.4g} to {found.high:.4g} ({found.method}), which "
        f"{'lies above' if is_better else 'does not lie above'} {rule.min_improvement:g} "
        f"({new.data.rows} {new.data.name} rows, form {rule.form}); challenge {challenge} of "
        f"{champion[0].ref} on these rows, {_percent(rule.confidence)} over all of them"
    )
    if math.isinf(found.low):
        reason += f"; for challenge {challenge}, at least {least_rows(confidence)} rows are needed"
    return PromotionDecision(promoted=is_better, reason=reason, interval=found)


def confidence_of(challenge: int, rule: PromotionRule) -> float:
    """Level of a challenge's interval; all challenges together keep the rule's level."""
    return 1 - (1 - rule.confidence) / (challenge * (challenge + 1))


def is_above(low: float, minimum: float, size: float) -> bool:
    """Whether the lower end of an improvement lies above a minimum by more than rounding.

    An improvement of 0.1 on each row does not lie above 0.1, however the last bits are rounded.

    Args:
        low: Lower end.
        minimum: Value to lie above.
        size: Size of the numbers that the improvement is a difference of.
    """
    return low > minimum + 1e-9 * size


def _percent(confidence: float) -> str:
    return f"{100 * confidence:.6g} %"


def _available(
    version: AdapterVersion, evaluations: Sequence[Evaluation], rule: PromotionRule
) -> str:
    """Which evaluations a version has in the rule's form, for a message."""
    in_form = [one for one in evaluations if one.form == rule.form]
    usable = []
    for data in (one.data for one in in_form if rule.metric in one.measures):
        digests = {"tokenizer": data.tokenizer_digest, "template": data.template_digest}
        known = [f"{key} {value}" for key, value in digests.items() if value is not None]
        conditions = ", ".join([f"{data.rows} rows", f"max_tokens {data.max_tokens}", *known])
        usable.append(f"{data.name} data {data.digest} ({conditions})")
    if usable:
        return f"{version.ref} has {' and '.join(usable)}"
    measures = {name for one in in_form for name in one.measures}
    others = f", only {', '.join(sorted(measures))}" if measures else ""
    return f"{version.ref} has no such evaluation{others}"


def _refused(reason: str) -> PromotionDecision:
    return PromotionDecision(promoted=False, reason=reason)
