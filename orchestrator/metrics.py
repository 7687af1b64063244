"""Metrics that trials report: their direction, and how tables and plots show them.

A new metric needs a row here, a value in `trainables.hosts.host`, and a stand-in in
`trainables.hosts.orders`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from orchestrator.wording import format_metric
from trainables.contract import Mode

Metric = Literal["eval_loss", "eval_accuracy", "eval_token_accuracy", "train_loss"]
"""Metrics that can be the objective: trials are compared by the metric at every step."""

ReportedMetric = Literal[
    "eval_loss",
    "eval_accuracy",
    "eval_token_accuracy",
    "train_loss",
    "peak_memory_gib",
    "tokens_per_s",
    "trainable_params",
    "host_s",
]
"""Metrics that further objectives and constraints may name."""


@dataclass(frozen=True, kw_only=True)
class TrialMetric:
    """How to compare and show one metric of a trial.

    Attributes:
        mode: Whether less or more is better.
        show: Formats a value for a table.
        measure: The measure of an evaluation that the metric corresponds to; empty for a cost.
        cost: Title of an axis for a cost that is better when smaller; empty for other metrics.
        is_listed: Whether the leaderboard has a column for the metric.
        is_headline: Whether the live view and the summary show the metric.
        is_whole: Whether values are whole numbers.
    """

    mode: Mode
    show: Callable[[float], str]
    measure: str = ""
    cost: str = ""
    is_listed: bool = True
    is_headline: bool = False
    is_whole: bool = False


TRIAL_METRICS: Mapping[ReportedMetric, TrialMetric] = {
    "eval_loss": TrialMetric(mode="min", show=format_metric, measure="loss", is_headline=True),
    "eval_accuracy": TrialMetric(
        mode="max", show=format_metric, measure="accuracy", is_headline=True
    ),
    "eval_token_accuracy": TrialMetric(
        mode="max", show=format_metric, measure="token_accuracy", is_listed=False
    ),
    "train_loss": TrialMetric(mode="min", show=format_metric, measure="loss"),
    "tokens_per_s": TrialMetric(mode="max", show="{:,.0f}".format),
    "peak_memory_gib": TrialMetric(mode="min", show="{:.2f}".format, cost="peak memory, GiB"),
    "trainable_params": TrialMetric(
        mode="min", show="{:,.0f}".format, cost="trainable parameters", is_whole=True
    ),
    "host_s": TrialMetric(mode="min", show="{:.2f}".format, cost="training, host seconds"),
}
"""Metrics by name, in the order of a leaderboard's columns."""

HEADLINES: tuple[str, ...] = tuple(
    name for name, metric in TRIAL_METRICS.items() if metric.is_headline
)
"""Metrics that the live view and the summary show besides the objective."""

MEASURES: tuple[str, ...] = tuple(
    dict.fromkeys(metric.measure for metric in TRIAL_METRICS.values() if metric.measure)
)
"""Measures of every evaluation, without the prefix for their rows (`eval_`, `test_`)."""
