"""What a base is, told from its description: its layers, experts and architecture."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from tests.support.bases import DENSE, EXPERTS, save_base, save_quantized
from trainables.base.base_summary import inspect_base
from trainables.base.layers import linear_layers
from trainables.base.loading import load_base
from trainables.errors import BaseModelError
from trainables.spec import BaseSpec

PICTURES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
TEXT = {
    "vocab_size": 261,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@pytest.mark.parametrize("name", ["gpt2, Conv1D", "phi 3, longrope", "gemma 3, windows, q/k norm"])
def test_layers_are_known_without_weights(tmp_path, byte_tokenizer, name):
    base = save_base(tmp_path / "base", DENSE[name], "float32", byte_tokenizer)
    expected = tuple(linear_layers(AutoModelForCausalLM.from_pretrained(base)))
    (base / "model.safetensors").unlink()
    found = inspect_base(BaseSpec(model=str(base)))
    assert found.layers == expected
    assert found.lines() == []


def test_a_layer_that_there_is_not_is_told_with_the_nearest_one(tiny_base):
    found = inspect_base(BaseSpec(model=str(tiny_base)))
    assert found.refusal(("q_proj", "v_proj")) == ""
    assert found.refusal("mlp") == ""
    why = found.refusal(("q_prj",))
    assert why.startswith(
        "lora.targets: did you mean q_proj? Got 'q_prj', which is no linear layer of"
    )
    assert "down_proj, gate_proj" in why
    assert "did you mean attention?" in found.refusal(("atention",))


@pytest.mark.parametrize("name", ["mixtral", "deepseek 3"])
def test_experts_stay_unquantized_without_an_adapter_and_that_is_said(
    tmp_path, byte_tokenizer, name
):
    base = save_base(tmp_path / "base", EXPERTS[name], "float32", byte_tokenizer)
    found = inspect_base(BaseSpec(model=str(base)))
    assert found.layers is not None
    assert not any(".experts." in layer for layer in found.layers)
    (line,) = found.lines()
    assert "has 4 routed experts in a block: experts stay unquantized and get no adapter" in line
    assert found.to_dict() == {"prequantized": False, "experts": 4}
    loaded = load_base(BaseSpec(model=str(base), quantization="nf4", compute_dtype="float32"))
    experts = {
        parameter.dtype
        for weight, parameter in loaded.model.named_parameters()
        if ".experts." in weight and "shared" not in weight
    }
    assert experts == {torch.float32}


def test_files_that_are_quantized_already_are_said(tiny_base, tmp_path, byte_tokenizer):
    config = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    base = save_quantized(tiny_base, tmp_path / "base", byte_tokenizer, **config)
    found = inspect_base(BaseSpec(model=str(base)))
    assert found.layers == inspect_base(BaseSpec(model=str(tiny_base))).layers
    (line,) = found.lines()
    assert "are stored in nf4 already: they are used unchanged" in line


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_vl", "mistral3"])
def test_a_model_of_text_and_pictures_is_refused(tmp_path, byte_tokenizer, kind):
    config = AutoConfig.for_model(kind, text_config=dict(TEXT), vision_config=dict(PICTURES))
    config.save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match=r"is a model of text and pictures or sound .*text-o"):
        inspect_base(BaseSpec(model=str(tmp_path)))


def test_a_checkpoint_whose_language_model_loads_alone_is_trained_without_the_rest(
    tmp_path, byte_tokenizer
):
    config = AutoConfig.for_model("qwen3_5", text_config=dict(TEXT), vision_config=dict(PICTURES))
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    spec = BaseSpec(model=str(tmp_path), quantization="none", compute_dtype="float32")
    layers = inspect_base(spec).layers
    loaded = load_base(spec).model
    assert layers == tuple(linear_layers(loaded))
    assert not any("visual" in name for name, _ in loaded.named_modules())


def test_an_architecture_that_transformers_does_not_know_is_refused(tiny_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "newest"}))
    with pytest.raises(BaseModelError, match=r"cannot be built as a causal .*`newest`.*allowed:"):
        inspect_base(BaseSpec(model=str(base)))


def test_an_encoder_is_refused_shortly(tmp_path, byte_tokenizer):
    AutoConfig.for_model("t5", vocab_size=261).save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match="cannot be built as a causal") as refused:
        inspect_base(BaseSpec(model=str(tmp_path)))
    assert len(str(refused.value)) < 500
