"""Checkpoints that are quantized already: what they are is read from their files, and kept."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.bases import DENSE, save_base, save_quantized
from trainables.base.loading import load_base
from trainables.base.stored import StoredForm, read_stored_form, settle_form, stored_form
from trainables.errors import BaseModelError, SpecError
from trainables.evaluation.serving import forms_of
from trainables.spec import BaseSpec

IDS = torch.arange(40, 53)[None]


def write_config(source: Path, folder: Path, **values) -> Path:
    """A base of which config.json says more."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    return folder


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
KINDS = {
    "nf4": (NF4, ("nf4", False)),
    "nf4, double": ({**NF4, "bnb_4bit_use_double_quant": True}, ("nf4", True)),
    "fp4": ({"load_in_4bit": True}, ("fp4", False)),
    "int8": ({"load_in_8bit": True}, ("int8", False)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bitsandbytes_checkpoint_is_used_and_recorded_as_it_is(
    tiny_base, tmp_path, byte_tokenizer, monkeypatch, kind
):
    config, (quantization, double_quant) = KINDS[kind]
    folder = save_quantized(tiny_base, tmp_path / "base", byte_tokenizer, **config)
    cache = tmp_path / "cache"
    monkeypatch.setenv("LORCHESTRA_CACHE", str(cache))
    # The default double_quant: what the files are is what counts.
    spec = BaseSpec(model=str(folder), quantization=quantization, compute_dtype="float32")
    loaded = load_base(spec, torch.device("cpu"))
    record = loaded.record.to_dict()
    assert (record["quantization"], record["double_quant"]) == (quantization, double_quant)
    assert record["prequantized"] is True
    assert record["quantization_config"]["quant_method"] == "bitsandbytes"
    assert not (cache / "bases").exists()
    direct = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for module in direct.modules():
        module.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        assert torch.equal(loaded.model(IDS).logits, direct(IDS).logits)
    assert forms_of(record) == ("trained",)


@pytest.mark.parametrize("asked", ["none", "fp4", "int8"])
def test_another_form_than_the_files_have_is_refused(tiny_base, tmp_path, byte_tokenizer, asked):
    folder = save_quantized(tiny_base, tmp_path / "base", byte_tokenizer, **NF4)
    spec = BaseSpec(model=str(folder), quantization=asked)
    message = rf"^base\.quantization: got '{asked}', but .* is stored in nf4 already; allowed: nf4"
    with pytest.raises(SpecError, match=message):
        settle_form(spec, stored_form(spec))
    with pytest.raises(SpecError, match=message):
        load_base(spec)


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
        ({"quant_method": "awq", "bits": 4}, "AWQ"),
        ({"quant_method": "fp8"}, "FP8"),
        ({"quant_method": "mxfp4"}, "MXFP4"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"group_size": 64, "bits": 4}, "a method that config.json does not name"),
    ],
)
@pytest.mark.parametrize("where", ["quantization_config", "text_config"])
def test_other_methods_are_refused_by_name(tiny_base, tmp_path, section, named, where):
    values = {"quantization_config": section}
    written = values if where == "quantization_config" else {"text_config": values}
    folder = write_config(tiny_base, tmp_path / "base", **written)
    message = rf"quantized with {named}.* cannot be trained on here; .*Name the original"
    with pytest.raises(BaseModelError, match=message):
        stored_form(BaseSpec(model=str(folder)))
    with pytest.raises(BaseModelError, match=message):
        load_base(BaseSpec(model=str(folder)))


@pytest.mark.parametrize("name", ["qweight", "weight_packed"])
def test_quantized_weights_that_config_does_not_mention_are_refused(tiny_base, tmp_path, name):
    folder = write_config(tiny_base, tmp_path / "base")
    packed = {f"model.layers.0.self_attn.q_proj.{name}": torch.zeros(4, 4, dtype=torch.int32)}
    save_file(packed, folder / "model-2.safetensors")
    with pytest.raises(BaseModelError, match=rf"holds quantized weights .*{name}, I32"):
        stored_form(BaseSpec(model=str(folder)))


def test_eight_bit_floats_are_refused_and_plain_weights_are_not(tiny_base, tmp_path):
    assert stored_form(BaseSpec(model=str(tiny_base))) is None
    folder = write_config(tiny_base, tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    small = {name: one.to(torch.float8_e4m3fn) for name, one in tensors.items()}
    save_file(small, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseModelError, match="F8_E4M3"):
        stored_form(BaseSpec(model=str(folder)))


def test_checkpoints_of_2023_name_no_method_and_mean_bitsandbytes(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"quantization_config": {"load_in_8bit": True}}))
    assert read_stored_form(config, "old") == StoredForm(quantization="int8", double_quant=False)


def test_a_changed_config_is_read_again(tmp_path):
    config = tmp_path / "config.json"
    config.write_text("{}")
    assert read_stored_form(config, "base") is None
    config.write_text(json.dumps({"quantization_config": NF4 | {"quant_method": "bitsandbytes"}}))
    assert str(read_stored_form(config, "base")) == "nf4"


def test_a_base_that_is_not_here_yet_is_not_known():
    assert stored_form(BaseSpec(model="nobody/has-this")) is None
    assert stored_form(BaseSpec(model="no/hub/id")) is None
    assert stored_form(BaseSpec(model="package:some_package/file.gguf")) is None


def test_nothing_half_built_stays_in_the_cache(tmp_path, byte_tokenizer, monkeypatch):
    """A base whose weights are gone ends in one sentence, and leaves no folder behind."""
    folder = save_base(tmp_path / "base", DENSE["llama"], "float32", byte_tokenizer)
    cache = tmp_path / "cache"
    monkeypatch.setenv("LORCHESTRA_CACHE", str(cache))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.0.self_attn.q_proj.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseModelError, match="lacks 1 weights"):
        load_base(BaseSpec(model=str(folder), quantization="nf4"))
    assert [one.name for one in (cache / "bases").glob("*/*") if one.is_dir()] == []
