"""Tags of a version in MLflow: about ten to read and filter by, and one with all other facts.

The manifest of the bundle holds every fact. A copy is kept in tags so that versions can be listed
and compared without fetching files. Versions of earlier releases have a tag for each fact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

FACTS_TAG = "lorchestra.facts"
"""Tag with all facts that have no tag of their own, as JSON."""

METRIC_PREFIX = "metric."

_SHOWN = (
    "base.model", "quantization", "lora.rank", "lora.alpha", "lora.targets",
    "optim.learning_rate", "lorchestra.digest",
    *(f"{METRIC_PREFIX}{name}" for name in ("eval_loss", "test_loss", "test_accuracy")),
)  # fmt: skip
"""Facts of a manifest with a tag of their own."""

_FOUND_BY = ("finals.", "lorchestra.sweep", "lorchestra.trial", "lorchestra.rank")
"""Starts of a sweep's tags: the card and the run of the version say the same to readers."""


def fold(manifest: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Tags for MLflow.

    Args:
        manifest: Facts of the manifest, which given tags do not replace.
        given: Tags of the user or of a sweep.
    """
    shown = {*_SHOWN, *(name for name in given if not name.startswith(_FOUND_BY))}
    every = {**given, **manifest}
    tags = {name: text for name, text in every.items() if name in shown}
    rest = {name: text for name, text in every.items() if name not in shown}
    return tags | ({FACTS_TAG: _as_text(rest)} if rest else {})


def unfold(tags: Mapping[str, str]) -> dict[str, str]:
    """All facts and tags of a version, from its tags in MLflow.

    A facts tag that somebody made unreadable counts as empty: the other tags still tell what they
    did.
    """
    others = {name: text for name, text in tags.items() if name != FACTS_TAG}
    return {**others, **_facts(tags)}


def merge(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """New tags for a version that has old ones: facts that only the old ones have are kept."""
    if FACTS_TAG not in new:
        return dict(new)
    return {**new, FACTS_TAG: _as_text({**_facts(old), **_facts(new)})}


def _facts(tags: Mapping[str, str]) -> dict[str, str]:
    try:
        facts = json.loads(tags.get(FACTS_TAG, "{}"))
    except ValueError:
        return {}
    if not isinstance(facts, dict):
        return {}
    return {name: text for name, text in facts.items() if isinstance(text, str)}


def _as_text(facts: Mapping[str, str]) -> str:
    return json.dumps(dict(facts), sort_keys=True, ensure_ascii=False)
