"""Cards by name, and those of a machine."""

import pytest

from orchestrator.capacity.hardware import GB, GPUS, find_gpu, hardware_of_cpu, hardware_of_gpu
from orchestrator.errors import SweepSpecError


@pytest.mark.parametrize("name", ["h100-80", "H100-80", " rtx_4090 ".replace("_", ""), "L40S"])
def test_a_card_is_found_by_its_name_in_any_case(name):
    assert find_gpu(name).name == name.strip().lower()


@pytest.mark.parametrize(
    ("name", "meant"), [("h1000", "h100-80"), ("rtx409", "rtx4090"), ("a100_80", None)]
)
def test_a_mistyped_card_is_refused_with_the_nearest_and_the_list(name, meant):
    if meant is None:
        assert find_gpu(name).name == "a100-80"
        return
    with pytest.raises(SweepSpecError, match=f"did you mean {meant}") as refused:
        find_gpu(name)
    assert all(hardware in str(refused.value) for hardware in GPUS)


@pytest.mark.parametrize(
    ("name", "gigabytes", "hardware"),
    [
        ("NVIDIA H100 80GB HBM3", 85, "h100-80"),
        ("NVIDIA A100-SXM4-40GB", 42, "a100-40"),
        ("NVIDIA A100-SXM4-80GB", 85, "a100-80"),
        ("NVIDIA L4", 24, "l4"),
        ("NVIDIA L40S", 48, "l40s"),
        ("Tesla T4", 15, "t4"),
        ("NVIDIA GeForce RTX 4090", 25, "rtx4090"),
        ("NVIDIA Something New", 99, "this GPU"),
    ],
)
def test_a_gpu_of_this_machine_keeps_its_own_memory(name, gigabytes, hardware):
    found = hardware_of_gpu(name, gigabytes * GB)
    assert (found.name, found.memory, found.is_here) == (hardware, gigabytes * GB, True)
    assert found.device.has_bfloat16 == (hardware != "t4")


def test_a_cpu_is_a_device_of_its_memory():
    hardware = hardware_of_cpu(8 * GB, has_bfloat16=False)
    assert str(hardware) == "this machine (8.0 GB)"
    assert not hardware.device.is_cuda
    assert hardware.device.automatic == 4
