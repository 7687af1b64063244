"""A seat out of a checkpoint is the seat that went into it."""

from pathlib import Path

import pytest
import torch

from trainables.engine import build_engine
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec
from trainables.training.state import load_state, save_state


@pytest.fixture(params=["none", "nf4"])
def spec(request: pytest.FixtureRequest, tiny_base: Path, tiny_data: Path) -> TrialSpec:
    return TrialSpec(
        base=BaseSpec(model=str(tiny_base), quantization=request.param, compute_dtype="float32"),
        lora=LoraSpec(rank=4, dora=True, dropout=0.1, targets=("q_proj", "down_proj")),
        optim=OptimSpec(steps=6, batch_size=4, learning_rate=3e-3, loraplus_ratio=2),
        data=DataSpec(train=str(tiny_data)),
    )


def test_a_dora_snapshot_goes_on_as_if_nothing_happened(spec, tmp_path):
    engine = build_engine(spec.base)
    engine.join("alone", spec)
    engine.join("moved", spec)
    for _ in range(3):
        engine.step(["alone", "moved"])
    save_state(engine.snapshot("moved"), tmp_path)
    engine.leave("moved")
    engine.join("back", spec, load_state(tmp_path))
    for _ in range(3):
        engine.step(["alone", "back"])
    alone, back = engine.snapshot("alone"), engine.snapshot("back")
    assert alone.tensors.keys() == back.tensors.keys()
    assert (back.step, back.tokens) == (alone.step, alone.tokens)
    assert all(torch.equal(alone.tensors[name], back.tensors[name]) for name in alone.tensors)


def test_a_dora_snapshot_holds_magnitudes_and_their_moments(spec):
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    before = engine.snapshot("seat").tensors
    engine.step(["seat"])
    after = engine.snapshot("seat").tensors
    name = "model.layers.0.mlp.down_proj/magnitude"
    assert before[name].shape == (64,)
    assert not torch.equal(before[name], after[name])
    assert f"{name}/exp_avg_sq" in after
    # per layer: A (4, in), B (out, 4) and a magnitude (out,); q_proj 64 x 64, down_proj 64 x 128
    assert engine.trainable_params("seat") == 2 * (4 * (64 + 64) + 64 + 4 * (128 + 64) + 64)
