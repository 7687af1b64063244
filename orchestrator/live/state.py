"""The state of a sweep as its folder tells it: running, interrupted or ended, and how far."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.live.leader import find_leader
from orchestrator.live.outlook import estimate_outlook
from orchestrator.live.trials import setting_names
from orchestrator.outcome import Outcome
from orchestrator.spec.sweep import SweepSpec
from orchestrator.wording import format_duration

Condition = Literal["running", "interrupted", "ended"]

_PHASES = (
    "starting Ray",
    "searching",
    "training the best again",
    "evaluating",
    "ending hosts",
    "evaluating serving forms",
    "registering",
    "recording",
)
"""Phases of `orchestrator.run` in their order."""

_STAGES = {"search": "searching", "repeats": "training the best again"}


@dataclass(frozen=True, kw_only=True)
class SweepState:
    """The state at one moment.

    Attributes:
        condition: Whether a driver runs the sweep, has left it unfinished, or has ended it.
        phase: The phase in work, or in which the sweep was interrupted; empty after the end.
        since: Start of the present session, time of the last event of the interrupted one, or the
            end; in seconds since the epoch.
        again: The command that goes on with the sweep; empty where nothing is left to do.
    """

    condition: Condition
    phase: str
    since: float
    again: str

    def describe(self, now: float) -> list[str]:
        """One or two lines for people."""
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        ago = format_duration(max(0.0, round(now - self.since)))
        if self.condition == "running":
            return [f"running since {at}: {self.phase}"]
        if self.condition == "interrupted":
            return [
                f"interrupted at {at}, {ago} ago, while {self.phase}",
                f"go on with: {self.again}",
            ]
        return [f"ended at {at}, {ago} ago"]


def read_state(history: SweepHistory, location: str, is_driven: bool) -> SweepState:
    """The state of a sweep.

    Args:
        history: History of its log.
        location: The sweep's folder as the user wrote it.
        is_driven: Whether a driver runs the sweep now.
    """
    condition: Condition = "ended"
    if history.status == "running" or is_driven:
        condition = "running" if is_driven else "interrupted"
    is_done = condition == "running" or history.status == Outcome.COMPLETED
    begins = history.meter.begins
    return SweepState(
        condition=condition,
        phase="" if condition == "ended" else _phase(history),
        since=begins[-1] if condition == "running" and begins else history.meter.last_at,
        again="" if is_done else shlex.join(["lorchestra", "resume", location]),
    )


def state_as_json(
    spec: SweepSpec, history: SweepHistory, state: SweepState, location: str
) -> dict[str, Any]:
    """The state, the counts, the leader and every trial, as plain values for JSON."""
    is_running = state.condition == "running"
    outlook = estimate_outlook(spec, history)
    leader = find_leader(spec, history)
    return {
        "name": spec.name,
        "sweep_id": history.sweep_id,
        "storage": location,
        "state": state.condition,
        "outcome": history.status if state.condition == "ended" else None,
        "reason": history.reason,
        "phase": state.phase or None,
        "since": state.since,
        "continue_with": state.again or None,
        "trials": {
            "done": outlook.done,
            "running" if is_running else "unfinished": outlook.running,
            "to_come": outlook.to_come,
        },
        "search_left_s": outlook.search_s if is_running else None,
        "finals_left_s": outlook.finals_s if is_running else None,
        "leader": None if leader is None else {"trial": leader.number, "why": leader.text},
        "spent": {
            "wall_clock_s": history.meter.wall_clock_s(time.time() if is_running else None),
            "cpu_seconds": history.meter.cpu_s,
            "gpu_seconds": history.meter.gpu_s,
        },
        "hosts": {
            "memory": [dataclasses.asdict(one) for one in history.hosts_measured],
            "seats": [dataclasses.asdict(one) for _, one in history.seats_decided],
        },
        "objective": {"metric": spec.objective.metric, "mode": spec.objective.mode},
        "leaderboard": [_trial_as_json(spec, one) for one in history.trials.values()],
    }


def _trial_as_json(spec: SweepSpec, record: TrialRecord) -> dict[str, Any]:
    reports = record.measured
    last: Mapping[str, float] = reports[-1].metrics if reports else {}
    settings = {}
    for name in setting_names(spec):
        section, _, key = name.rpartition(".")
        within = record.spec.get(section, {}) if section else record.spec
        settings[name] = within.get(key)
    return {
        "trial": record.number,
        "outcome": record.outcome,
        "reason": record.reason,
        "step": record.step,
        "metrics": dict(last),
        "settings": settings,
        "repeat_of": record.repeat_of,
        "ref": record.ref,
    }


def _phase(history: SweepHistory) -> str:
    """The phase after the last one that ended, without the stages that have no work left."""
    skipped = {phase for stage, phase in _STAGES.items() if stage in history.stages}
    after = _PHASES.index(history.last_phase) + 1 if history.last_phase in _PHASES else 0
    left = [phase for phase in _PHASES[after:] if phase not in skipped]
    return left[0] if left else _PHASES[-1]
