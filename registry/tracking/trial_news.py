"""News of a trial for its MLflow run: points, parameters, and the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainables.contract import Outcome


@dataclass(frozen=True, kw_only=True)
class Points:
    """Values of metrics at one step.

    Attributes:
        metrics: Values by name; NaN and infinities are kept.
        step: Step of the values.
        at_s: Seconds since the epoch, part of a point's identity: a point sent again with the
            same time is not added twice.
    """

    metrics: Mapping[str, float]
    step: int
    at_s: float


@dataclass(frozen=True, kw_only=True)
class End:
    """The end of a run.

    Attributes:
        outcome: How the trial ended.
        reason: One sentence.
        at_s: Seconds since the epoch.
    """

    outcome: Outcome
    reason: str
    at_s: float


@dataclass(kw_only=True)
class TrialNews:
    """News of a trial; recording equal news again changes nothing.

    Attributes:
        trial: Number of the trial in the sweep.
        name: Name of a new run.
        params: Configuration of the trial.
        started_at_s: Time of the first start in seconds since the epoch; never changes.
        tags: More tags of a new run.
        is_begun: Whether the trial started or continued: an ended run is opened again.
        points: New values of metrics.
        end: End of the trial; `None` while it runs.
    """

    trial: int
    name: str
    params: Mapping[str, Any]
    started_at_s: float
    tags: Mapping[str, str] = field(default_factory=dict)
    is_begun: bool = False
    points: list[Points] = field(default_factory=list)
    end: End | None = None
