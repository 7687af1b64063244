"""Hosts of a sweep on given CPUs and GPUs."""

import pytest

from orchestrator.hosts.placement import place
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


def test_host_failures_allowed_are_the_sweeps():
    assert place(build_spec(RANK, max_failures=2), 2, 0).shape.max_failures == 2
