"""Comparisons within a report: base and adapter, accuracy and completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from orchestrator.metrics import MEASURES

_PREFIXES = {"validation": ("eval_",), "test": ("test_", "eval_")}


class BaseComparison(NamedTuple):
    """One measure of the base alone and of the base with an adapter, on the same rows."""

    split: str
    measure: str
    base: float | None
    adapter: float | None

    @property
    def difference(self) -> float | None:
        """Adapter minus base; `None` if either value is missing."""
        if self.base is None or self.adapter is None:
            return None
        return self.adapter - self.base


def compare_with_base(
    base: Mapping[str, Mapping[str, float]], adapter: Mapping[str, Mapping[str, float]]
) -> list[BaseComparison]:
    """Loss and accuracies by split; measures without any value are left out.

    Args:
        base: Metrics of the base by split.
        adapter: Metrics of the adapter by split.
    """
    compared = [
        BaseComparison(
            split,
            measure,
            _find(base.get(split, {}), split, measure),
            _find(adapter.get(split, {}), split, measure),
        )
        for split in _PREFIXES
        for measure in MEASURES
    ]
    return [each for each in compared if (each.base, each.adapter) != (None, None)]


def _find(metrics: Mapping[str, float], split: str, measure: str) -> float | None:
    names = (prefix + measure for prefix in _PREFIXES[split])
    return next((metrics[name] for name in names if name in metrics), None)


class Generated(NamedTuple):
    """Two measures of the trained form on the same rows.

    Attributes:
        accuracy: Share of rows in which every answer token is the most likely next token after
            the true tokens before.
        exact_match: Share of rows whose greedy completion equals the answer.
    """

    accuracy: float
    exact_match: float

    @property
    def warning(self) -> str:
        """A warning if completions are worse than the accuracy suggests; empty otherwise."""
        if self.exact_match > self.accuracy - _WORSE:
            return ""
        return (
            f"{self.accuracy:.1%} of the rows have the right answer token by token, "
            f"{self.exact_match:.1%} of the completions equal the answer: completions continue "
            "after the answer, or finals.max_new_tokens cuts them. Read some completions in "
            "scores/trained.json."
        )


_WORSE = 0.01
"""Share of rows by which completions may fall behind: rounding differs between the two."""
