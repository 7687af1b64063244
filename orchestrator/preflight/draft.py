"""Choices for a first sweep on some rows, a base and a machine, each with its reason.

Sources: QLoRA (arXiv:2305.14314): nf4 with double quantization, adapters on all linear layers
(section 4), a warm-up of 3 %. "LoRA Learns Less and Forgets Less" (arXiv:2405.09673): alpha of
twice the rank, several epochs, and a learning rate that is searched before all else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from orchestrator.preflight.machine import Machine
from orchestrator.search.startpoints import usual_rate
from orchestrator.wording import format_duration

_EPOCHS = ((100, 8), (500, 5), (2_000, 4), (10_000, 3), (50_000, 2))
"""Passes over the rows, by the number of rows below which they hold; then one."""

_CPU_FLOPS, _GPU_FLOPS = 25e9, 30e12
"""Sustained operations a second of a core and of a GPU, to within some factor."""
_FLOPS_PER_WEIGHT = 4
"""For a token of a frozen base: 2 forward, 2 for the gradient of activations, none of weights."""
_LONGEST_TRIAL_S = {True: 3600.0, False: 900.0}
"""Longest wanted time of one trial, with and without a GPU."""
_OVERHEAD_S = 900.0
_SHORTEST_S, _LONGEST_S = 1800.0, 12 * 3600.0
_UNKNOWN_WEIGHTS = 10**9
_WIDEST, _LINE = 44, 99
"""Longest text that reasons are aligned behind, and longest line of a file."""

Choice = tuple[Any, str]
"""A value, and the reason for it."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the choices depend on.

    Attributes:
        rows: Training rows.
        validation_rows: Validation rows.
        lengths: Tokens of each training row.
        longest: Tokens of the longest row of all splits.
        is_counted: Whether a tokenizer counted the tokens; else they are estimated.
        weights: Weights of the base; `None` if unknown.
        width: Hidden size of the base; `None` if unknown.
        positions: Context length of the base; `None` if unknown.
        quantization: Stored form of the base's own files; `None` for plain weights.
        machine: The machine to train on.
    """

    rows: int
    validation_rows: int
    lengths: tuple[int, ...]
    longest: int
    is_counted: bool
    weights: int | None
    width: int | None
    positions: int | None
    quantization: str | None
    machine: Machine

    @property
    def has_gpu(self) -> bool:
        """Whether trials train on a GPU."""
        return bool(self.machine.gpus)

    @property
    def seconds_per_token(self) -> float:
        """Rough time to train on a token."""
        speed = _GPU_FLOPS if self.has_gpu else _CPU_FLOPS * self.machine.cores
        return _FLOPS_PER_WEIGHT * (self.weights or _UNKNOWN_WEIGHTS) / speed


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Choices by section, and their cost.

    Attributes:
        sections: Choices by the section of the sweep file and name.
        cost: One sentence on the amount of work.
    """

    sections: Mapping[str, Mapping[str, Choice]]
    cost: str


def draft_sweep(facts: Facts) -> Draft:
    """The choices for a first sweep."""
    max_tokens = _max_tokens(facts)
    tokens = sum(min(length, int(max_tokens[0])) for length in facts.lengths) / facts.rows
    batch = 4 if facts.rows < 64 else 8 if facts.rows < 5_000 else 16
    steps, every, why_steps = _steps(facts, batch, tokens)
    trials = 16 if facts.has_gpu else 8
    top, seeds = (3, 2) if facts.has_gpu else (2, 1)
    trial_s = steps * batch * tokens * facts.seconds_per_token
    whole_s = (0.6 * trials + top * seeds) * trial_s + _OVERHEAD_S
    limit = min(_LONGEST_S, max(_SHORTEST_S, 2 * whole_s))
    limit = math.ceil(limit / 900) * 900
    sections: dict[str, dict[str, Choice]] = {
        "data": {"max_tokens": max_tokens},
        "lora": {
            "targets": ("all-linear", "every linear layer (QLoRA, arXiv:2305.14314, section 4)")
        },
        "optim": {
            "steps": (steps, why_steps),
            "batch_size": (batch, "rows a step: few rows allow few steps of large batches"),
            "warmup_steps": (math.ceil(0.03 * steps), "3 % of the steps, as for QLoRA"),
        },
        "eval": _evaluation(facts, steps, every),
        "space": _space(facts),
        "schedule": {
            "algorithm": ("asha", "stops the weaker half at each rung (arXiv:1810.05934)"),
            "grace_steps": (_grace(steps, every), "no trial is stopped before"),
        },
        "budget": {
            "trials": (trials, f"configurations of {_knobs(facts)} settings"),
            "wall_clock_s": (limit, f"{format_duration(limit)} at most; raise it to go on"),
        },
        "hosts": {"seats": (4 if facts.has_gpu else 2, "trials that share one base in memory")},
        "finals": {
            "top": (top, "the best, trained again"),
            "seeds": (seeds, "times each, with new seeds"),
            "forms": (["trained", "merged"], "as it was trained, and merged into the base"),
        },
    }
    return Draft(
        sections=sections, cost=_cost(facts, trials, top * seeds, steps * batch, tokens, trial_s)
    )


