"""What a sweep will do, from its spec: trainings, finals, serving forms, limits, registration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.spec.distributions import Choice
from orchestrator.spec.finals_sections import forms_of
from orchestrator.spec.sections import BudgetSpec
from orchestrator.spec.settings import form_of_files
from orchestrator.spec.sweep import SweepSpec
from orchestrator.wording import format_duration

_NO_LIMIT = "no limit"


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Amount of work of a sweep, and its result.

    Attributes:
        trials: Most trials of the search.
        steps: Steps of a trial that is not stopped.
        finalists: Trials that enter the finals.
        repeats: Trainings of the finals, each to the last step.
        forms: Serving forms that are evaluated, by stored form of the base.
        limits: Limits of the budget besides trials, as text; empty without a limit.
        register: Name of the registered model; empty if nothing is registered.
        lines: Sentences for the user.
    """

    trials: int
    steps: int
    finalists: int
    repeats: int
    forms: dict[str, tuple[str, ...]]
    limits: tuple[str, ...]
    register: str
    lines: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def plan_sweep(spec: SweepSpec) -> SweepPlan:
    """The plan of a sweep from its start to its end."""
    trials = _trials(spec)
    finalists = min(spec.finals.top, trials)
    repeats = finalists * spec.finals.seeds
    forms = _forms(spec)
    limits = tuple(_limits(spec.budget))
    return SweepPlan(
        trials=trials,
        steps=spec.horizon,
        finalists=finalists,
        repeats=repeats,
        forms=forms,
        limits=limits,
        register=spec.register.name if spec.register else "",
        lines=(
            _search(spec, trials),
            _finals(spec, finalists, repeats),
            _serving(forms),
            _time(spec.budget, limits),
            _registration(spec),
        ),
    )


def _trials(spec: SweepSpec) -> int:
    """Trials of the search, which ends when every configuration was tried."""
    size = spec.search_space.size
    if size is not None:
        return min(spec.budget.trials, size)
    return spec.budget.trials


def _forms(spec: SweepSpec) -> dict[str, tuple[str, ...]]:
    knob = spec.search_space.knobs.get("base.quantization")
    stored = knob.values if isinstance(knob, Choice) else (spec.base.quantization,)
    is_prequantized = all(form_of_files(base) is not None for base in spec.bases)
    return {
        str(one): tuple(forms_of(spec.finals, str(one), is_prequantized=is_prequantized))
        for one in stored
    }


def _limits(budget: BudgetSpec) -> Iterator[str]:
    if budget.wall_clock_s is not None:
        yield f"{format_duration(budget.wall_clock_s)} of wall clock"
    if budget.gpu_seconds is not None:
        yield f"{format_duration(budget.gpu_seconds)} of GPU time"
    if budget.cpu_seconds is not None:
        yield f"{format_duration(budget.cpu_seconds)} of CPU time"
    if budget.money is not None:
        yield f"{budget.money:g} at {budget.price_per_gpu_hour:g} for a GPU hour"


def _search(spec: SweepSpec, trials: int) -> str:
    knobs = ", ".join(name for name in spec.search_space.knobs) or "nothing"
    early = (
        "no trial is stopped early"
        if spec.schedule.algorithm == "none"
        else f"{spec.schedule.algorithm} may stop a trial from step {spec.schedule.grace_steps} on"
    )
    return (
        f"Search: {_counted(trials, 'trial')} of up to {spec.horizon} steps of "
        f"{spec.optim.batch_size} rows; {spec.search.algorithm} chooses {knobs}; {early}."
    )


def _finals(spec: SweepSpec, finalists: int, repeats: int) -> str:
    if not repeats:
        return (
            f"Finals: the best {finalists}, as the search trained them, are evaluated on test "
            "rows, without an interval over seeds."
        )
    return (
        f"Finals: the best {finalists}, each trained again with "
        f"{_counted(spec.finals.seeds, 'new seed')}: {_counted(repeats, 'training')} of "
        f"{spec.horizon} steps, evaluated on test rows."
    )


def _serving(forms: dict[str, tuple[str, ...]]) -> str:
    lists = {", ".join(names) or "none" for names in forms.values()}
    if len(lists) == 1:
        return f"Serving forms: {lists.pop()}."
    said = "; ".join(f"{', '.join(names) or 'none'} of {one}" for one, names in forms.items())
    return f"Serving forms: {said}."


def _time(budget: BudgetSpec, limits: tuple[str, ...]) -> str:
    if not limits:
        return f"Limits: {_NO_LIMIT} besides the number of trials; budget.wall_clock_s sets one."
    kept = f"; the search leaves {budget.finals_fraction:.0%} of it to the finals"
    return (
        f"Limits: {' and '.join(limits)}{kept}. Trials stop at the evaluation after the limit, "
        "and serving forms are evaluated beyond it."
    )


def _registration(spec: SweepSpec) -> str:
    if spec.register is None:
        return "Will register: nothing, as the file has no section register."
    best = "the best adapter" if spec.register.top == 1 else f"the best {spec.register.top}"
    promotion = (
        "it becomes champion if it is better beyond noise than the champion"
        if spec.register.promote
        else "no version becomes champion by itself"
    )
    return f"Will register: {best} as {spec.register.name}; {promotion}."


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
