"""The forms an adapter is served in, on real 4-bit and 8-bit bases."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from safetensors.torch import load_file

from trainables.errors import BaseModelError, BundleError, SpecError
from trainables.evaluation.serving import (
    forms_of,
    load_served,
    load_served_tokenizer,
    require_form,
)
from trainables.packing.batches import build_batch
from trainables.rows.data import EncodedRow

IDS = torch.arange(40, 64).reshape(2, 12)


def logits_of(served) -> torch.Tensor:
    with torch.no_grad():
        logits = served.model(input_ids=IDS.to(served.device), use_cache=False).logits
    return logits.float().cpu()


def layers_of(served, kind) -> int:
    return sum(isinstance(module, kind) for module in served.model.modules())


@pytest.fixture(scope="module")
def forms(train):
    bundle = train("nf4").bundle
    return {form: load_served(bundle, form) for form in forms_of({"quantization": "nf4"})}


def test_a_base_without_quantization_has_two_forms(train):
    assert forms_of({"quantization": "none"}) == ("trained", "merged")
    assert forms_of({"quantization": "int8"}) == (
        "trained",
        "unquantized",
        "merged",
        "requantized",
    )
    with pytest.raises(SpecError, match=r"form: got 'requantized'; allowed: trained, merged for"):
        load_served(train("none").bundle, "requantized")
    assert require_form({"base": {"quantization": "fp4"}}, "merged") == "merged"


def test_trained_gives_the_logits_of_the_engine(train, forms):
    engine = train("nf4").engine
    rows = [EncodedRow(input_ids=row.numpy(), is_answer=(row > row[0]).numpy()) for row in IDS]
    with torch.no_grad():
        (packed,) = engine._model.logits([build_batch("seat", rows, engine.base.device)])
    expected = logits_of(forms["trained"])[:, :-1].flatten(0, 1)
    assert torch.allclose(packed.float().cpu(), expected, atol=1e-5)


def test_unquantized_is_another_model_than_trained(forms):
    difference = (logits_of(forms["unquantized"]) - logits_of(forms["trained"])).abs().max()
    assert difference > 1e-2


@pytest.mark.parametrize(("quantization", "dora"), [("nf4", False), ("nf4", True), ("none", True)])
def test_merged_gives_the_logits_of_the_unquantized_form(train, quantization, dora):
    bundle = train(quantization, dora=dora).bundle
    beside = load_served(bundle, "trained" if quantization == "none" else "unquantized")
    merged = load_served(bundle, "merged")
    assert torch.allclose(logits_of(beside), logits_of(merged), atol=1e-4)
    assert not any("lora" in name for name, _ in merged.model.named_parameters())


def test_requantized_has_the_layers_of_the_trained_base(forms):
    assert layers_of(forms["requantized"], Linear4bit) == layers_of(forms["trained"], Linear4bit)
    assert layers_of(forms["requantized"], Linear4bit) == 14
    assert layers_of(forms["merged"], Linear4bit) == 0
    layer = forms["requantized"].model.model.layers[0].mlp.up_proj
    assert layer.weight.quant_state.quant_type == "nf4"
    assert layer.weight.quant_state.nested
    # Else bitsandbytes would compute in bfloat16 on some CPUs.
    assert layer.support_avx512bf16_for_cpu is False
    assert layer.compute_dtype == torch.float32


def test_requantizing_is_quantizing_the_merged_numbers(forms):
    merged = forms["merged"].model.model.layers[0].mlp.up_proj.weight
    again = Linear4bit(
        merged.shape[1], merged.shape[0], bias=False, quant_type="nf4", compress_statistics=True
    )
    again.load_state_dict({"weight": merged.detach()})
    expected = again.to(merged.device).weight
    found = forms["requantized"].model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(found.flatten(), expected.flatten())
    logits = {form: logits_of(served) for form, served in forms.items()}
    assert (logits["requantized"] - logits["merged"]).abs().max() > 1e-3
    assert (logits["requantized"] - logits["trained"]).abs().max() > 1e-3


def test_bytes_are_those_of_the_weights(train, forms):
    adapter = load_file(train("nf4").bundle / "adapter_model.safetensors")
    adapter_bytes = sum(tensor.nbytes for tensor in adapter.values())
    plain = sum(parameter.nbytes for parameter in forms["merged"].model.parameters())
    assert forms["unquantized"].adapter_bytes == forms["trained"].adapter_bytes == adapter_bytes
    assert forms["merged"].adapter_bytes == forms["requantized"].adapter_bytes == 0
    assert forms["merged"].model_bytes == forms["unquantized"].model_bytes == plain
    assert forms["requantized"].model_bytes == forms["trained"].model_bytes
    # The tied embedding of 261 x 64 and 5 norms of 64 stay float32; the 14 linear layers are
    # packed two weights to a byte, with a byte of scale for 64 weights and small tables.
    linear = 14 * 64 * 128 // 2 - 4 * 64 * 64 // 2 // 2
    assert forms["trained"].model_bytes > linear
    assert forms["trained"].model_bytes < plain / 2


def test_a_merged_weight_is_rounded_once_to_the_compute_type(train, tiny_base):
    bundle = train("nf4", compute_dtype="bfloat16").bundle
    name = "model.layers.1.mlp.up_proj"
    adapter = load_file(bundle / "adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    plain = load_file(tiny_base / "model.safetensors")[f"{name}.weight"].bfloat16()
    merged = load_served(bundle, "merged").model.get_submodule(name).weight
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged.cpu(), (plain.float() + b @ a * 4.0).bfloat16())
    again = load_served(bundle, "requantized").model
    assert again.get_submodule(name).compute_dtype == torch.bfloat16
    assert again.get_input_embeddings().weight.dtype == torch.bfloat16


def test_int8_has_all_forms(train):
    trained = train("int8")
    served = {
        form: load_served(trained.bundle, form) for form in forms_of({"quantization": "int8"})
    }
    assert layers_of(served["trained"], Linear8bitLt) == 14
    assert layers_of(served["requantized"], Linear8bitLt) == 14
    assert layers_of(served["unquantized"], Linear8bitLt) == 0
    plain, again = logits_of(served["merged"]), logits_of(served["requantized"])
    assert not torch.equal(plain, again)
    assert torch.corrcoef(torch.stack([plain.flatten(), again.flatten()]))[0, 1] > 0.99
    assert served["requantized"].model_bytes == served["trained"].model_bytes


def test_the_base_on_disk_is_untouched(train, tiny_base, forms):
    before = load_file(tiny_base / "model.safetensors")
    load_served(train("nf4").bundle, "merged")
    after = load_served(train("nf4").bundle, "unquantized")
    weight = after.model.base_model.model.model.layers[1].mlp.up_proj.base_layer.weight
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(weight.cpu(), before[name])
    assert torch.equal(load_file(tiny_base / "model.safetensors")[name], before[name])


def test_the_base_may_lie_elsewhere(train, tiny_base, tmp_path, forms):
    shutil.copytree(tiny_base, tmp_path / "moved")
    moved = load_served(train("nf4").bundle, "trained", base_model=str(tmp_path / "moved"))
    assert torch.equal(logits_of(moved), logits_of(forms["trained"]))


@pytest.mark.parametrize("load", [load_served_tokenizer, load_served], ids=["rows", "model"])
def test_another_base_is_refused(train, tiny_base, tmp_path, load):
    shutil.copytree(tiny_base, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "rope_theta": 5000.0}))
    bundle = train("nf4").bundle
    manifest = json.loads((bundle / "manifest.json").read_text())
    given = (manifest,) if load is load_served_tokenizer else (bundle, "merged")
    with pytest.raises(BaseModelError, match=r"base\.model: .*other.* has the digest sha256"):
        load(*given, base_model=str(tmp_path / "other"))


def test_a_changed_bundle_is_refused(train, tmp_path):
    shutil.copytree(train("nf4").bundle, tmp_path / "bundle")
    weights = Path(tmp_path / "bundle" / "adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BundleError, match="differs from its manifest"):
        load_served(tmp_path / "bundle", "trained")