def _max_tokens(facts: Facts) -> Choice:
    longest = facts.longest
    usual = 4096 if facts.has_gpu else 1024
    bound = min(facts.positions or usual, usual)
    about = "" if facts.is_counted else "estimated from characters: "
    if longest <= bound:
        fitting = min(bound, math.ceil(longest * (1 if facts.is_counted else 1.5) / 16) * 16)
        return fitting, f"{about}the longest row has {longest} tokens"
    cut = sum(length > bound for length in facts.lengths)
    where = "this GPU" if facts.has_gpu else "a CPU"
    why = "of the base" if bound == facts.positions else f"that {where} trains in useful time"
    return bound, f"the most {why}; {about}{cut} of {facts.rows} training rows are cut"


def _steps(facts: Facts, batch: int, tokens: float) -> tuple[int, int, str]:
    """Steps of a trial, a multiple of the distance of evaluations, and the reason."""
    epochs = next((number for below, number in _EPOCHS if facts.rows < below), 1)
    wanted = math.ceil(epochs * facts.rows / batch)
    step_s = batch * tokens * facts.seconds_per_token
    most = max(12, math.floor(_LONGEST_TRIAL_S[facts.has_gpu] / step_s))
    every = max(1, round(min(wanted, most) / 6))
    steps = 6 * every
    said = f"{steps * batch / facts.rows:.2g} epochs of {facts.rows} rows"
    if most < wanted:
        said += f", not {epochs}: more would take too long here"
    return steps, every, said


def _grace(steps: int, every: int) -> int:
    return min(steps, 2 * every)


def _evaluation(facts: Facts, steps: int, every: int) -> dict[str, Choice]:
    chosen: dict[str, Choice] = {"every": (every, f"{steps // every} evaluations a trial")}
    most = 200 if facts.has_gpu else 60
    if facts.validation_rows > most:
        chosen["max_rows"] = (most, f"a sample of {facts.validation_rows} validation rows")
    return chosen


def _space(facts: Facts) -> dict[str, Choice]:
    ranks = (
        [4, 8, 16] if facts.rows < 500 else [8, 16, 32] if facts.rows < 20_000 else [16, 32, 64]
    )
    if facts.width is None:
        low, high, why = 5e-5, 2e-3, "the setting that matters most"
    else:
        usual = usual_rate(facts.width)
        low, high = _rounded(usual / 5), _rounded(usual * 5)
        why = f"around {usual:.1g}, usual for a base of width {facts.width}; it matters most"
    space: dict[str, Choice] = {
        "optim.learning_rate": ({"log_uniform": [low, high]}, why),
        "lora.rank": ({"choice": ranks}, f"capacity for {facts.rows} rows"),
        "lora.alpha": ({"tied": "2 * lora.rank"}, "one scaling at every rank (arXiv:2405.09673)"),
        "lora.dropout": ({"choice": [0.0, 0.1]}, "0.1 for QLoRA up to 13 B weights"),
    }
    return space


def _knobs(facts: Facts) -> int:
    return sum("tied" not in value for value, _ in _space(facts).values())


def _rounded(rate: float) -> float:
    return float(f"{rate:.1g}")


def _cost(
    facts: Facts, trials: int, repeats: int, rows: int, tokens: float, trial_s: float
) -> str:
    kind = "this GPU" if facts.has_gpu else f"{facts.machine.cores} CPU cores"
    time = "less than a minute" if trial_s < 60 else f"very roughly {format_duration(trial_s)}"
    guess = (
        f"One of them takes {time} on {kind}, guessed from the number of weights. "
        if facts.weights
        else ""
    )
    return (
        f"Cost: at most {trials + repeats} trainings of {rows} rows of about {tokens:.0f} tokens. "
        f"{guess}The time limit in the file holds in any case."
    )


def as_text(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{name}: {as_text(one)}" for name, one in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_text, value))}]"
    if isinstance(value, float):
        # PyYAML reads 1e-4 as text.
        return f"{value:.1e}" if 0 < abs(value) < 1e-2 else str(value)
    if not isinstance(value, str):
        return str(value)
    is_plain = re.fullmatch(r"[A-Za-z./][\w./@-]*", value) and yaml.safe_load(value) == value
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def lines_of(section: str, choices: Mapping[str, Choice]) -> Iterator[str]:
    """The lines of a section; a reason stands behind its value, or above it if that is long."""
    yield f"{section}:"
    texts = {name: f"  {name}: {as_text(value)}" for name, (value, _) in choices.items()}
    short = [
        text
        for text, (_, reason) in zip(texts.values(), choices.values(), strict=True)
        if len(text) <= _WIDEST and len(text) + len(reason) + 4 <= _LINE
    ]
    width = max(map(len, short), default=0)
    for name, (_, reason) in choices.items():
        line = f"{texts[name]:{width}}  # {reason}" if reason else texts[name]
        if len(line) > _LINE and reason:
            yield f"  # {reason}"
            line = texts[name]
        yield line
