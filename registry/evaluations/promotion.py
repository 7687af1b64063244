"""Promotion: the gate's decision on a candidate, carried out in the ledger of aliases.

Promoting a version moves the alias `champion`. A refused candidate becomes `challenger`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from mlflow import MlflowClient

from registry.errors import AdapterNotFoundError, ConflictError
from registry.evaluations.evaluation import Evaluation
from registry.evaluations.evaluation_runs import list_evaluations
from registry.evaluations.gate import (
    LEAST_ROWS,
    PromotionDecision,
    PromotionRule,
    comparable_pairs,
    decide,
)
from registry.tracking.connection import plain_errors
from registry.versions.aliases import CHALLENGER, CHAMPION, drop_alias, get_whole, move_alias
from registry.versions.entries import Challenge
from registry.versions.ledger import Ledger, count_challenge
from registry.versions.moves import current_user, settle
from registry.versions.refs import AdapterRef
from registry.versions.versions import AdapterVersion, get_version

logger = logging.getLogger(__name__)

_TRIES = 10


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
            pairs = comparable_pairs(*evaluations, rule)
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
    if new.data.rows < LEAST_ROWS or not are_finite:
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
