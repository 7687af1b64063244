"""Decide which version of an adapter is its champion; promoting is moving an alias."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Literal

from registry.adapters import AdapterVersion, drop_alias, get, set_alias
from registry.errors import AdapterNotFoundError
from registry.refs import AdapterRef

logger = logging.getLogger(__name__)

CHAMPION = "champion"
CHALLENGER = "challenger"

_TOKENS = ("data.max_tokens", "data.tokenizer_digest", "data.template_digest")
"""Tags that say how rows become tokens; a loss per token is comparable between equal ones only."""


@dataclass(frozen=True, kw_only=True)
class PromotionDecision:
    """Whether the candidate is the champion now, and why."""

    promoted: bool
    reason: str


def promote(
    candidate: AdapterVersion, *, metric: str, mode: Literal["min", "max"], tracking_uri: str
) -> PromotionDecision:
    """Make the candidate champion if it beats the present one, else challenger.

    Args:
        candidate: A registered version.
        metric: What to compare. `eval_…` was measured on validation rows, anything else on test
            rows; both versions must have seen the same ones, made into the same tokens.
        mode: Whether less or more of it is better.
        tracking_uri: MLflow server or database.

    Raises:
        TrackingError: The server cannot be used.
    """
    champion = _find_champion(candidate.name, tracking_uri)
    decision = decide(candidate, champion, metric, mode)
    logger.info("promotion of %s: %s", candidate.ref, decision.reason)
    now = candidate
    if champion is None or champion.version != candidate.version:
        alias = CHAMPION if decision.promoted else CHALLENGER
        now = set_alias(candidate.ref, alias, tracking_uri=tracking_uri)
    if decision.promoted and CHALLENGER in now.aliases:
        drop_alias(candidate.name, CHALLENGER, tracking_uri=tracking_uri)
    return decision


def decide(
    candidate: AdapterVersion,
    champion: AdapterVersion | None,
    metric: str,
    mode: Literal["min", "max"],
) -> PromotionDecision:
    """Compare two versions by what was measured of them; moves nothing."""
    if champion is None:
        return PromotionDecision(promoted=True, reason=f"{candidate.name} had no champion")
    if champion.version == candidate.version:
        return PromotionDecision(promoted=True, reason=f"{candidate.ref} is the champion already")
    split = "validation" if metric.startswith("eval_") else "test"
    rows = [version.tags.get(f"data.{split}") for version in (candidate, champion)]
    if rows[0] is None or rows[0] != rows[1]:
        return PromotionDecision(
            promoted=False,
            reason=f"not comparable: {candidate.ref} has {split} data {rows[0]}, "
            f"{champion.ref} has {rows[1]}",
        )
    for tag in _TOKENS:
        made = [version.tags.get(tag) for version in (candidate, champion)]
        if made[0] != made[1]:
            return PromotionDecision(
                promoted=False,
                reason=f"not comparable: {candidate.ref} has {tag} {made[0]}, "
                f"{champion.ref} has {made[1]}",
            )
    new, old = candidate.metrics.get(metric), champion.metrics.get(metric)
    if new is None or old is None:
        lacking = candidate if new is None else champion
        return PromotionDecision(
            promoted=False, reason=f"not comparable: {lacking.ref} has no {metric}"
        )
    # A champion that diverged loses to anything finite; NaN beats nothing.
    is_better = math.isfinite(new) and (
        not math.isfinite(old) or (new < old if mode == "min" else new > old)
    )
    verb = "beats" if is_better else "does not beat"
    return PromotionDecision(
        promoted=is_better,
        reason=f"{metric} {new:.6g} of {candidate.ref} {verb} {old:.6g} of {champion.ref}",
    )


def _find_champion(name: str, tracking_uri: str) -> AdapterVersion | None:
    try:
        return get(AdapterRef(name=name, alias=CHAMPION), tracking_uri=tracking_uri)
    except AdapterNotFoundError:
        return None
