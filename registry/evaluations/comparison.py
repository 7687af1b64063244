"""A comparison of versions as values: scores with intervals, differences and costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from registry.evaluations.significance import Interval
from trainables.contract import COSTS, Mode

TRAINING = "training"
"""`Cost.form` of the cost of training, which has no serving form."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """The value of a measure for a version, in a form, on some rows.

    Attributes:
        adapter: The version, such as `name/7`.
        form: Serving form.
        data: Name of the rows.
        digest: Digest of the rows; empty if unknown.
        rows: Number of rows; `None` if unknown.
        measure: Name of the measure, such as `loss`.
        mode: Whether less or more is better.
        value: The measure's value.
        low: Lower end of the interval over rows; `None` without numbers per row.
        high: Upper end.
        is_recorded: The value was recorded at registration, not by an evaluation.
    """

    adapter: str
    form: str
    data: str
    digest: str
    rows: int | None
    measure: str
    mode: Mode
    value: float
    low: float | None = None
    high: float | None = None
    is_recorded: bool = False


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference of two versions in a measure on the same rows and form, or a reason for none.

    Attributes:
        first: A version.
        second: Another version; the difference is `second - first`.
        form: Serving form; empty if the versions have none in common.
        data: Name of the rows; empty if the versions have none in common.
        digest: Digest of the rows.
        measure: Name of the measure; empty if the versions have nothing in common.
        mode: Whether less or more is better.
        interval: Interval of the difference over rows; `None` if the
            versions cannot be compared.
        reason: Why the versions cannot be compared; empty if they can.
    """

    first: str
    second: str
    form: str = ""
    data: str = ""
    digest: str = ""
    measure: str = ""
    mode: Mode = "min"
    interval: Interval | None = None
    reason: str = ""

    @property
    def is_clear(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.interval is not None and (self.interval.low > 0 or self.interval.high < 0)

    @property
    def better(self) -> str | None:
        """The version that is better beyond chance; `None` if neither is."""
        if self.interval is None or not self.is_clear:
            return None
        second_wins = (self.interval.estimate < 0) == (self.mode == "min")
        return self.second if second_wins else self.first


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Time, memory and size of a version in a form.

    Attributes:
        adapter: The version.
        form: Serving form, or `TRAINING`.
        data: Name of the evaluated rows; empty for training.
        seconds: Duration of the evaluation.
        rows_per_s: Rows per second.
        tokens_per_s: Tokens per second.
        peak_memory_gib: Largest memory in use.
        model_bytes: Size of the base in this form.
        adapter_bytes: Size of the adapter beside the base.
        trainable_params: Number of trained weights.
    """

    adapter: str
    form: str
    data: str = ""
    seconds: float | None = None
    rows_per_s: float | None = None
    tokens_per_s: float | None = None
    peak_memory_gib: float | None = None
    model_bytes: float | None = None
    adapter_bytes: float | None = None
    trainable_params: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of versions.

    Attributes:
        adapters: The versions in the caller's order.
        confidence: Level of all intervals.
        differing: Identity tags with different values: a value for each version in the order of
            `adapters`, `None` for a version without the tag.
        shared: Identity tags with the same value in all versions.
        scores: Scores by form, data, measure and the order of `adapters`.
        differences: Differences of every pair; at least one for each pair.
        costs: Costs in the order of `adapters`.
        notes: Remarks for the reader, in whole sentences.
    """

    adapters: tuple[str, ...]
    confidence: float
    differing: Mapping[str, tuple[str | None, ...]]
    shared: Mapping[str, str]
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    costs: tuple[Cost, ...]
    notes: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """Table with a row per score and the costs of each evaluation."""
        costs = {(one.adapter, one.form, one.data): one for one in self.costs}
        rows = []
        for score in self.scores:
            key = (score.adapter, score.form, score.data)
            cost = None if score.is_recorded else costs.get(key)
            taken = {name: getattr(cost, name, None) for name in COSTS}
            rows.append(dataclasses.asdict(score) | taken)
        columns = [one.name for one in dataclasses.fields(Score)]
        frame = pd.DataFrame(rows, columns=[*columns, *COSTS])
        return frame.astype(dict.fromkeys(("value", "low", "high", *COSTS), "float64"))
