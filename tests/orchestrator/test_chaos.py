"""Killed at seeded moments, a sweep comes to what it comes to undisturbed; the checks see else."""

import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.support.events import entry

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
EVERY = 8


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checks = load("chaos_checks")
chaos = load("chaos")


# ------------------------------------------------------------------------------- the checks


def event(kind, **fields):
    return entry(kind, 0.0, **fields)


def report(step, trial=0, loss=1.0):
    metrics = {"eval_loss": loss, "train_loss": 2 * loss, "host_s": 1.0}
    return event("report", trial=trial, step=step, metrics=metrics)


START = event("trial_started", trial=0, knobs={}, spec={"seed": 0})
END = event("trial_ended", trial=0, outcome="completed", reason="", step=16, bundle="b")
REGISTERED = event("registered", trial=0, ref="tiny/1", digest="sha256:1")
SOUND = checks.Traces(
    events=[
        event("sweep_started", sweep_id="s", spec={}, digest="d"),
        event("start_points", points=[]),
        START,
        report(8),
        report(16),
        END,
        event("stage_ended", stage="search", reason="", under={}),
        event("base_evaluated", base="b", split="test", metrics={"test_loss": 3.0}),
        event("final_evaluated", trial=0, metrics={"test_loss": 2.0}),
        REGISTERED,
        event("promoted", ref="tiny/1", promoted=True, reason=""),
        event("sweep_ended", status="completed", reason=""),
    ],
    adapters={"t0000": "abc"},
    tracked=checks.Tracked(
        sweeps=1, steps=[(0, (8, 16))], versions={1: (0, "sha256:1")}, champion=1
    ),
)
SAVES = {("t0000", 8): 1, ("t0000", 16): 1}


def with_events(*more):
    return replace(SOUND, events=[*SOUND.events, *more])


def without(kind):
    return replace(SOUND, events=[each for each in SOUND.events if each.kind != kind])


def with_tracked(**changes):
    return replace(SOUND, tracked=replace(SOUND.tracked, **changes))


def test_a_sound_sweep_has_no_faults_and_no_differences():
    assert checks.find_faults(SOUND, SAVES, EVERY) == []
    slower = [
        replace(each, event=replace(each.event, metrics={**each.event.metrics, "host_s": 9}))
        if each.kind == "report"
        else each
        for each in with_events(event("sweep_resumed")).events
    ]
    assert checks.find_differences(replace(SOUND, events=slower), SOUND) == []


@pytest.mark.parametrize(
    ("traces", "fault"),
    [
        (with_events(START), "2 events trial_started 0"),
        (with_events(END), "2 events trial_ended 0"),
        (with_events(REGISTERED), "2 events registered tiny/1"),
        (with_events(report(16)), "trial 0: reported steps [8, 16, 16]"),
        (with_events(report(32)), "trial 0: reported steps [8, 16, 32]"),
        (without("stage_ended"), "no event stage_ended"),
        (without("sweep_ended"), "the sweep ended as []"),
        (with_tracked(sweeps=2), "MLflow: 2 runs of the sweep"),
        (with_tracked(steps=[(0, (8, 8, 16))]), "MLflow: trials with steps [(0, (8, 8, 16))]"),
        (with_tracked(steps=[(0, (8, 16))] * 2), "MLflow: trials with steps"),
        (with_tracked(versions=dict.fromkeys((1, 2), (0, "sha256:1"))), "MLflow: versions {1:"),
        (with_tracked(versions={1: (None, "sha256:1")}), "MLflow: versions {1: (None"),
    ],
    ids=[
        "trial-twice", "end-twice", "version-twice", "step-twice", "step-missing",
        "stage-without-end", "sweep-without-end", "two-sweep-runs", "point-twice",
        "two-trial-runs", "version-without-event", "version-without-run",
    ],
)  # fmt: skip
def test_what_is_there_twice_or_missing_is_a_fault(traces, fault):
    found = checks.find_faults(traces, SAVES, EVERY)
    assert any(each.startswith(fault) for each in found), found


def test_a_state_that_was_written_twice_is_a_fault():
    (fault,) = checks.find_faults(SOUND, {**SAVES, ("t0000", 16): 2}, EVERY)
    assert fault == "t0000: the state of step 16 was written 2 times"


@pytest.mark.parametrize(
    ("traces", "difference"),
    [
        (replace(SOUND, adapters={"t0000": "abd"}), "adapter of t0000: abd, undisturbed abc"),
        (replace(SOUND, adapters={}), "adapter of t0000: None"),
        (with_events(event("trial_started", trial=1, knobs={}, spec={})), "trial 1: "),
        (with_events(report(16, loss=1.1)), "report of trial 0 at 16: "),
        (without("trial_ended"), "end of trial 0: None"),
        (with_tracked(versions={1: (0, "sha256:2")}), "version 1: (0, 'sha256:2')"),
        (with_tracked(champion=None), "alias champion: None"),
    ],
    ids=["other-bits", "no-adapter", "one-more-trial", "other-loss", "no-end", "digest", "alias"],
)
def test_what_came_out_otherwise_is_a_difference(traces, difference):
    found = checks.find_differences(traces, SOUND)
    assert any(each.startswith(difference) for each in found), found


def test_moments_follow_from_the_seed_and_victims_take_turns():
    parts = chaos.draw_moments(20, 1, 68, 5)
    assert parts == chaos.draw_moments(20, 1, 68, 5) != chaos.draw_moments(20, 2, 68, 5)
    assert [len(part) for part in parts] == [5, 5, 5, 5]
    victims = Counter(moment.victim for part in parts for moment in part)
    assert victims == {"driver": 5, "host": 5, "proxy": 5, "server": 5}
    assert all(part == sorted(part, key=lambda moment: moment.events) for part in parts)


def test_the_phase_is_what_comes_after_those_that_are_over():
    searched = [SOUND.events[0], event("phase", name="starting Ray", seconds=1.0)]
    assert chaos.phase_of(searched) == "searching"
    ended = [*searched, event("stage_ended", stage="search", reason="", under={})]
    assert chaos.phase_of(ended) == "training the best again"
    assert chaos.phase_of([*ended, event("sweep_resumed")]) == "starting Ray"
    over = [event("phase", name="ending hosts", seconds=1.0)]
    assert (chaos.can_come("host", ended), chaos.can_come("host", over)) == (True, False)


# ---------------------------------------------------------------------------------- kills


@pytest.fixture(scope="module")
def arena(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A server, and what the sweep comes to undisturbed."""
    folder = tmp_path_factory.mktemp("chaos")
    inputs = chaos.build_inputs(folder)
    with chaos.Server(folder / "mlflow") as server:
        first = chaos.Sweep(folder / "undisturbed", inputs, "undisturbed", server.uri)
        yield SimpleNamespace(
            folder=folder,
            inputs=inputs,
            server=server,
            reference=chaos.run_undisturbed(first, server),
        )


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("victim", ["driver", "host", "server"])
def test_a_killed_part_changes_nothing_of_what_comes_out(arena, victim):
    events = chaos.count_events(arena.reference.events)
    ((moment,),) = chaos.draw_moments(1, 5, events, 1, [victim])
    sweep = chaos.Sweep(arena.folder / victim, arena.inputs, victim, arena.server.uri)
    result = chaos.disturb(sweep, arena.server, [moment], arena.reference)
    assert [kill.moment for kill in result.kills] == [moment]
    assert result.problems == []
