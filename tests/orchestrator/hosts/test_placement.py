"""Hosts of a sweep on given CPUs and GPUs."""

from dataclasses import replace

import pytest

from orchestrator.hosts.placement import logical_cpus, place, place_on
from orchestrator.resources.nodes import Node
from orchestrator.spec.hosts_section import HostsSpec
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


@pytest.mark.parametrize(
    ("count", "gpus", "cpus_hosts", "gpu_hosts"),
    [(None, 4, 2, 4), (3, 4, 3, 3), (8, 4, 8, 4), ({"min": 1, "max": 2}, 4, 2, 2)],
    ids=["null", "fewer", "more", "range"],
)
def test_count_limits_hosts_on_gpus_and_says_their_number_on_cpus(
    count, gpus, cpus_hosts, gpu_hosts
):
    spec = build_spec(TWO_FORMS, count=count)
    assert place(spec, 4, 0).limits.max_hosts == cpus_hosts
    assert place(spec, 4, gpus).limits.max_hosts == gpu_hosts
    assert place(spec, 4, 0).limits.hosts_per_group == (1 if count is None else None)


HEAD = Node(node_id="h")
STEADY = Node(node_id="s", cpus=2.0, steady=1000)
A100 = Node(node_id="a", cpus=1.0, gpus=1, gpu_type="A100", has_type_resource=True)
L4 = replace(A100, node_id="l", gpu_type="L4")


def test_a_cluster_without_a_gpu_has_no_host_on_gpus_and_one_on_cpus():
    spec = build_spec(RANK, seats=2)
    on_gpus = place_on(spec, [HEAD, STEADY], on_gpus=True)
    assert (on_gpus.limits.max_hosts, on_gpus.max_trials, on_gpus.shape.gpus) == (0, 0, 1.0)
    on_cpus = place_on(spec, [HEAD, STEADY], on_gpus=False)
    assert (on_cpus.limits.max_hosts, on_cpus.max_trials, on_cpus.shape.gpus) == (1, 2, 0.0)


def test_gpus_of_the_wanted_type_alone_have_hosts():
    every, wanted = build_spec(RANK), build_spec(RANK, gpu_type="l4")
    nodes = [HEAD, A100, L4]
    assert place_on(every, nodes, on_gpus=True).limits.max_hosts == 2
    assert place_on(every, nodes, on_gpus=True).shape.gpu_type is None
    assert place_on(wanted, nodes, on_gpus=True).limits.max_hosts == 1
    assert place_on(wanted, nodes, on_gpus=True).shape.gpu_type == "l4"


def test_trials_at_once_are_no_more_than_have_room_for_their_proxies():
    nodes = [HEAD, replace(STEADY, cpus=0.5), A100]
    assert place_on(build_spec(RANK, seats=8), nodes, on_gpus=True).max_trials == 5


def test_an_own_ray_has_a_cpu_for_each_core_and_a_tenth_for_each_proxy():
    assert logical_cpus(build_spec(RANK, seats=2), 4) == 5
    assert logical_cpus(build_spec(TWO_FORMS, seats=8), 2) == 4
