"""What is learned of the rows of a split, counted."""

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
    """What is learned of a split.

    Attributes:
        answers: Answers learned.
        unlearned: Answers that became context, by the reason.
        joined_rows: Chats of several answers in one sequence.
        split_rows: Chats that gave one sequence for each of their answers.
        tokens: Of the sequences, after the cut.
        answer_tokens: Those of them that count in the loss.
        systems: Rows with a system turn.
        tools: Rows with tools on offer, or called.
        thoughts: Rows with a thought beside an answer, or in it.
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
        """Plain values without the end tokens, which are the same for all splits."""
        values = asdict(self)
        values.pop("ends")
        return values


def count_learned(
    examples: Sequence[tuple[Example, EncodedExample]], tokens: int, answer_tokens: int
) -> Learned:
    """Counts over the examples of a split; tokens are those of the sequences after the cut."""
    features = Counter(name for example, _ in examples for name in _features(example))
    encoded = [one for _, one in examples]
    return Learned(
        answers=sum(one.answers for one in encoded),
        unlearned=_reasons(encoded),
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
    """What a row asks of a chat template, by the name of its count."""
    if not isinstance(example, ChatExample):
        return []
    found = {
        "systems": any(turn["role"] in ("system", "developer") for turn in example.turns),
        "tools": bool(example.tools) or any("tool_calls" in turn for turn in example.turns),
        "thoughts": any(has_thought(example.turns[position]) for position in example.answers),
    }
    return [name for name, is_there in found.items() if is_there]


def _reasons(encoded: Sequence[EncodedExample]) -> dict[str, int]:
    """How many answers became context, by why: what is said behind the number of the message."""
    reasons = (reason for one in encoded for reason in one.unlearned)
    return dict(Counter(reason.partition(": ")[2] for reason in reasons).most_common())
