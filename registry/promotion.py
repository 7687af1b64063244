"""Decide which version of an adapter is its champion; promoting is moving an alias.

A candidate takes the alias when it is better than the champion on the same rows by more than
chance explains: the interval of the improvement, from the paired bootstrap, lies wholly above what
is asked.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlflow import MlflowClient

from registry.aliases import CHALLENGER, CHAMPION, drop_alias, get_whole, move_alias
from registry.connection import plain_errors
from registry.errors import AdapterNotFoundError, ConflictError, RuleError
from registry.evaluation import Evaluation
from registry.evaluation_runs import list_evaluations
from registry.moves import settle
from registry.refs import AdapterRef
from registry.significance import Interval, obstacle, paired_bootstrap
from registry.versions import AdapterVersion, get_version
from trainables.contract import SERVING_FORMS

logger = logging.getLogger(__name__)

_TRIES = 10
_LEAST_ROWS = 2

_Measured = tuple[AdapterVersion, Sequence[Evaluation]]
"""A version and what was measured of it."""


@dataclass(frozen=True, kw_only=True)
class PromotionRule:
    """What a candidate must show to become champion.

    Attributes:
        metric: Measure to compare by.
        form: Serving form in which both must have been measured.
        min_improvement: How much better it must be, in the measure's unit.
        confidence: Of the interval that must lie above that.
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
    """Whether the candidate is the champion now, and why.

    Attributes:
        promoted: Whether it is.
        reason: One sentence with the numbers.
        interval: Of the improvement, above zero being better; `None` where nothing was compared.
    """

    promoted: bool
    reason: str
    interval: Interval | None = None


def promote(
    client: MlflowClient,
    ref: AdapterRef | str,
    rule: PromotionRule,
    *,
    why: str = "",
    reevaluate: Callable[[Sequence[AdapterVersion]], None] | None = None,
    force: bool = False,
) -> PromotionDecision:
    """Make a version champion if it beats the present one by the rule, else challenger.

    When another process moves the champion meanwhile, the decision is made again.

    Args:
        client: Of the server.
        ref: The candidate.
        rule: What it must show.
        why: For the ledger, besides the decision's reason.
        reevaluate: Measures versions on common rows in the rule's form and records that; called
            once with candidate and champion if there is nothing to compare them by.
        force: Whether to promote without comparing.

    Raises:
        AdapterNotFoundError: There is no such version.
        ConflictError: Others promoted all the time.
        RefError: The reference cannot be read, or is of an earlier step.
        TrackingError: The server cannot be used.
    """
    exact = get_whole(client, ref).ref
    for _ in range(_TRIES):
        candidate = get_version(client, exact)
        champion, moves = _find_champion(client, candidate.name)
        if force and not candidate.retired:
            decision = PromotionDecision(promoted=True, reason=f"{exact} was promoted by force")
        else:
            measured = _evaluations(client, candidate, champion, rule)
            if champion is not None and reevaluate is not None and not _pairs(*measured, rule):
                if champion.version != candidate.version:
                    reevaluate([candidate, champion])
                reevaluate = None
                continue  # it takes its time: look at the champion again too
            decision = decide(candidate, champion, *measured, rule)
        try:
            _act(client, candidate, champion, decision, moves, why)
        except ConflictError as error:
            logger.info("promotion of %s: deciding again (%s)", exact, error)
            continue
        logger.info("promotion of %s: %s", exact, decision.reason)
        return decision
    raise ConflictError(
        f"adapter {exact}: the champion was moved by others {_TRIES} times while this decided; "
        "allowed: one at a time. Look at its history and try again."
    )


def decide(
    candidate: AdapterVersion,
    champion: AdapterVersion | None,
    candidate_evaluations: Sequence[Evaluation],
    champion_evaluations: Sequence[Evaluation],
    rule: PromotionRule,
) -> PromotionDecision:
    """Compare two versions by what was measured of them, newest first; moves nothing."""
    if candidate.retired or champion is None or champion.version == candidate.version:
        return _by_standing(candidate, champion)
    return _by_measure((candidate, candidate_evaluations), (champion, champion_evaluations), rule)


def _by_standing(candidate: AdapterVersion, champion: AdapterVersion | None) -> PromotionDecision:
    if candidate.retired:
        return _refused(f"{candidate.ref} was retired: {candidate.retired}")
    if champion is None:
        return PromotionDecision(promoted=True, reason=f"{candidate.name} had no champion")
    return PromotionDecision(promoted=True, reason=f"{candidate.ref} is the champion already")


