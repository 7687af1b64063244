"""The section of a card on loading a version: with this package, MLflow, PEFT and vLLM."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from registry.bundles.markdown import code, code_block, one_line
from trainables.contract import MERGED_FORMS

# Ranks that vLLM reserves memory for: vllm/config/lora.py, MaxLoRARanks.
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def loading_section(name: str, version: int | None, manifest: Mapping[str, Any], form: str) -> str:
    """Code and commands that load a version, in Markdown.

    Args:
        name: Name of the adapter.
        version: Version number; `None` before registration.
        manifest: Manifest of the bundle.
        form: Serving form in which the adapter is used.
    """
    ref, folder = f"{name}/{'VERSION' if version is None else version}", "adapter"
    base, data = manifest["base"], manifest["data"]
    is_from_hub = base.get("source") == "hub"
    is_quantized = form == "trained" and base["quantization"] != "none"
    how = (
        "and manifest.json's quantization_config"
        if is_quantized
        else f"in {base['compute_dtype']}"
    )
    lines = [
        "import mlflow, peft",
        "from registry import Registry",
        "",
        "adapters = Registry(URI)",
        f"model = adapters.load({ref!r})",
        f"model = mlflow.pyfunc.load_model({f'models:/{ref}'!r})  # after set_tracking_uri(URI)",
        _example_call(data),
        "",
        f"# with PEFT, on the base loaded with transformers {how}",
        f"folder = adapters.pull({ref!r}, {folder!r})",
        "model = peft.PeftModel.from_pretrained(base, folder)",
    ]
    if form in MERGED_FORMS:
        lines.append('model.merge_and_unload().save_pretrained("merged")')
    parts = [code_block("python", lines), _chat_settings(data)]
    served_name = f"{one_line(name)}={folder}"
    parts += _vllm(manifest, form, str(base["model"]) if is_from_hub else "BASE", served_name)
    if not is_from_hub:
        parts.append(f"BASE is a folder with {code(base['model'])} in transformers' format.")
    return "\n\n".join(part for part in parts if part)


def _example_call(data: Mapping[str, Any]) -> str:
    """Python line that calls a loaded version with an example input."""
    if data.get("prompt_style") != "chat":
        return 'model.predict({"prompt": ["…"]})'
    turns = '[{"role": "user", "content": "…"}]'
    has_tools = any(split.get("tools") for split in (data.get("learned") or {}).values())
    tools = ', "tools": [{…}]' if has_tools else ""
    return f'model.predict([{{"messages": {turns}{tools}}}])'


def _chat_settings(data: Mapping[str, Any]) -> str:
    """Settings that make another server write the prompts used in training."""
    said = []
    ends: Mapping[str, int] = data.get("end_tokens") or {}
    if ends:
        option = code(f'"stop_token_ids": {sorted(ends.values())}')
        said.append(f"Answers end with {', '.join(map(code, ends))}: stop there ({option}).")
    if data.get("template"):
        said.append(f"Its chat template is the one named {code(data['template'])}.")
    args = dict(data.get("template_args") or {})
    day = args.pop("strftime_now", None)
    if day is not None:
        said.append(f"Where its chat template writes today's date, training had {code(day)}.")
    for name, value in sorted(args.items()):
        said.append(f"Its chat template is given {code(f'{name}={json.dumps(value)}')}.")
    if data.get("prefill_cut"):
        cut = code(json.dumps(data["prefill_cut"]))
        said.append(f"Prompts were trained without the {cut} that the template ends them with.")
    return " ".join(said)


def _vllm(manifest: Mapping[str, Any], form: str, model: str, served_name: str) -> Iterator[str]:
    """Commands for vLLM (docs.vllm.ai, features/lora and features/quantization/bnb)."""
    base, lora = manifest["base"], manifest["lora"]
    quantized = form in ("trained", "requantized") and base["quantization"] != "none"
    flags = " --quantization bitsandbytes" if quantized else ""
    if form in MERGED_FORMS:
        yield code_block("sh", [f"vllm serve merged{flags}"])
    elif lora.get("dora"):
        yield "vLLM serves no DoRA adapters: merge it first, and measure the form `merged`."
        return
    elif lora["rank"] > _VLLM_RANKS[-1]:
        yield f"vLLM serves ranks up to {_VLLM_RANKS[-1]}; merge it first, and measure `merged`."
        return
    else:
        rank = next(one for one in _VLLM_RANKS if one >= lora["rank"])
        revision = f" --revision {shlex.quote(base['revision'])}" if base.get("revision") else ""
        command = (
            f"vllm serve {shlex.quote(one_line(model))}{revision}{flags} --enable-lora "
            f"--max-lora-rank {rank} --lora-modules {shlex.quote(served_name)}"
        )
        yield code_block("sh", [command])
    if quantized:
        yield (
            "vLLM quantizes the base in its own way (nf4), which was not measured here; the form "
            "`unquantized` or `merged` is what it computes without that flag."
        )
