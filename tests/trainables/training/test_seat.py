"""A seat out of a checkpoint is the seat that went into it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.damage import DAMAGES
from trainables.engine import build_engine
from trainables.errors import BundleError, StateError
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec
from trainables.training.bundle import load_bundle
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


def test_a_bundle_is_evaluated_and_exported_as_the_state_it_came_from(spec, tmp_path):
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    engine.step(["seat"])
    expected = engine.evaluate("seat")
    engine.export("seat", tmp_path / "bundle", {"eval_loss": 1.5})
    engine.leave("seat")
    state, metrics = load_bundle(tmp_path / "bundle", spec)
    engine.join("again", spec, state)
    assert (metrics, engine.evaluate("again")) == ({"eval_loss": 1.5}, expected)
    engine.export("again", tmp_path / "copy", metrics)
    for name in ("adapter_model.safetensors", "adapter_config.json", "manifest.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "bundle" / name).read_bytes()


def test_a_bundle_of_another_trial_is_not_evaluated(spec, tmp_path):
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    engine.export("seat", tmp_path / "bundle", {})
    with pytest.raises(BundleError, match="the adapter is of another trial"):
        load_bundle(tmp_path / "bundle", replace(spec, seed=spec.seed + 1))


def trained_state(spec, folder, steps=1):
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    for _ in range(steps):
        engine.step(["seat"])
    save_state(engine.snapshot("seat"), folder)
    engine.leave("seat")
    return engine


def test_a_state_is_seated_only_on_its_own_base_rows_and_shapes(spec, tiny_data, tmp_path):
    (tmp_path / "state").mkdir()
    engine = trained_state(spec, tmp_path / "state")
    state = load_state(tmp_path / "state")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(tiny_data.read_text().splitlines(keepends=True)[:-4]))
    refused = {
        "another training rows": (replace(spec, data=DataSpec(train=str(rows))), state),
        "another base": (spec, replace(state, inputs={**state.inputs, "base": "sha256:00"})),
        "another tokenizer": (spec, replace(state, inputs={**state.inputs, "tokenizer": None})),
        r"shape \(4, 64\) for": (replace(spec, lora=replace(spec.lora, rank=8)), state),
        "no weights for": (replace(spec, lora=replace(spec.lora, targets=("k_proj",))), state),
    }
    for message, (other, saved) in refused.items():
        with pytest.raises(StateError, match=message):
            engine.join("seat", other, saved)
    assert engine.seats == ()
    copied = tmp_path / "copy.jsonl"
    copied.write_bytes(tiny_data.read_bytes())
    engine.join("seat", replace(spec, data=DataSpec(train=str(copied))), state)


@pytest.mark.parametrize("file", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "garbled"])
def test_files_that_are_no_state_are_told_in_one_sentence(
    tiny_base, tiny_data, tmp_path, damage, file
):
    spec = TrialSpec(
        base=BaseSpec(model=str(tiny_base), quantization="none", compute_dtype="float32"),
        optim=OptimSpec(steps=6, batch_size=4),
        data=DataSpec(train=str(tiny_data)),
    )
    trained_state(spec, tmp_path)
    DAMAGES[damage](tmp_path / file)
    with pytest.raises(StateError, match="the saved state cannot be read"):
        load_state(tmp_path)


def test_a_state_with_text_for_a_step_is_told(spec, tmp_path):
    trained_state(spec, tmp_path)
    values = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps({**values, "step": [1]}))
    with pytest.raises(StateError, match="cannot be read"):
        load_state(tmp_path)
