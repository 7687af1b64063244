"""Placement of a sweep on the available CPUs and GPUs."""

import os
import signal
import subprocess
import sys

import pytest
import ray

from orchestrator.hosts.cluster import keeping_signals, place, ray_cluster
from orchestrator.spec.sections import HostsSpec
from orchestrator.spec.sweep import BudgetSpec, SweepSpec
from trainables.spec import BaseSpec, DataSpec, EvalSpec, OptimSpec

RANK = {"lora.rank": {"choice": [2, 4]}}
TWO_FORMS = RANK | {"base.quantization": {"choice": ["nf4", "fp4"]}}
SIX_FORMS = TWO_FORMS | {"base.double_quant": {"choice": [True, False]}}


def build_spec(space, **hosts):
    return SweepSpec(
        name="tiny",
        base=BaseSpec(model="owner/name"),
        data=DataSpec(train="owner/rows"),
        optim=OptimSpec(steps=20),
        eval=EvalSpec(every=10),
        budget=BudgetSpec(trials=4),
        space=space,
        hosts=HostsSpec(**hosts),
    )


@pytest.mark.parametrize(
    ("space", "cpus", "hosts", "threads"),
    [
        (RANK, 1, 1, 1),
        (RANK, 8, 1, 8),
        (TWO_FORMS, 1, 1, 1),
        (TWO_FORMS, 2, 2, 1),
        (TWO_FORMS, 8, 2, 4),
        (SIX_FORMS, 8, 4, 2),
        (SIX_FORMS, 3, 3, 1),
    ],
    ids=["1-form-1-cpu", "1-form-8", "2-forms-1", "2-forms-2", "2-forms-8", "4-forms-8", "4-in-3"],
)
def test_on_a_cpu_each_form_of_the_base_has_a_host_and_its_share_of_the_cores(
    space, cpus, hosts, threads
):
    placement = place(build_spec(space, seats=3), cpus, 0)
    assert (placement.limits.max_hosts, placement.shape.torch_threads) == (hosts, threads)
    assert placement.limits.hosts_per_group == 1
    assert placement.shape.gpus == 0.0
    assert placement.max_trials == 3 * hosts


@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize("space", [RANK, TWO_FORMS], ids=["one-form", "two-forms"])
def test_each_gpu_is_a_host_whatever_the_forms(space, gpus):
    placement = place(build_spec(space, seats=8), 16, gpus)
    assert placement.limits.max_hosts == gpus
    assert placement.limits.hosts_per_group is None
    assert placement.shape.gpus == 1.0
    assert placement.max_trials == 8 * gpus
    assert placement.shape.torch_threads == 16 // gpus


@pytest.mark.parametrize(
    ("cpus", "gpus", "hosts"), [(8, 0, 3), (2, 0, 2), (8, 2, 2)], ids=["seats", "cores", "gpus"]
)
def test_fresh_hosts_serve_one_trial_each(cpus, gpus, hosts):
    placement = place(build_spec(TWO_FORMS, seats=3, fresh=True), cpus, gpus)
    assert placement.limits.is_fresh
    assert placement.limits.hosts_per_group is None
    assert placement.limits.max_hosts == placement.max_trials == hosts


@pytest.mark.parametrize(
    ("gpus", "hosts", "seats", "finds", "most"),
    [
        (0, {}, 1, False, 1),
        (0, {"memory_gib": 2.0}, 1, True, 10),
        (2, {}, 1, True, 20),
        (2, {"seats": 3}, 3, False, 6),
        (2, {"fresh": True}, 1, False, 2),
        (0, {"fresh": True}, 1, False, 1),
    ],
)
def test_hosts_decide_on_their_seats_where_their_memory_is_known(gpus, hosts, seats, finds, most):
    placement = place(build_spec(RANK, **hosts), 8, gpus)
    assert (placement.limits.seats, placement.shape.finds_seats) == (seats, finds)
    assert placement.max_trials == most
    assert placement.shape.memory == (2 * 2**30 if "memory_gib" in hosts else None)


def test_the_engine_of_a_host_is_the_sweeps():
    assert place(build_spec(RANK), 2, 0).shape.engine == "auto"
    assert place(build_spec(RANK, engine="batched"), 2, 0).shape.engine == "batched"


def test_host_failures_allowed_are_the_sweeps():
    assert place(build_spec(RANK, max_failures=2), 2, 0).shape.max_failures == 2


def test_sigterm_does_what_it_did_before_ray_took_it():
    def handler(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with keeping_signals():
            signal.signal(signal.SIGTERM, lambda number, frame: None)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_sigterm_that_ray_answered_is_answered_by_the_handler_from_before():
    def handler(number, frame):
        raise KeyboardInterrupt

    def start_ray_and_terminate():
        with keeping_signals():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start_ray_and_terminate()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.ray
def test_a_ray_that_runs_already_is_joined_and_left_running(local_ray, monkeypatch):
    monkeypatch.delenv("TUNE_DISABLE_SIGINT_HANDLER", raising=False)
    with ray_cluster(build_spec(RANK, seats=2)) as placement:
        assert placement.limits.seats == 2
        assert placement.shape.torch_threads <= (os.cpu_count() or 1)
        assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"
    assert ray.is_initialized()


def test_a_ray_that_does_not_start_is_told_with_a_remedy() -> None:
    command = "from orchestrator.hosts import cluster; cluster.ray_for_evaluation().__enter__()"
    done = subprocess.run(
        [sys.executable, "-c", command],
        env={**os.environ, "RAY_TMPDIR": "/dev/null"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stderr.splitlines()[-1]
    assert said.startswith("orchestrator.errors.ClusterError: RAY_TMPDIR: got ")
    assert "where Ray cannot keep its sockets (" in said
    assert "Correct it, or set RAY_TMPDIR to another" in said
