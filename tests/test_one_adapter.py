"""The flat page of the documentation against the engine that it explains, and against PEFT."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from trainables.engine import build_engine
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec

PAGE = Path(__file__).parents[1] / "docs" / "one_adapter.py"
FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def train_adapter() -> Callable[[TrialSpec, Path], list[float]]:
    """The function of the page."""
    function: Callable[[TrialSpec, Path], list[float]] = runpy.run_path(str(PAGE))["train_adapter"]
    return function


def spec_on(tiny_base: Path, tiny_data: Path, quantization: str) -> TrialSpec:
    return TrialSpec(
        base=BaseSpec(model=str(tiny_base), quantization=quantization, compute_dtype="float32"),
        lora=LoraSpec(rank=4, alpha=16, targets=("q_proj", "down_proj")),
        optim=OptimSpec(
            steps=12,
            batch_size=4,
            learning_rate=1e-2,
            warmup_steps=2,
            weight_decay=0.1,
            loraplus_ratio=4,
        ),
        data=DataSpec(train=str(tiny_data)),
        seed=3,
    )


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_flat_page_writes_the_files_that_the_engine_writes(
    train_adapter: Callable[[TrialSpec, Path], list[float]],
    tiny_base: Path,
    tiny_data: Path,
    tmp_path: Path,
    quantization: str,
) -> None:
    spec = spec_on(tiny_base, tiny_data, quantization)
    losses = train_adapter(spec, tmp_path / "flat")
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    expected = [engine.step(["seat"])["seat"].loss for _ in range(spec.optim.steps)]
    engine.export("seat", tmp_path / "engine", {})
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0]
    for name in FILES:
        flat, engines = tmp_path / "flat" / name, tmp_path / "engine" / name
        assert flat.read_bytes() == engines.read_bytes(), name


def test_its_adapter_loads_in_peft_and_changes_the_base(
    train_adapter: Callable[[TrialSpec, Path], list[float]],
    tiny_base: Path,
    tiny_data: Path,
    tmp_path: Path,
) -> None:
    train_adapter(spec_on(tiny_base, tiny_data, "none"), tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    ids = torch.arange(5, 15).unsqueeze(0)
    before = base(input_ids=ids).logits
    model = PeftModel.from_pretrained(base, tmp_path)
    saved = load_file(tmp_path / FILES[1])
    loaded = {name: one for name, one in model.named_parameters() if "lora_" in name}
    assert len(loaded) == len(saved) == 8
    for name, tensor in saved.items():
        assert torch.equal(loaded[name.replace(".weight", ".default.weight")], tensor)
    assert (model(input_ids=ids).logits - before).abs().max() > 0.01


def test_it_runs_as_a_command(
    tiny_base: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(PAGE), str(tiny_base), str(tiny_data), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(PAGE), run_name="__main__")
    assert "loss of the last step: " in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "out").iterdir()} == set(FILES)
