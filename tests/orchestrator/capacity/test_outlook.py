"""The outlook of a sweep: groups, what fits, the nearest change, and nothing guessed."""

import json
import struct
from dataclasses import replace

import pytest

from orchestrator.capacity.hardware import GB, GPUS, hardware_of_cpu
from orchestrator.capacity.lengths import SweepLengths
from orchestrator.capacity.outlook import look_ahead
from orchestrator.spec.hosts_section import HostsSpec
from orchestrator.spec.sections import BudgetSpec
from orchestrator.spec.sweep import build_trial
from tests.support.events import event
from tests.support.sweeps import build_sweep
from tests.trainables.memory.test_published import LLAMA_3_8B
from trainables.memory.described import architecture_of
from trainables.memory.seating import decide_seats
from trainables.spec import BaseSpec, DataSpec, EvalSpec, OptimSpec

UNCOUNTED = SweepLengths(why="the rows are not on this machine")


@pytest.fixture
def large(tmp_path):
    """A folder that describes an 8B base, without its weights."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_3_8B))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    return folder


def ahead(folder, hardware, runs, **changes):
    fields = {
        "base": BaseSpec(model=str(folder)),
        "data": DataSpec(train="owner/rows", max_tokens=512),
        "optim": OptimSpec(steps=20, batch_size=16),
        "eval": EvalSpec(every=10, batch_size=1),
        "space": {
            "base.quantization": {"choice": ["nf4", "none"]},
            "optim.micro_batch_size": {"choice": [1, 16]},
        },
        "budget": BudgetSpec(trials=4),
        "hosts": HostsSpec(seats=2),
    }
    spec = build_sweep(**{**fields, **changes})
    lengths = {base.model: UNCOUNTED for base in spec.bases}
    return spec, look_ahead(spec, lengths, hardware, trials=4, repeats=0, runs=runs)


def test_groups_are_base_forms_with_their_sizes_and_seats(large, tmp_path):
    _, outlook = ahead(large, GPUS["h100-80"], tmp_path)
    assert [group.name for group in outlook.groups] == ["nf4+dq", "none"]
    nf4, plain = outlook.groups
    assert plain.sizes["smallest"].forecast.base > 2 * nf4.sizes["smallest"].forecast.base
    sizes = [nf4.sizes[name].forecast.total for name in ("smallest", "typical", "largest")]
    assert sizes == sorted(sizes)
    assert nf4.sizes["smallest"].seats > nf4.sizes["largest"].seats
    assert outlook.fits
    said = list(outlook.lines())
    assert said[0] == "Configurations on h100-80 (80.0 GB): 4."
    assert "an upper bound: the rows are not on this machine." in said[1]
    assert any("hosts.seats asks for 2" in line for line in said)


def test_what_does_not_fit_is_told_with_the_change_that_would(large, tmp_path):
    spec, outlook = ahead(
        large,
        GPUS["rtx4090"],
        tmp_path,
        data=DataSpec(train="owner/rows", max_tokens=4096),
        optim=OptimSpec(steps=20, batch_size=16, micro_batch_size=1, gradient_checkpointing=False),
        space={"data.train_max_tokens": {"choice": [256, 4096]}},
    )
    (nf4,) = outlook.groups
    assert (nf4.fitting, nf4.tight, nf4.configurations) == (1, 0, 2)
    assert nf4.refused.remedy == "optim.gradient_checkpointing: auto"
    assert any("1 of 2 configurations in nf4+dq do not fit" in line for line in outlook.lines())
    assert outlook.refuse(build_trial(spec, {"data.train_max_tokens": 4096})).startswith(
        "memory: it takes"
    )
    assert outlook.refuse(build_trial(spec, {"data.train_max_tokens": 256})) == ""


def test_what_fits_only_with_memory_saved_is_told_and_not_refused(large, tmp_path):
    spec, outlook = ahead(large, GPUS["rtx4090"], tmp_path)
    nf4, _ = outlook.groups
    assert (nf4.fitting, nf4.tight, nf4.configurations) == (2, 1, 2)
    assert any(
        line.startswith("1 of 2 configurations in nf4+dq fit only with decoder layers computed")
        for line in outlook.lines()
    )
    largest = build_trial(spec, {"base.quantization": "nf4", "optim.micro_batch_size": 16})
    assert outlook.refuse(largest) == ""


def test_a_base_that_is_larger_than_the_card_is_hopeless(large, tmp_path):
    _, outlook = ahead(
        large, GPUS["t4"], tmp_path, space={"base.quantization": {"choice": ["none"]}}
    )
    assert outlook.is_hopeless
    assert not outlook.fits
    said = str(outlook.refusal())
    assert said.startswith("base.model: no configuration fits t4 (15.0 GB)")
    assert "It would fit with base.quantization: nf4" in said


def test_a_near_miss_is_told_but_not_refused(large, tmp_path):
    _, outlook = ahead(large, GPUS["h100-80"], tmp_path)
    least = min(group.sizes["smallest"].least.total for group in outlook.groups)
    near = replace(GPUS["h100-80"], memory=round(least * 0.95))
    _, outlook = ahead(large, near, tmp_path)
    assert not outlook.fits
    assert not outlook.is_hopeless


def test_a_cpu_refuses_only_what_is_surely_too_large(large, tmp_path):
    hardware = hardware_of_cpu(80 * GB, has_bfloat16=True)
    _, outlook = ahead(large, hardware, tmp_path)
    least = min(group.sizes["smallest"].least.total for group in outlook.groups)
    _, near = ahead(large, replace(hardware, memory=round(least * 0.95)), tmp_path)
    assert near.fits
    _, far = ahead(large, replace(hardware, memory=round(least * 0.8)), tmp_path)
    assert far.is_hopeless


def test_without_a_device_there_is_memory_but_no_verdict(large, tmp_path):
    _, outlook = ahead(large, None, tmp_path)
    assert outlook.fits
    assert outlook.groups[0].sizes["largest"].seats is None
    assert next(iter(outlook.lines())) == "Configurations: 4."
    assert outlook.to_dict()["device"] is None
    json.dumps(outlook.to_dict())


def test_a_kind_of_model_that_is_not_known_has_no_verdict(tmp_path, byte_tokenizer):
    from tests.support.bases import DENSE, save_base

    folder = save_base(tmp_path / "base", DENSE["olmo 2"], "float32", byte_tokenizer)
    _, outlook = ahead(folder, GPUS["t4"], tmp_path)
    assert outlook.fits
    assert not outlook.is_hopeless
    assert all(group.unknown and group.base_bytes for group in outlook.groups)
    assert any("not known beforehand" in line for line in outlook.lines())


def test_a_short_outlook_has_at_most_four_lines(large, tmp_path):
    for hardware in (GPUS["h100-80"], GPUS["rtx4090"], None):
        _, outlook = ahead(large, hardware, tmp_path)
        assert 3 <= len(outlook.short_lines()) <= 4
        assert set(outlook.short_lines()) <= set(outlook.lines())


def test_sizes_are_those_of_the_base_of_each_group(large, tmp_path):
    _, outlook = ahead(large, GPUS["h100-80"], tmp_path)
    shape = architecture_of(BaseSpec(model=str(large)))
    assert all(model.shape == shape for model in outlook.models.values())


@pytest.mark.parametrize(
    ("gpu", "micro", "seats", "reason"),
    [("h100-80", 1, 10, "knee"), ("rtx4090", 1, 3, "memory")],
)
def test_a_plan_tells_the_seats_that_a_host_will_fill_by_itself(
    large, tmp_path, gpu, micro, seats, reason
):
    _, outlook = ahead(
        large,
        GPUS[gpu],
        tmp_path,
        hosts=HostsSpec(),
        space={"optim.micro_batch_size": {"choice": [micro]}},
    )
    (nf4,) = outlook.groups
    found = decide_seats(nf4.sizes["typical"].seats)
    assert (found.seats, found.reason) == (seats, reason)
    assert nf4.to_dict()["seats"] == {"auto": seats, "reason": reason}
    assert any(
        f"; hosts.seats: auto fills up to {seats}, while each" in line for line in outlook.lines()
    )
    assert outlook.to_dict()["seats_asked_for"] == "auto"


def test_a_cpu_has_one_seat_unless_its_memory_is_limited(large, tmp_path):
    here = hardware_of_cpu(100 * GB, has_bfloat16=True)
    _, outlook = ahead(large, here, tmp_path, hosts=HostsSpec())
    assert [one.to_dict()["seats"]["auto"] for one in outlook.groups] == [1, 1]
    assert any("hosts.seats: auto fills 1 on a CPU" in line for line in outlook.lines())
    limited = here.limited(90 * GB)
    assert (limited.memory, here.limited(None)) == (90 * GB, here)
    assert here.limited(200 * GB).memory == 100 * GB
    small = {"base.quantization": {"choice": ["nf4"]}, "optim.micro_batch_size": {"choice": [1]}}
    _, outlook = ahead(large, limited, tmp_path, hosts=HostsSpec(), space=small)
    assert [one.to_dict()["seats"]["auto"] for one in outlook.groups] == [10]


def test_what_hosts_measured_decides_on_later_trials(large, tmp_path):
    spec, outlook = ahead(large, GPUS["rtx4090"], tmp_path)
    trial = build_trial(spec, {"base.quantization": "none", "optim.micro_batch_size": 16})
    assert outlook.refuse(trial) == ""
    forecast = outlook.groups[1].sizes["largest"].least
    parts = {"base": forecast.base, "passing": forecast.passing}
    found = event(
        "host_measured", host="h000", group=f"{large} none auto", seats=1, train_tokens=512,
        forecast=parts, measured={**parts, "base": 1.6 * forecast.base}, capacity=24 * GB,
        factor=1.0,
    )  # fmt: skip
    assert outlook.refuse(trial, [found]).startswith("memory: ")
    nf4 = build_trial(spec, {"base.quantization": "nf4", "optim.micro_batch_size": 16})
    assert outlook.refuse(nf4, [found]) == ""
