"""A loaded version computes what was evaluated, on bases of other kinds and stored types."""

import importlib.util
import shutil
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
import torch

import registry
from tests.support.bases import DENSE, save_base, save_quantized
from tests.support.tiny import build_byte_tokenizer
from trainables.engine import build_engine
from trainables.errors import SpecError
from trainables.evaluation.generation import Ending, complete, end_tokens
from trainables.evaluation.serving import forms_of, load_served
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec

IDS = torch.arange(40, 53)[None]


def bundle_on(base: Path, data: Path, folder: Path, quantization: str, compute: str) -> Path:
    """A bundle of a few steps, with weights that change what the base says."""
    spec = TrialSpec(
        base=BaseSpec(model=str(base), quantization=quantization, compute_dtype=compute),
        lora=LoraSpec(rank=4, alpha=16),
        optim=OptimSpec(steps=4, batch_size=4, learning_rate=2e-2),
        data=DataSpec(train=str(data)),
    )
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    for _ in range(4):
        engine.step(["seat"])
    engine.export("seat", folder, {})
    return folder


def version_code() -> ModuleType:
    """The file as MLflow runs it when a version is loaded."""
    source = Path(registry.__file__).with_name("flavor.py")
    found = importlib.util.spec_from_file_location("version_code", source)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    with warnings.catch_warnings():
        # Importing it outside MLflow's loader, mlflow 3.17.2 remarks on a type hint.
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType.*")
        found.loader.exec_module(module)
    return module


def load_version(flavor: ModuleType, bundle: Path, base: Path, form: str = "trained"):
    """A version in a form."""
    version = flavor.AdapterModel()
    options = {"form": form, "base_model": str(base), "device": "auto", "batch_size": 8}
    version.load_context(SimpleNamespace(artifacts={"adapter": str(bundle)}, model_config=options))
    return version


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS.to(model.device), use_cache=False).logits


@pytest.mark.parametrize(
    ("name", "stored", "quantization", "compute"),
    [
        ("phi, LayerNorm", "bfloat16", "nf4", "float32"),
        ("gpt2, Conv1D", "float16", "nf4", "bfloat16"),
        ("gpt2, Conv1D", "float32", "none", "float32"),
        ("gemma 3, windows, q/k norm", "float32", "int8", "bfloat16"),
        ("llama, biases, untied head", "bfloat16", "fp4", "float32"),
        ("opt", "bfloat16", "int8", "float32"),
    ],
)
def test_a_version_gives_the_evaluated_logits_in_each_form(
    tmp_path, tiny_data, byte_tokenizer, monkeypatch, name, stored, quantization, compute
):
    base = save_base(tmp_path / "base", DENSE[name], stored, byte_tokenizer)
    bundle = bundle_on(base, tiny_data, tmp_path / "bundle", quantization, compute)
    forms = forms_of({"quantization": quantization})
    evaluated = {form: logits(load_served(bundle, form).model) for form in forms}
    monkeypatch.setenv("LORCHESTRA_CACHE", str(tmp_path / "empty"))
    flavor = version_code()
    for form, expected in evaluated.items():
        version = load_version(flavor, bundle, base, form)
        assert (logits(version.model) - expected).abs().max().item() == 0.0, form
        assert expected.dtype == getattr(torch, compute)


def test_a_version_on_a_quantized_checkpoint_has_the_trained_form_alone(
    tmp_path, tiny_base, tiny_data, byte_tokenizer
):
    config = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    base = save_quantized(tiny_base, tmp_path / "base", byte_tokenizer, **config)
    bundle = bundle_on(base, tiny_data, tmp_path / "bundle", "nf4", "float32")
    served = load_served(bundle, "trained")
    assert served.manifest["base"]["prequantized"] is True
    flavor = version_code()
    version = load_version(flavor, bundle, base)
    assert torch.equal(logits(version.model), logits(served.model))
    for form in ("unquantized", "merged", "requantized"):
        with pytest.raises(SpecError, match=rf"got '{form}'; allowed: trained for .* own files"):
            load_served(bundle, form)
        with pytest.raises(ValueError, match=rf"got '{form}'; allowed: trained\. Choose"):
            load_version(flavor, bundle, base, form)


@pytest.mark.parametrize("pad", ["outside the embeddings", "none"])
def test_a_pad_token_that_the_base_does_not_know_is_never_looked_up(
    tmp_path, tiny_base, tiny_data, pad
):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    tokenizer = build_byte_tokenizer()
    tokenizer.pad_token = None
    if pad != "none":
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        assert tokenizer.pad_token_id == 261  # of 261 tokens that the base has
    tokenizer.save_pretrained(base)
    bundle = bundle_on(base, tiny_data, tmp_path / "bundle", "none", "float32")
    served = load_served(bundle, "trained")
    prompts = ["a ->", "bbbbbbbb ->"]
    ids = [served.tokenizer.encode(prompt) for prompt in prompts]
    ending = Ending(tokens=end_tokens(served.model, served.tokenizer), max_new_tokens=6)
    expected = [served.tokenizer.decode(one) for one in complete(served.model, ids, ending, 2)]
    version = load_version(version_code(), bundle, base)
    asked = pd.DataFrame({"prompt": prompts})
    assert version.predict(None, asked, {"max_new_tokens": 6}) == expected
