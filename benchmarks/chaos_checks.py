"""What a sweep that was killed at and resumed must still be: once over, and as if undisturbed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.journal.events import (
    AdapterRegistered,
    FinalistEvaluated,
    LogEntry,
    SweepEnded,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.log import read_events
from registry import Registry
from registry.tracking.connection import connect
from registry.tracking.search import find_runs

TIMED = ("tokens_per_s", "peak_memory_gib", "host_peak_memory_gib", "host_s")
"""Metrics that tell how fast the machine was."""

Saves = Mapping[tuple[str, int], int]
"""How often a trial's state of a step was seen to be written, by the trial's folder and step."""


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """What MLflow holds of one sweep.

    Attributes:
        sweeps: Runs of the sweep itself.
        steps: Of each run of a trial, its number with the steps of `eval_loss` in order.
        versions: Trial (by its run) and digest of each registered version, by number.
        champion: Version that the alias points at.
    """

    sweeps: int
    steps: Sequence[tuple[int, tuple[int, ...]]]
    versions: Mapping[int, tuple[int | None, str]]
    champion: int | None


@dataclass(frozen=True, kw_only=True)
class Traces:
    """All that a sweep leaves.

    Attributes:
        events: Its log.
        adapters: SHA-256 of each trial's adapter, by the trial's folder.
        tracked: What MLflow holds of it.
    """

    events: Sequence[LogEntry]
    adapters: Mapping[str, str]
    tracked: Tracked


def read_traces(storage: Path, tracking_uri: str, model: str) -> Traces:
    """What lies in a storage folder and in MLflow."""
    events = list(read_events(storage / "events.jsonl"))
    history = SweepHistory()
    history.apply(events[0])
    files = sorted(storage.glob("trials/*/bundle/adapter_model.safetensors"))
    return Traces(
        events=events,
        adapters={f.parts[-3]: hashlib.sha256(f.read_bytes()).hexdigest() for f in files},
        tracked=read_tracked(tracking_uri, str(history.sweep_id), model),
    )


def read_tracked(tracking_uri: str, sweep_id: str, model: str) -> Tracked:
    """What MLflow holds of the sweep and of the adapter it registers."""
    client = connect(tracking_uri)
    experiment = client.get_experiment_by_name("lorchestra")
    runs = list(find_runs(client, [experiment.experiment_id], {"lorchestra.sweep": sweep_id}))
    trials = [run for run in runs if run.data.tags["lorchestra.kind"] == "trial"]
    versions = Registry(tracking_uri).versions(model)
    numbers = {run.info.run_id: int(run.data.tags["lorchestra.trial"]) for run in trials}
    champions = [version.version for version in versions if "champion" in version.aliases]
    return Tracked(
        sweeps=len(runs) - len(trials),
        steps=sorted((numbers[run.info.run_id], _steps_of(client, run)) for run in trials),
        versions={
            version.version: (numbers.get(version.run_id or ""), version.digest)
            for version in versions
        },
        champion=next(iter(champions), None),
    )


def _steps_of(client: Any, run: Any) -> tuple[int, ...]:
    points = client.get_metric_history(run.info.run_id, "eval_loss")
    return tuple(sorted(point.step for point in points))


def find_faults(traces: Traces, saves: Saves, every: int) -> list[str]:
    """What is there twice, or missing, or trained twice; judged by the sweep alone.

    Args:
        traces: What the sweep left.
        saves: What was seen of its states while it ran.
        every: Steps between reports.
    """
    return [
        *_find_repeated_events(traces.events),
        *_find_step_faults(traces.events, every),
        *_find_tracking_faults(traces),
        *(
            f"{trial}: the state of step {step} was written {count} times"
            for (trial, step), count in sorted(saves.items())
            if count > 1
        ),
    ]


_IDENTITY: Mapping[str, tuple[str, ...]] = {
    "sweep_started": (),
    "start_points": (),
    "stage_ended": ("stage",),
    "trial_started": ("trial",),
    "trial_ended": ("trial",),
    "base_evaluated": ("base", "split"),
    "final_evaluated": ("trial",),
    "registered": ("ref",),
    "promoted": ("ref",),
}
"""Events that a sweep has once for each value of these fields."""


def _find_repeated_events(events: Sequence[LogEntry]) -> Iterator[str]:
    counts = Counter(
        (event.kind, *(getattr(event.event, name) for name in _IDENTITY[event.kind]))
        for event in events
        if event.kind in _IDENTITY
    )
    yield from (
        f"{count} events {' '.join(map(str, what))}" for what, count in counts.items() if count > 1
    )
    yield from (f"no event {kind}" for kind in _IDENTITY if kind not in {w[0] for w in counts})
    ends = [str(each.event.status) for each in events if isinstance(each.event, SweepEnded)]
    if ends[-1:] != ["completed"]:
        yield f"the sweep ended as {ends[-1:]}"


def _find_step_faults(events: Sequence[LogEntry], every: int) -> Iterator[str]:
    for trial, steps in reported_steps(events).items():
        if list(steps) != list(range(every, steps[-1] + 1, every)):
            yield f"trial {trial}: reported steps {list(steps)}"


def reported_steps(events: Sequence[LogEntry]) -> dict[int, tuple[int, ...]]:
    """Steps of each trial's reports, as they came."""
    steps: dict[int, tuple[int, ...]] = {}
    for each in events:
        if isinstance(each.event, TrialReported):
            trial = each.event.trial
            steps[trial] = (*steps.get(trial, ()), each.event.step)
    return steps


