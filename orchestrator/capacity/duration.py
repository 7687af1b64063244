"""Expected hours and money of a sweep: from earlier sweeps, or from published speeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from orchestrator.capacity.earlier import earlier_histories
from orchestrator.capacity.hardware import Hardware
from orchestrator.capacity.lengths import SweepLengths
from orchestrator.journal.history import TrialRecord
from orchestrator.spec.sweep import SweepSpec
from orchestrator.wording import format_duration
from trainables.spec import BaseSpec, TrialSpec

_TABLE = Path(__file__).with_name("speeds.yaml")
_NEAR = 4.0
"""Published figures count for bases and steps of up to four times the size or a quarter of it:
beyond, a step is bound by something else."""

_FORWARD = 0.5
"""Cost of a token that is only evaluated: a frozen base has no gradient of its weights."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published speed.

    Attributes:
        gpu: Short name of the GPU.
        weights: Weights of its base.
        form: Form of its base.
        tokens: Tokens of a step.
        speed: Tokens per second.
        source: Where it is published.
    """

    gpu: str
    weights: float
    form: str
    tokens: int
    speed: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Duration:
    """Expected use of devices.

    Attributes:
        tokens: Trained tokens, from the fewest to the most.
        speeds: Tokens per second of one device, from the lowest to the highest; `None` if unknown.
        seconds: Seconds of one device, from the fewest to the most; `None` if unknown.
        money: Cost of these seconds; `None` without a price.
        source: Where the speeds come from, or why there are none.
    """

    tokens: tuple[int, int]
    speeds: tuple[float, float] | None = None
    seconds: tuple[float, float] | None = None
    money: tuple[float, float] | None = None
    source: str = ""

    def line(self) -> str:
        """One sentence for the user."""
        if self.seconds is None:
            return f"Time: not known beforehand: {self.source}."
        low, high = (format_duration(one) for one in self.seconds)
        cost = ""
        if self.money is not None:
            cost = f", {self.money[0]:.2f} to {self.money[1]:.2f} of money"
        return f"Time: {low} to {high} of one device{cost}; {self.source}."

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@cache
def published_speeds() -> tuple[Published, ...]:
    """The table of published speeds."""
    rows = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return tuple(Published(**row) for row in rows)


def expect_duration(
    spec: SweepSpec,
    trial: TrialSpec,
    lengths: SweepLengths,
    weights: int | None,
    work: tuple[int, int],
    hardware: Hardware | None,
    runs: Path,
) -> Duration:
    """Expected hours and money.

    Args:
        spec: The sweep.
        trial: A typical configuration.
        lengths: Lengths of the rows.
        weights: Weights of the base; `None` if unknown.
        work: Trials of the search, and trainings of the finals.
        hardware: The device; `None` if it is not known.
        runs: Folder of earlier sweeps.
    """
    tokens = _tokens(spec, trial, lengths, *work)
    # The speeds of this machine say nothing about another GPU.
    past = measured_speeds(runs, trial.base) if hardware is None or hardware.is_here else []
    if past:
        speeds = min(past), max(past)
        source = f"speeds of {len(past)} trials on this base under {runs}"
    else:
        step = round(lengths.trained(trial) * trial.optim.batch_size)
        found, source = _published(hardware, weights, step, trial.base.quantization != "none")
        if not found:
            return Duration(tokens=tokens, source=source)
        speeds = min(found), max(found)
    seconds = tokens[0] / speeds[1], tokens[1] / speeds[0]
    price = spec.budget.price_per_gpu_hour
    is_priced = price is not None and hardware is not None and hardware.device.is_cuda
    money = (seconds[0] / 3600 * price, seconds[1] / 3600 * price) if price and is_priced else None
    return Duration(tokens=tokens, speeds=speeds, seconds=seconds, money=money, source=source)


def _tokens(
    spec: SweepSpec, trial: TrialSpec, lengths: SweepLengths, trials: int, repeats: int
) -> tuple[int, int]:
    """Fewest and most trained tokens, with those of evaluations at their share of the cost."""
    step = lengths.trained(trial) * trial.optim.batch_size
    step += _FORWARD * lengths.evaluated(trial) / trial.eval.every
    most = (trials + repeats) * spec.horizon
    fewest = repeats * spec.horizon + round(_fewest_steps(spec, trials))
    return round(step * fewest), round(step * most)


def _fewest_steps(spec: SweepSpec, trials: int) -> float:
    """Steps of the search if every rung of early stopping stops as many trials as it may."""
    schedule = spec.schedule
    if schedule.algorithm in ("none", "pbt"):
        return trials * spec.horizon
    rung, left, before, total = schedule.grace_steps, float(trials), 0, 0.0
    while rung < spec.horizon:
        total += left * (rung - before)
        before, left = rung, max(1.0, left / schedule.reduction_factor)
        rung = math.ceil(rung * schedule.reduction_factor)
    return total + left * (spec.horizon - before)


def measured_speeds(runs: Path, base: BaseSpec) -> list[float]:
    """Tokens per second of host time of earlier trials on the same base and form."""
    return [
        speed
        for history in earlier_histories(runs)
        for trial in history.trials.values()
        if _is_same(trial.spec.get("base"), base)
        for speed in _speed_of(trial)
    ]


def _speed_of(trial: TrialRecord) -> Iterator[float]:
    if not trial.reports:
        return
    last = trial.reports[-1].metrics
    tokens, seconds = last.get("tokens", 0.0), last.get("host_s", 0.0)
    # A copy of another trial has the tokens of its parent.
    if trial.parent is None and tokens > 0 and seconds > 0:
        yield tokens / seconds


def _is_same(recorded: Any, base: BaseSpec) -> bool:
    if not isinstance(recorded, dict):
        return False
    return all(recorded.get(name) == getattr(base, name) for name in ("model", "quantization"))


def _is_near(published: float, own: float) -> bool:
    return own / _NEAR <= published <= own * _NEAR


def _published(
    hardware: Hardware | None, weights: int | None, step: int, is_quantized: bool
) -> tuple[Sequence[float], str]:
    """Published speeds scaled to the base's weights, and their source, or why there are none."""
    if hardware is None:
        return (), "no device is named; --gpu names one"
    if weights is None:
        return (), "the size of the base is not known"
    rows = [row for row in published_speeds() if row.gpu == hardware.name]
    if not rows:
        return (), (
            f"no published figure for {hardware.name}, and no earlier sweep of this base is here"
        )
    chosen = [row for row in rows if _is_near(row.tokens, step) and _is_near(row.weights, weights)]
    if not chosen:
        return (), (
            f"the published figures for {hardware.name} are of other sizes than "
            f"{weights / 1e9:.2g} billion weights and {step} tokens a step, and no earlier sweep "
            "of this base is here"
        )
    names = dict.fromkeys(row.source.partition(",")[0] for row in chosen)
    is_plain = is_quantized and any(row.form == "bf16" for row in chosen)
    plain = ", of a bfloat16 base, which is faster than a quantized one" if is_plain else ""
    return (
        [row.speed * row.weights / weights for row in chosen],
        f"published speeds ({'; '.join(names)}), scaled by weights{plain}",
    )
