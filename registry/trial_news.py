"""What there is to tell of a run: points, an end, and all that is new of a trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainables.contract import Outcome


@dataclass(frozen=True, kw_only=True)
class Points:
    """One point of each of some metrics.

    Attributes:
        metrics: Values by name; NaN and infinities are kept as such.
        step: Where they are on the chart.
        at_s: Seconds since the epoch. It is part of a point's identity: a point sent again with
            the time that it had first stays one.
    """

    metrics: Mapping[str, float]
    step: int
    at_s: float


@dataclass(frozen=True, kw_only=True)
class End:
    """How a run ended.

    Attributes:
        outcome: An early stop has finished, a trial that could not go on has failed.
        reason: One sentence.
        at_s: Seconds since the epoch.
    """

    outcome: Outcome
    reason: str
    at_s: float


@dataclass(kw_only=True)
class TrialNews:
    """What is new of a trial; being told the same again changes nothing.

    Attributes:
        trial: Its number in the sweep.
        name: What its run is called when it is made.
        params: Everything that defines it.
        started_at_s: When it started first, in seconds since the epoch; always the same.
        tags: More tags for its run when it is made.
        is_begun: Whether it started or went on: a run that had ended is opened again.
        points: What was measured.
        end: How it ended since; `None` while it runs.
    """

    trial: int
    name: str
    params: Mapping[str, Any]
    started_at_s: float
    tags: Mapping[str, str] = field(default_factory=dict)
    is_begun: bool = False
    points: list[Points] = field(default_factory=list)
    end: End | None = None