def _find_tracking_faults(traces: Traces) -> Iterator[str]:
    tracked = traces.tracked
    if tracked.sweeps != 1:
        yield f"MLflow: {tracked.sweeps} runs of the sweep"
    wanted = sorted(reported_steps(traces.events).items())
    if list(tracked.steps) != wanted:
        yield f"MLflow: trials with steps {list(tracked.steps)}, not {wanted}"
    registered = {
        int(each.event.ref.rpartition("/")[2]): (each.event.trial, each.event.digest)
        for each in traces.events
        if isinstance(each.event, AdapterRegistered)
    }
    if tracked.versions != registered:
        yield f"MLflow: versions {dict(tracked.versions)}, not {registered}"


def find_differences(traces: Traces, reference: Traces, is_exact: bool = True) -> list[str]:
    """Where a sweep came out otherwise than an undisturbed one of the same spec.

    Args:
        traces: What the sweep left.
        reference: What the undisturbed one left.
        is_exact: Whether all follows from the spec; else only how many trials of the search and
            repeats were finished, and that one version is champion.
    """
    if not is_exact:
        return [
            *_differ("finished trials: ", _finished(traces), _finished(reference)),
            *([] if traces.tracked.champion else ["no version is champion"]),
        ]
    return [
        *_differ("", _results(traces.events), _results(reference.events)),
        *_differ("adapter of ", traces.adapters, reference.adapters),
        *_differ("version ", traces.tracked.versions, reference.tracked.versions),
        *_differ(
            "alias ",
            {"champion": traces.tracked.champion},
            {"champion": reference.tracked.champion},
        ),
    ]


def _finished(traces: Traces) -> dict[str, Any]:
    """Trials of the search that ended with an adapter or as worse than others, and repeats.

    A repeat's number follows those of all suggestions, the fruitless ones included, so repeats are
    counted.
    """
    repeats = {
        each.event.trial
        for each in traces.events
        if isinstance(each.event, TrialStarted) and each.event.repeat_of is not None
    }
    ended = {
        each.event.trial
        for each in traces.events
        if isinstance(each.event, TrialEnded) and each.event.outcome in ("completed", "stopped")
    }
    return {"search": sorted(ended - repeats), "repeats": len(ended & repeats)}


def _differ(what: str, found: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> Iterator[str]:
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            yield f"{what}{key}: {found.get(key)}, undisturbed {wanted.get(key)}"


def _results(events: Sequence[LogEntry]) -> dict[str, Any]:
    """What trials were, measured and came to: all of it follows from the spec.

    `train_loss` is the mean over the steps since the report before it, so equal ones say that each
    stretch was trained from there, and not from further back.
    """
    results: dict[str, Any] = {}
    for event in (each.event for each in events):
        if isinstance(event, TrialStarted):
            results[f"trial {event.trial}"] = event.spec, event.repeat_of
        elif isinstance(event, TrialReported):
            metrics = {k: v for k, v in event.metrics.items() if k not in TIMED}
            results[f"report of trial {event.trial} at {event.step}"] = metrics
        elif isinstance(event, TrialEnded):
            end = event.outcome, event.reason, event.step, event.bundle
            results[f"end of trial {event.trial}"] = end
        elif isinstance(event, FinalistEvaluated):
            results[f"finals of trial {event.trial}"] = event.metrics
    return results
