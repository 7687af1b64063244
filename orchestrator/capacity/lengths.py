"""Lengths of a sweep's rows: in tokens where they were counted, else the limit of the spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainables.memory.verdict import Limits
from trainables.rows.lengths import Lengths
from trainables.spec import TrialSpec


@dataclass(frozen=True, kw_only=True)
class SweepLengths:
    """Lengths of the rows under one base's tokenizer.

    Attributes:
        splits: Lengths by split; empty if they were not counted.
        why: Why they were not counted; empty if they were.
    """

    splits: Mapping[str, Lengths] = field(default_factory=dict)
    why: str = ""

    @property
    def limits(self) -> Limits:
        """The longest rows and answers of training and evaluation."""
        train = self.splits.get("train")
        others = [one for name, one in self.splits.items() if name != "train"]
        if train is None:
            return Limits()
        return Limits(
            longest_train=train.longest,
            longest_evaluated=max((one.longest for one in others), default=None),
            train_answers=max(train.answers, default=None),
            evaluated_answers=max((max(one.answers, default=0) for one in others), default=None)
            or None,
        )

    def trained(self, trial: TrialSpec) -> float:
        """Mean tokens of a training row, cut as the trial cuts it."""
        most = min(trial.data.max_tokens, trial.data.train_max_tokens or trial.data.max_tokens)
        return self._mean("train", most)

    def evaluated(self, trial: TrialSpec) -> float:
        """Tokens of one evaluation of a trial; 0 if the rows were not counted."""
        found = self.splits.get("validation")
        if found is None:
            return 0.0
        rows = min(found.rows, trial.eval.max_rows or found.rows)
        return rows * self._mean("validation", trial.data.max_tokens)

    def _mean(self, split: str, most: int) -> float:
        found = self.splits.get(split)
        if found is None:
            return float(most)
        return sum(min(length, most) for length in found.all) / found.rows

    def describe(self, most: int) -> str:
        """One sentence on the lengths, and where they come from."""
        train = self.splits.get("train")
        if train is None:
            return f"Rows count with data.max_tokens ({most}), an upper bound: {self.why}."
        ordered = sorted(min(length, most) for length in train.all)
        half, most_of = (_at(ordered, share) for share in (0.5, 0.95))
        return (
            f"Training rows have {half} tokens at the median, {most_of} at the 95th percentile "
            f"and {ordered[-1]} at most."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        if not self.splits:
            return {"source": "data.max_tokens", "why": self.why}
        return {
            "source": "tokenizer",
            **{
                name: {str(share): _at(sorted(one.all), share) for share in (0.5, 0.95, 1.0)}
                for name, one in self.splits.items()
            },
        }


def _at(ordered: list[int], share: float) -> int:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
