"""Counts of the learned answers in a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainables.chat.tokens import EncodedExample
from trainables.chat.turns import has_thought
from trainables.files.formats import ChatExample, Example


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Counts of the learned answers in a split.

    Attributes:
        answers: Number of learned answers.
        unlearned: Number of answers that became context, by reason.
        joined_rows: Number of chats of several answers in one sequence.
        split_rows: Number of chats with one sequence for each answer.
        tokens: Tokens of the sequences after the cut.
        answer_tokens: Tokens that count in the loss.
        systems: Number of rows with a system turn.
        tools: Number of rows with tools on offer, or called.
        thoughts: Number of rows with a thought beside an answer, or in an answer.
        ends: Tokens that end the answers.
    """

    answers: int = 0
    unlearned: Mapping[str, int] = field(default_factory=dict)
    joined_rows: int = 0
    split_rows: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    systems: int = 0
    tools: int = 0
    thoughts: int = 0
    ends: frozenset[int] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """Plain values without the end tokens; all splits have the same end tokens."""
        values = asdict(self)
        values.pop("ends")
        return values


def count_learned(
    examples: Sequence[tuple[Example, EncodedExample]], tokens: int, answer_tokens: int
) -> Learned:
    """Counts over a split's examples; token counts are of the sequences after the cut."""
    features = Counter(name for example, _ in examples for name in _features(example))
    encoded = [one for _, one in examples]
    # The reason without the number of the message.
    reasons = (reason.partition(": ")[2] for one in encoded for reason in one.unlearned)
    return Learned(
        answers=sum(one.answers for one in encoded),
        unlearned=dict(Counter(reasons).most_common()),
        joined_rows=sum(len(one.sequences) == 1 < one.answers for one in encoded),
        split_rows=sum(len(one.sequences) > 1 for one in encoded),
        tokens=tokens,
        answer_tokens=answer_tokens,
        systems=features["systems"],
        tools=features["tools"],
        thoughts=features["thoughts"],
        ends=frozenset().union(*(one.ends for one in encoded)),
    )


def _features(example: Example) -> list[str]:
    """Names of the template features used by a row: the counts to increase."""
    if not isinstance(example, ChatExample):
        return []
    found = {
        "systems": any(turn["role"] in ("system", "developer") for turn in example.turns),
        "tools": bool(example.tools) or any("tool_calls" in turn for turn in example.turns),
        "thoughts": any(has_thought(example.turns[position]) for position in example.answers),
    }
    return [name for name, is_there in found.items() if is_there]