def _by_measure(
    candidate: _Measured, champion: _Measured, rule: PromotionRule
) -> PromotionDecision:
    pairs = _pairs(candidate[1], champion[1], rule)
    if not pairs:
        return _refused(
            f"not comparable by {rule.metric} in the form {rule.form}: "
            + "; ".join(
                _what_it_has(version, listed, rule) for version, listed in (candidate, champion)
            )
        )
    new, old = pairs[0]
    measure = new.measures[rule.metric]
    now, before = measure.value, old.measures[rule.metric].value
    told = (
        f"{rule.metric} {now:.6g} of {candidate[0].ref} against {before:.6g} of {champion[0].ref}"
    )
    if not math.isfinite(now):
        return _refused(f"{told}: the candidate has no finite value")
    if not math.isfinite(before):
        return PromotionDecision(promoted=True, reason=f"{told}, which has no finite value")
    if new.data.rows < _LEAST_ROWS:
        return _refused(f"{told}: {new.data.rows} row says nothing beyond noise")
    found = _improvement(new, old, rule)
    is_better = found.low > rule.min_improvement
    verdict = "lies above" if is_better else "does not lie above"
    reason = (
        f"{told}: better by {found.estimate:.4g}, {rule.confidence:.4g} interval "
        f"{found.low:.4g} to {found.high:.4g}, which {verdict} {rule.min_improvement:g} "
        f"({new.data.rows} {new.data.name} rows, form {rule.form})"
    )
    return PromotionDecision(promoted=is_better, reason=reason, interval=found)


def _find_champion(client: MlflowClient, name: str) -> tuple[AdapterVersion | None, int]:
    """The champion, and the number of the move that made it so."""
    with plain_errors(client.tracking_uri):
        ledger = settle(client, name)
    version = ledger.aliases.get(CHAMPION)
    champion = None
    if version is not None:
        try:
            champion = get_version(client, AdapterRef(name=name, version=version))
        except AdapterNotFoundError:
            logger.warning("%s/%s is the champion and no adapter: passed over", name, version)
    return champion, ledger.last_number(CHAMPION)


def _evaluations(
    client: MlflowClient,
    candidate: AdapterVersion,
    champion: AdapterVersion | None,
    rule: PromotionRule,
) -> tuple[list[Evaluation], list[Evaluation]]:
    if champion is None or champion.version == candidate.version:
        return [], []
    new = list_evaluations(client, candidate.ref, form=rule.form)
    old = list_evaluations(client, champion.ref, form=rule.form)
    return new, old


def _act(
    client: MlflowClient,
    candidate: AdapterVersion,
    champion: AdapterVersion | None,
    decision: PromotionDecision,
    moves: int,
    why: str,
) -> None:
    reason = ": ".join(text for text in (why, decision.reason) if text)
    if not decision.promoted:
        if not candidate.retired:
            move_alias(client, candidate.ref, CHALLENGER, why=reason)
        return
    if champion is None or champion.version != candidate.version:
        # Only if the champion is still the one that was compared with.
        move_alias(client, candidate.ref, CHAMPION, why=reason, expected=moves)
    if CHALLENGER in get_version(client, candidate.ref).aliases:
        drop_alias(client, candidate.name, CHALLENGER, why="it is champion")


def _pairs(
    candidate: Sequence[Evaluation], champion: Sequence[Evaluation], rule: PromotionRule
) -> list[tuple[Evaluation, Evaluation]]:
    """Evaluations that can be compared: test rows first, newest first.

    Validation rows count only for a candidate that was measured on no others: the search chose it
    by them.
    """
    usable = [one for one in candidate if one.form == rule.form and rule.metric in one.measures]
    held_out = [one for one in usable if one.data.name != "validation"] or usable
    return [
        (new, old)
        for new in sorted(held_out, key=lambda one: one.data.name != "test")
        for old in champion
        if old.form == rule.form and not obstacle(new, old, rule.metric)
    ]


def _improvement(new: Evaluation, old: Evaluation, rule: PromotionRule) -> Interval:
    """The difference, turned so that above zero is better."""
    found = paired_bootstrap(new, old, rule.metric, confidence=rule.confidence)
    if new.measures[rule.metric].formula.mode == "max":
        return found
    return Interval(
        estimate=-found.estimate, low=-found.high, high=-found.low, confidence=found.confidence
    )


def _what_it_has(
    version: AdapterVersion, evaluations: Sequence[Evaluation], rule: PromotionRule
) -> str:
    measured = [
        f"{one.data.name} data {one.data.digest} ({', '.join(_way(one))})"
        for one in evaluations
        if one.form == rule.form and rule.metric in one.measures
    ]
    if measured:
        return f"{version.ref} has {' and '.join(measured)}"
    known = {name for one in evaluations if one.form == rule.form for name in one.measures}
    others = f", only {', '.join(sorted(known))}" if known else ""
    return f"{version.ref} has no such evaluation{others}"


def _way(evaluation: Evaluation) -> list[str]:
    way = [f"{evaluation.data.rows} rows", f"max_tokens {evaluation.data.max_tokens}"]
    digests = {
        "tokenizer": evaluation.data.tokenizer_digest,
        "template": evaluation.data.template_digest,
    }
    return way + [f"{key} {value}" for key, value in digests.items() if value is not None]


def _refused(reason: str) -> PromotionDecision:
    return PromotionDecision(promoted=False, reason=reason)
