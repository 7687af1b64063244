"""The bundle: what PEFT and the registry will read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from trainables.base.loading import load_base
from trainables.engine import Engine, build_engine
from trainables.errors import BundleError
from trainables.rows.data import load_splits
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec
from trainables.training.bundle import load_bundle, read_manifest


@pytest.fixture
def spec(tiny_base: Path, tiny_data: Path) -> TrialSpec:
    return TrialSpec(
        base=BaseSpec(model=str(tiny_base), compute_dtype="float32"),
        lora=LoraSpec(rank=4, alpha=12, targets=("up_proj", "q_proj"), rslora=True),
        optim=OptimSpec(steps=4, batch_size=4, learning_rate=1e-2),
        data=DataSpec(train=str(tiny_data)),
        seed=3,
    )


@pytest.fixture
def engine(spec: TrialSpec) -> Engine:
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    for _ in range(4):
        engine.step(["seat"])
    return engine


@pytest.fixture
def bundle(engine: Engine, tmp_path: Path) -> Path:
    engine.export("seat", tmp_path / "bundle", {"eval_loss": 1.5})
    return tmp_path / "bundle"


def loss_with_peft(spec: TrialSpec, bundle: Path) -> float:
    """Validation loss of the bundle on the base, loaded by PEFT with none of our code."""
    base = load_base(spec.base)
    model = peft.PeftModel.from_pretrained(base.model, bundle).eval()
    total, answers = 0.0, 0
    for row in load_splits(spec.data, base.tokenizer).validation.rows:
        ids = torch.from_numpy(row.input_ids)[None].to(base.device)
        mask = torch.from_numpy(row.is_answer)[1:].to(base.device)
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        total -= log_probs[mask, ids[0, 1:][mask]].sum().item()
        answers += int(mask.sum())
    return total / answers


def test_peft_loads_the_bundle_and_gives_the_trained_logits(engine, spec, bundle):
    loss = engine.evaluate("seat")["eval_loss"]
    assert loss == pytest.approx(loss_with_peft(spec, bundle), rel=1e-5)


@pytest.mark.parametrize("quantization", ["none", "nf4", "fp4"])
@pytest.mark.parametrize(
    "knobs",
    [{"dora": True, "dropout": 0.1}, {"init": "orthogonal"}, {"init": "orthogonal", "dora": True}],
    ids=["dora", "orthogonal", "both"],
)
def test_peft_loads_a_variant_on_the_same_base(spec, quantization, knobs, tmp_path):
    spec = replace(
        spec,
        base=replace(spec.base, quantization=quantization),
        lora=replace(spec.lora, **knobs),
    )
    engine = build_engine(spec.base)
    bare = engine.evaluate_base(spec)["eval_loss"]
    engine.join("seat", spec)
    for _ in range(4):
        engine.step(["seat"])
    manifest = engine.export("seat", tmp_path / "bundle", {})
    loss = engine.evaluate("seat")["eval_loss"]
    assert loss == pytest.approx(loss_with_peft(spec, tmp_path / "bundle"), rel=1e-5)
    assert loss != pytest.approx(bare, rel=1e-3)
    config = json.loads((tmp_path / "bundle" / "adapter_config.json").read_text())
    assert config["use_dora"] == spec.lora.dora == manifest["lora"]["dora"]
    tensors = load_file(tmp_path / "bundle" / "adapter_model.safetensors")
    magnitude = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    assert (magnitude in tensors) == spec.lora.dora


def test_the_manifest_says_what_the_adapter_is(spec, bundle):
    manifest = read_manifest(bundle)
    assert manifest["format"] == "lorchestra.bundle/1"
    assert manifest["base"]["quantization"] == "nf4"
    assert manifest["lora"] == {
        "rank": 4,
        "alpha": 12,
        "targets": ["q_proj", "up_proj"],
        "dropout": 0.0,
        "rslora": True,
        "init": "kaiming",
        "dora": False,
        "scaling": 6.0,
    }
    assert (manifest["seed"], manifest["steps"]) == (3, 4)
    assert manifest["metrics"] == {"eval_loss": 1.5}
    assert manifest["data"]["train"].startswith("sha256:")
    assert manifest["data"]["prompt_style"] == "plain"


def test_nothing_in_a_bundle_tells_where_it_was_made(spec, bundle, tmp_path):
    config = (bundle / "adapter_config.json").read_text()
    assert str(tmp_path) not in config
    assert str(spec.base.model) not in config
    assert sorted(p.name for p in bundle.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]


def test_the_same_training_gives_the_same_bytes(engine, spec, bundle, tmp_path):
    again = build_engine(spec.base)
    again.join("other-name", spec)
    for _ in range(4):
        again.step(["other-name"])
    manifest = again.export("other-name", tmp_path / "again", {"eval_loss": 9.9})
    assert manifest["digest"] == read_manifest(bundle)["digest"]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (bundle / name).read_bytes()


def test_settings_of_memory_are_no_part_of_the_adapter(spec, bundle, tmp_path):
    thrifty = replace(spec, optim=replace(spec.optim, gradient_checkpointing=True))
    again = build_engine(spec.base)
    again.join("seat", thrifty)
    for _ in range(4):
        again.step(["seat"])
    manifest = again.export("seat", tmp_path / "again", {"eval_loss": 1.5})
    assert manifest["digest"] == read_manifest(bundle)["digest"]
    state, _ = load_bundle(bundle, thrifty)
    assert state.step == 4


def test_weights_are_float32_under_names_peft_knows(bundle):
    tensors = load_file(bundle / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 2  # layers, targets, A and B
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight" in tensors


def test_exporting_again_replaces_the_bundle_whole(engine, bundle):
    (bundle / "stray").write_text("x")
    engine.step(["seat"])
    engine.export("seat", bundle, {})
    assert read_manifest(bundle)["steps"] == 5
    assert not (bundle / "stray").exists()
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_changed_file_is_refused(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[-3] ^= 1
    (bundle / name).write_bytes(bytes(data))
    with pytest.raises(BundleError, match=f"{name}: differs from its manifest"):
        read_manifest(bundle)


def test_a_changed_or_missing_manifest_is_refused(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "seed": 4}))
    with pytest.raises(BundleError, match="changed since it was written"):
        read_manifest(bundle)
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "format": "other/1"}))
    with pytest.raises(BundleError, match="format is 'other/1'"):
        read_manifest(bundle)
    shutil.rmtree(bundle)
    with pytest.raises(BundleError, match=r"no readable manifest\.json"):
        read_manifest(bundle)
