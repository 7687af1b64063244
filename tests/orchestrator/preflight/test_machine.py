"""The machine is read from the system's own files, within a container's limits."""

from pathlib import Path

from orchestrator.preflight.machine import existing_parent, look_at_machine


def test_gpus_are_those_of_the_driver_that_are_not_hidden(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA A10, 23028, 550.54'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = look_at_machine()
    assert [(one.name, one.memory, one.driver) for one in found.gpus] == [
        ("NVIDIA A10", 23028 * 2**20, "550.54")
    ]
    assert "NVIDIA A10 with 24.1 GB" in found.describe()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "no GPU" in look_at_machine().describe()


def test_the_nearest_folder_that_exists_is_found(tmp_path):
    assert existing_parent(tmp_path / "a/b/c") == tmp_path
    assert existing_parent(Path("nowhere")) == Path.cwd()
