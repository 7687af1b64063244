"""Checks of population-based training in a sweep file: population, rungs and knobs."""

from __future__ import annotations

from orchestrator.spec.complaint import complaint, require
from orchestrator.spec.sections import ScheduleSpec
from orchestrator.spec.space import SearchSpace

MIN_RUNGS = 3
"""Minimum number of rungs before the horizon, so that copies can be copied again."""

MIN_JUDGED = 4
"""Minimum number of trials at a rung before one of them is replaced."""

_CHANGEABLE = ("optim.", "lora.dropout")
_UNCHANGEABLE = ("optim.batch_size", "optim.micro_batch_size", "optim.optimizer")
"""The batch size decides the rows of every step: a copy with another one would repeat rows.
Another optimizer has other moments."""


def population(schedule: ScheduleSpec, trials: int) -> int:
    """Number of fresh trials.

    Args:
        schedule: Schedule of the sweep; its `population`, if set, is the result.
        trials: Trials that the budget allows.
    """
    return schedule.population or min(8, max(MIN_JUDGED, trials // 2))


def check_pbt(
    space: SearchSpace, schedule: ScheduleSpec, *, trials: int, every: int, horizon: int
) -> None:
    """Refuse a sweep without trials to copy, knobs to change or rungs to compare at.

    Args:
        space: Search space of the sweep.
        schedule: Distance of rungs, and population.
        trials: Trials that the budget allows.
        every: Steps between evaluations.
        horizon: Steps of a trial that is never stopped.

    Raises:
        SweepSpecError: The space, the rungs, the population or the budget does not allow `pbt`.
    """
    if not changeable_knobs(space):
        raise complaint(
            "schedule.algorithm",
            "pbt",
            "an algorithm other than pbt for a space without a knob that can change in training",
            "pbt needs a knob of optim (other than batch sizes) or lora.dropout: add one, such as "
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
        f"more than {MIN_JUDGED} for pbt: a population and its replacements",
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
    """Knobs that a copy may change: neither the base nor the shape of a checkpoint.

    Knobs named in a `when`, or by a tied setting that may not change, are left out, too.
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
