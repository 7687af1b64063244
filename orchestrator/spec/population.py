"""Population-based training as a sweep file asks for it: its population, rungs and knobs."""

from __future__ import annotations

from orchestrator.spec.complaint import complaint, require
from orchestrator.spec.sections import ScheduleSpec
from orchestrator.spec.space import SearchSpace

MIN_RUNGS = 3
"""Rungs before the horizon that it takes for copies to be copied again."""

MIN_JUDGED = 4
"""Trials that must have come to a rung before any is replaced there."""

_CHANGEABLE = ("optim.", "lora.dropout")
_UNCHANGEABLE = ("optim.batch_size", "optim.micro_batch_size")
"""Rows are dealt out by batch size from the first step on: a copy would see some again."""


def population(schedule: ScheduleSpec, trials: int) -> int:
    """Number of fresh trials.

    Args:
        schedule: The sweep's; its population is taken where it has one.
        trials: Trials that the budget allows.
    """
    return schedule.population or min(8, max(MIN_JUDGED, trials // 2))


def check_pbt(
    space: SearchSpace, schedule: ScheduleSpec, *, trials: int, every: int, horizon: int
) -> None:
    """Refuse a sweep without trials to copy, knobs to change or rungs to compare at.

    Args:
        space: What is searched.
        schedule: Distance of rungs, and population.
        trials: Trials that the budget allows.
        every: Steps between evaluations.
        horizon: Steps of a trial that is never stopped.

    Raises:
        SweepSpecError: The space, the rungs, the population or the budget does not allow it.
    """
    if not changeable_knobs(space):
        raise complaint(
            "schedule.algorithm",
            "pbt",
            "an algorithm other than pbt for a space without a knob that can change in the middle "
            "of a trial",
            "pbt needs a knob of optim (a batch size is none) or lora.dropout: add one, such as "
            "optim.learning_rate, or use asha.",
        )
    longest = (horizon - 1) // MIN_RUNGS // every * every
    require(
        0 < schedule.grace_steps <= longest,
        "schedule.grace_steps",
        schedule.grace_steps,
        f"up to {longest} for pbt, so that {MIN_RUNGS} rungs come before optim.steps ({horizon})"
        if longest
        else f"for pbt at least {MIN_RUNGS} evaluations before optim.steps ({horizon})",
        f"Use {longest}." if longest else "Lower eval.every, or train for longer.",
    )
    require(
        trials > MIN_JUDGED,
        "budget.trials",
        trials,
        f"more than {MIN_JUDGED} for pbt: a population and those that come in its places",
        "Allow more trials, or use asha.",
    )
    require(
        schedule.population == 0 or MIN_JUDGED <= schedule.population < trials,
        "schedule.population",
        schedule.population,
        f"{MIN_JUDGED} to {trials - 1} (below budget.trials) for pbt, or 0",
        "Leave room for copies in budget.trials.",
    )


def changeable_knobs(space: SearchSpace) -> list[str]:
    """Knobs a copy may change: all but the base and the checkpoint's shape.

    What decides on other settings stays, too: a knob that a `when` or a tied setting names.
    """
    deciding = {name for condition in space.conditions.values() for name in condition.allowed}
    for name, tie in reversed(list(space.ties.items())):
        if name in deciding or not _is_changeable(name):
            deciding.update(tie.names)
    return [
        name
        for name, knob in space.knobs.items()
        if _is_changeable(name) and name not in deciding and knob.size != 1
    ]


def _is_changeable(setting: str) -> bool:
    return setting.startswith(_CHANGEABLE) and setting not in _UNCHANGEABLE
