"""Promotion: a candidate becomes champion if it beats the champion on the same rows.

The improvement must be larger than chance explains: its interval lies wholly above the required
minimum. Promoting a version moves the alias `champion`.

The chance of a wrong promotion, (1 - confidence) / 2, holds for all challenges of one champion on
the same rows together. Challenge number k gets the share 1 / (k (k + 1)) of this chance; the
shares add up to at most 1 (alpha spending with an open end). The ledger counts the challenges.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient

from registry.errors import AdapterNotFoundError, ConflictError, RuleError
from registry.evaluations.evaluation import Evaluation
from registry.evaluations.evaluation_runs import list_evaluations
from registry.evaluations.improvement import improvement_interval, least_rows
from registry.evaluations.significance import Interval, obstacle
from registry.tracking.connection import plain_errors
from registry.versions.aliases import CHALLENGER, CHAMPION, drop_alias, get_whole, move_alias
from registry.versions.entries import Challenge
from registry.versions.ledger import Ledger, count_challenge
from registry.versions.moves import current_user, settle
from registry.versions.refs import AdapterRef
from registry.versions.versions import AdapterVersion, get_version
from trainables.contract import SERVING_FORMS

logger = logging.getLogger(__name__)

_TRIES = 10
_LEAST_ROWS = 5

_Evaluated = tuple[AdapterVersion, Sequence[Evaluation]]
"""A version with its evaluations, newest first."""


@dataclass(frozen=True, kw_only=True)
class PromotionRule:
    """Conditions for a candidate to become champion.

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


def promote(
    client: MlflowClient,
    ref: AdapterRef | str,
    rule: PromotionRule,
    *,
    why: str = "",
    reevaluate: Callable[[Sequence[AdapterVersion]], None] | None = None,
    force: bool = False,
) -> PromotionDecision:
    """Make a version champion if it beats the champion by the rule, else challenger.

    If another process moves the champion meanwhile, the decision is made again.

    Args:
        client: Of the server.
        ref: The candidate.
        rule: Conditions for promotion.
        why: Text for the ledger, before the decision's reason.
        reevaluate: Evaluates versions on common rows in the rule's form and records the results;
            called once, with candidate and champion, if no evaluations can be compared.
        force: Promote without a comparison.

    Raises:
        AdapterNotFoundError: There is no such version.
        ConflictError: Other processes kept moving the champion.
        RefError: The reference cannot be read, or names an earlier step.
        TrackingError: The server cannot be used.
    """
    exact = get_whole(client, ref).ref
    for _ in range(_TRIES):
        candidate = get_version(client, exact)
        with plain_errors(client.tracking_uri):
            ledger = settle(client, candidate.name)
        champion, moves = _find_champion(client, ledger, candidate.name)
        if force and not candidate.retired:
            decision = PromotionDecision(promoted=True, reason=f"{exact} was promoted by force")
        else:
            evaluations = _evaluations(client, candidate, champion, rule)
            pairs = _pairs(*evaluations, rule)
            if champion is not None and reevaluate is not None and not pairs:
                if champion.version != candidate.version:
                    reevaluate([candidate, champion])
                reevaluate = None
                continue  # the champion may have moved during the evaluation: read it again
            number = _challenge_number(client, ledger, (candidate, champion), pairs, rule.metric)
            decision = decide(candidate, champion, *evaluations, rule, challenge=number)
        try:
            _move_aliases(client, candidate, champion, decision, moves, why)
        except ConflictError as error:
            logger.info("promotion of %s: deciding again (%s)", exact, error)
            continue
        logger.info("promotion of %s: %s", exact, decision.reason)
        return decision
    raise ConflictError(
        f"adapter {exact}: other processes moved the champion {_TRIES} times during the decision; "
        "allowed: one at a time. Look at the history and try again."
    )


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


def _decide_by_evaluations(
    candidate: _Evaluated, champion: _Evaluated, rule: PromotionRule, challenge: int
) -> PromotionDecision:
    pairs = _pairs(candidate[1], champion[1], rule)
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
    if new.data.rows < _LEAST_ROWS:
        return _refused(
            f"{values}: {new.data.rows} {new.data.name} rows are too few to compare on; at least "
            f"{_LEAST_ROWS} are needed"
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


def _challenge_number(
    client: MlflowClient,
    ledger: Ledger,
    versions: tuple[AdapterVersion, AdapterVersion | None],
    pairs: Sequence[tuple[Evaluation, Evaluation]],
    measure: str,
) -> int:
    """Number of the challenge in the ledger; 1, and nothing is written, without a comparison."""
    candidate, champion = versions
    if champion is None or candidate.retired or not pairs:
        return 1
    new, old = pairs[0]
    are_finite = all(math.isfinite(one.measures[measure].value) for one in (new, old))
    if new.data.rows < _LEAST_ROWS or not are_finite:
        return 1  # no interval is computed: the decision spends no chance
    challenge = Challenge(
        champion=champion.version,
        candidate=candidate.version,
        data=new.data.digest,
        data_name=new.data.name,
        evaluation=new.digest,
        metric=measure,
        who=current_user(),
        at=datetime.now(UTC),
    )
    with plain_errors(client.tracking_uri):
        return count_challenge(client, ledger.run_id, challenge).number


def _find_champion(
    client: MlflowClient, ledger: Ledger, name: str
) -> tuple[AdapterVersion | None, int]:
    """The champion, and the number of the last move of the alias."""
    version = ledger.aliases.get(CHAMPION)
    champion = None
    if version is not None:
        try:
            champion = get_version(client, AdapterRef(name=name, version=version))
        except AdapterNotFoundError:
            logger.warning("%s/%s: ignored as champion, since it is no adapter", name, version)
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
    return new, list_evaluations(client, champion.ref, form=rule.form)


def _move_aliases(
    client: MlflowClient,
    candidate: AdapterVersion,
    champion: AdapterVersion | None,
    decision: PromotionDecision,
    moves: int,
    why: str,
) -> None:
    """Carry out a decision, unless the champion has changed since.

    Raises:
        ConflictError: The champion was moved after move number `moves`.
    """
    reason = ": ".join(text for text in (why, decision.reason) if text)
    if not decision.promoted:
        if not candidate.retired:
            move_alias(client, candidate.ref, CHALLENGER, why=reason)
        return
    if champion is None or champion.version != candidate.version:
        move_alias(client, candidate.ref, CHAMPION, why=reason, expected=moves)
    if CHALLENGER in get_version(client, candidate.ref).aliases:
        drop_alias(client, candidate.name, CHALLENGER, why="it is champion")


def _pairs(
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
