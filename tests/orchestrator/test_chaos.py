"""Killed at seeded moments, a sweep comes to what it comes to undisturbed; the checks see else."""

import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from orchestrator.live.screen import LogScreen
from tests.support.events import ANY_TRIAL, entry

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
sweeps = load("chaos_sweeps")
moments = load("chaos_moments")
chaos = load("chaos")


# ------------------------------------------------------------------------------- the checks


def event(kind, **fields):
    return entry(kind, 0.0, **fields)


def report(step, trial=0, loss=1.0):
    metrics = {"eval_loss": loss, "train_loss": 2 * loss, "host_s": 1.0}
    return event("report", trial=trial, step=step, metrics=metrics)


START = event("trial_started", trial=0, knobs={}, spec=ANY_TRIAL)
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
        (with_events(event("trial_started", trial=1, knobs={}, spec=ANY_TRIAL)), "trial 1: "),
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


def test_moments_follow_from_the_seed_and_deeds_take_turns():
    starts = {name: 10 * number for number, name in enumerate(moments.PHASES)}
    parts = moments.draw_moments(60, 1, starts, 5)
    assert (
        parts == moments.draw_moments(60, 1, starts, 5) != moments.draw_moments(60, 2, starts, 5)
    )
    assert [len(part) for part in parts] == [5] * 12
    drawn = [moment for part in parts for moment in part]
    assert Counter(moment.deed for moment in drawn) == dict.fromkeys(moments.DEEDS, 4)
    assert {moment.phase for moment in drawn} >= {"registering", "evaluating", "ending hosts"}
    assert all(part == sorted(part, key=lambda one: one.events) for part in parts)
    assert all(0 < moment.events < 60 for moment in drawn if not moment.phase)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (
            {"events": [each for each in SOUND.events if each is not END]},
            "finished trials: search",
        ),
        ({"tracked": replace(SOUND.tracked, champion=None)}, "no version is champion"),
        ({"adapters": {"t0000": "other bits"}}, ""),
    ],
    ids=["trial", "champion", "bits"],
)
def test_of_several_seats_only_the_finished_trials_are_compared(changes, difference):
    found = checks.find_differences(replace(SOUND, **changes), SOUND, is_exact=False)
    assert [each.startswith(difference) for each in found] == [True] * bool(difference)


def test_the_phase_is_what_comes_after_those_that_are_over():
    searched = [SOUND.events[0], event("phase", name="starting Ray", seconds=1.0)]
    assert moments.phase_of(searched) == "searching"
    ended = [*searched, event("stage_ended", stage="search", reason="", under={})]
    assert moments.phase_of(ended) == "training the best again"
    assert moments.phase_of([*ended, event("sweep_resumed")]) == "starting Ray"
    over = [event("phase", name="ending hosts", seconds=1.0)]
    assert (moments.can_come("host", ended), moments.can_come("host", over)) == (True, False)


# ------------------------------------------------------------------------------- moments


class Arena:
    """A server, and what a kind of sweep comes to undisturbed."""

    def __init__(self, folder, server, kind):
        self.folder, self.server, self.kind = folder, server, kind
        self.inputs = sweeps.build_inputs(folder)
        name = f"undisturbed-{kind}"
        first = sweeps.Sweep(folder / name, self.inputs, name, server.uri, kind)
        self.reference = moments.run_undisturbed(first, server)

    def disturb(self, name, deeds):
        """One sweep with one moment for each deed, drawn by a seed."""
        starts = moments.phase_starts(self.reference.events)
        (drawn,) = moments.draw_moments(len(deeds), 5, starts, len(deeds), deeds)
        with sweeps.small_disk(self.folder / name) as disk:
            sweep = sweeps.Sweep(disk, self.inputs, name, self.server.uri, self.kind)
            return moments.disturb(sweep, self.server, drawn, self.reference)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Any]:
    with sweeps.Server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="module")
def arena(tmp_path_factory, server):
    return Arena(tmp_path_factory.mktemp("chaos"), server, "random")


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_three_moments_change_nothing_of_what_comes_out(tmp_path, server):
    arena = Arena(tmp_path, server, "short")
    result = arena.disturb("quick", ["kill host", "kill proxy", "end driver"])
    assert [blow.done[:4] for blow in result.blows].count("none") == 0
    assert result.problems == []


@pytest.mark.parametrize("phase", moments.PHASES)
def test_the_lines_of_a_sweep_tell_that_a_phase_has_begun(phase, capsys):
    screen = LogScreen(Console(width=80))
    for line in ("trial 4  started", f"{phase} the adapter", f"not yet {phase}"):
        screen.print(line)
    assert not moments.has_begun(phase, before := capsys.readouterr().out)
    screen.print(phase)
    assert moments.has_begun(phase, before + capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("name", "deeds"),
    [
        ("kills", ["kill driver", "kill broker", "damage state", "kill controller"]),
        ("others", ["second driver", "fail server", "fill disk"]),
        ("late", ["kill server", "stop host", "kill evaluator"]),
    ],
)
def test_ten_moments_change_nothing_of_what_comes_out(arena, name, deeds):
    result = arena.disturb(name, deeds)
    assert [blow.done[:4] for blow in result.blows].count("none") == 0
    assert result.problems == []
