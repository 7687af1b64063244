"""The trial that leads, by the rule that decides at this point of the sweep."""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.finals.standings import rank_finalists
from orchestrator.journal.history import SweepHistory
from orchestrator.spec.sweep import SweepSpec
from orchestrator.wording import format_interval, format_metric


class Leader(NamedTuple):
    """The first trial.

    Attributes:
        number: Its number.
        text: One sentence with the rule and the value.
    """

    number: int
    text: str


def find_leader(spec: SweepSpec, history: SweepHistory) -> Leader | None:
    """The leader; `None` while no trial has a value.

    In the search, the last value of the objective decides, of running trials too. As soon as a
    finalist has a repeat with a value, the mean over its runs decides.
    """
    standings = rank_finalists(spec, history) if "search" in history.stages else []
    if standings and standings[0].is_repeated:
        first = standings[0]
        value = format_interval(first.mean, first.half_width)
        runs = f"{len(first.values)} runs"
        return Leader(
            first.trial.number,
            f"trial {first.trial.number} leads by the mean {first.metric} of its {runs}: {value}",
        )
    best = history.best(spec.objective, with_running=True)
    if best is None:
        return None
    goal = spec.objective
    value = format_metric(best.last(goal.metric))
    rule = f"the {'lowest' if goal.mode == 'min' else 'highest'} {goal.metric}"
    place = f"at step {best.step}/{spec.horizon}"
    return Leader(best.number, f"trial {best.number} leads by {rule}: {value} {place}")
