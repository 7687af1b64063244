"""Cards of adapters: Markdown on identity, origin, scores, costs, data, licences and loading.

The sections follow model cards (Mitchell et al. 2019, arXiv:1810.03993), as far as records exist.
A card is short, as MLflow keeps 5,000 characters of a description.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from registry.bundles.markdown import code, code_block, one_line, plain, table
from registry.errors import RegistryError
from registry.evaluations.evaluation import Evaluation
from registry.evaluations.significance import interval
from trainables.contract import ADAPTER_WEIGHTS, FORM_WORDS, MERGED_FORMS, SERVING_FORMS

_LICENSES = ("base", "data", "adapter")
_LEFT_OUT = "perplexity"  # the exponential of the loss
_MOST_MEASURES = 6
_MOST_TARGETS = 12
# Ranks that vLLM reserves memory for: vllm/config/lora.py, MaxLoRARanks.
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Facts for a card.

    Attributes:
        name: Name of the adapter.
        version: Version number; `None` before registration.
        manifest: Manifest of the bundle.
        form: Serving form in which the adapter is used.
        sweep: Known facts on the sweep: `name`, `id`, number of `trials`, the adapter's `rank`,
            and of the finals `metric`, `mean`, `half_width` and `runs`.
        evaluations: Evaluations; the first for each form and set of rows counts.
        base_scores: Measures of the base alone, by name of the rows; `test_loss` and `eval_loss`
            count as `loss`.
        licenses: Known licences of `base`, `data` and `adapter`.
        confidence: Level of the intervals.
    """

    name: str
    manifest: Mapping[str, Any]
    version: int | None = None
    form: str = "trained"
    sweep: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    evaluations: Sequence[Evaluation] = ()
    base_scores: Mapping[str, Mapping[str, float]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    licenses: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    confidence: float = 0.95


def build_card(facts: CardFacts) -> str:
    """The card in Markdown, with a newline at its end.

    Raises:
        RegistryError: The form or a key of `licenses` is unknown.
    """
    _require_known(facts)
    version = "" if facts.version is None else f", version {facts.version}"
    sections = {
        "How it was found": _found(facts),
        "Scores": _scores(facts),
        "Memory and speed": _costs(facts),
        "Data": _data(facts),
        "Licences": "\n".join(
            f"- {kind}: {plain(facts.licenses.get(kind) or 'not stated')}" for kind in _LICENSES
        ),
        "Loading": _loading(facts),
    }
    titled = (f"## {title}\n\n{content}" for title, content in sections.items() if content)
    parts = [f"# {plain(facts.name)}{version}", _summary(facts), *titled]
    return "\n\n".join(part for part in parts if part) + "\n"


def _require_known(facts: CardFacts) -> None:
    if facts.form not in SERVING_FORMS:
        raise RegistryError(
            f"card.form: got {facts.form!r}; allowed: {', '.join(SERVING_FORMS)}. "
            "Choose one of these."
        )
    strange = sorted(set(facts.licenses) - set(_LICENSES))
    if strange:
        raise RegistryError(
            f"card.licenses: got {', '.join(strange)}; allowed: {', '.join(_LICENSES)}. "
            "Name one of these."
        )


# -------------------------------------------------------------------------------------- identity


def _summary(facts: CardFacts) -> str:
    base, lora = facts.manifest["base"], facts.manifest["lora"]
    revision = f" at {code(base['revision'])}" if base.get("revision") else ""
    stored = _stored(base)
    flags = [word for key, word in (("rslora", "rsLoRA"), ("dora", "DoRA")) if lora.get(key)]
    dropout = f", dropout {_number(lora['dropout'])}" if lora.get("dropout") else ""
    return (
        f"A LoRA adapter for {code(base['model'])}{revision}, trained on the base as {stored}: "
        f"rank {lora['rank']}, alpha {_number(lora['alpha'])}{dropout}"
        f"{''.join(f', {word}' for word in flags)}, on {_targets(lora['targets'])}. "
        f"It is meant to be used {FORM_WORDS[facts.form]} (form `{facts.form}`)."
    )


def _stored(base: Mapping[str, Any]) -> str:
    kind = base["quantization"]
    if kind == "none":
        return plain(base["compute_dtype"])
    double = " with double quantization" if base.get("double_quant") and kind != "int8" else ""
    return f"{plain(kind)}{double}, computing in {plain(base['compute_dtype'])}"


def _targets(targets: Sequence[str]) -> str:
    shown = ", ".join(map(code, targets[:_MOST_TARGETS]))
    left = len(targets) - _MOST_TARGETS
    return f"{shown} and {left} more" if left > 0 else shown


def _found(facts: CardFacts) -> str:
    sweep, manifest = facts.sweep, facts.manifest
    lines = []
    if sweep.get("name") or sweep.get("id"):
        named = " ".join(code(sweep[key]) for key in ("name", "id") if sweep.get(key))
        tried = f", which tried {sweep['trials']} configurations" if sweep.get("trials") else ""
        place = f"; this one came out as number {sweep['rank']}" if sweep.get("rank") else ""
        lines.append(f"Found by the sweep {named}{tried}{place}.")
    if sweep.get("mean") is not None and sweep.get("half_width") is not None:
        runs = sweep.get("runs")
        over = f" over {runs} runs with different seeds" if runs else ""
        lines.append(
            f"Trained again with new seeds, this configuration has a mean {code(sweep['metric'])} "
            f"of {_number(sweep['mean'])} ± {_number(sweep['half_width'])}{over}."
        )
    rate = manifest["optim"].get("learning_rate")
    learned = f", learning rate {_number(rate)}" if rate is not None else ""
    lines.append(
        f"This adapter: {manifest['steps']} steps on {manifest['tokens']:,} tokens{learned}, "
        f"seed {manifest['seed']}."
    )
    return " ".join(lines)


# ---------------------------------------------------------------------------------------- scores


def _scores(facts: CardFacts) -> str:
    evaluations = _newest(facts.evaluations)
    if not evaluations:
        return _recorded_scores(facts)
    names = dict.fromkeys(name for one in evaluations for name in one.measures)
    measures = [name for name in names if name != _LEFT_OUT][:_MOST_MEASURES]
    rows = [
        [
            f"**{one.form}**" if one.form == facts.form else one.form,
            plain(one.data.name),
            *(_score(one, name, facts.confidence) for name in measures),
        ]
        for one in evaluations
    ]
    for data in dict.fromkeys(one.data.name for one in evaluations):
        base = _base_alone(facts, data)
        if base:
            values = [_number(base[name]) if name in base else "–" for name in measures]
            rows.append(["base alone", plain(data), *values])
    heads = ["form", "rows", *(code(name, in_table=True) for name in measures)]
    counted = ", ".join(
        f"{rows} rows of {plain(name)}"
        for name, rows in {one.data.name: one.data.rows for one in evaluations}.items()
    )
    return table(heads, rows) + (
        f"\n\nOn {counted}; in brackets intervals at {facts.confidence:.0%} over rows. They speak "
        "of rows like these, and of no others."
    )


def _base_alone(facts: CardFacts, data: str) -> dict[str, float]:
    scores = facts.base_scores.get(data, {})
    return {
        name.removeprefix("test_").removeprefix("eval_"): value for name, value in scores.items()
    }


def _newest(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    found: dict[tuple[str, str], Evaluation] = {}
    for one in evaluations:
        found.setdefault((one.form, one.data.digest), one)
    return sorted(found.values(), key=lambda one: (SERVING_FORMS.index(one.form), one.data.name))


def _score(one: Evaluation, measure: str, confidence: float) -> str:
    if measure not in one.measures:
        return "–"
    value = _number(one.measures[measure].value)
    if not one.examples:
        return value
    found = interval(one, measure, confidence)
    if not math.isfinite(found.low):
        return value
    return rf"{value} \[{_number(found.low)}, {_number(found.high)}\]"


def _recorded_scores(facts: CardFacts) -> str:
    """Scores in the manifest, which have no intervals."""
    metrics = facts.manifest["metrics"]
    rows = []
    for prefix, data in (("test_", "test"), ("eval_", "validation")):
        base = _base_alone(facts, data)
        for name in ("loss", "accuracy", "token_accuracy"):
            value = metrics.get(prefix + name)
            if value is not None:
                alone = _number(base[name]) if name in base else "–"
                rows.append([data, code(name, in_table=True), _number(value), alone])
    if not rows:
        return ""
    text = table(["rows", "measure", "adapter", "base alone"], rows)
    return f"{text}\n\nMeasured in the form `trained` while training, without intervals."


def _costs(facts: CardFacts) -> str:
    metrics = facts.manifest["metrics"]
    size = facts.manifest["files"].get(ADAPTER_WEIGHTS, {}).get("bytes")
    rows = []
    if "peak_memory_gib" in metrics or "tokens_per_s" in metrics:
        taken = (metrics.get("peak_memory_gib"), metrics.get("tokens_per_s"))
        rows.append(["training", _gib(taken[0]), "–", _size(size), _speed(taken[1])])
    seen = set()
    for one in _newest(facts.evaluations):
        if one.form not in seen:
            seen.add(one.form)
            sizes = (_size(one.model_bytes), _size(one.adapter_bytes))
            rows.append([one.form, _gib(one.peak_memory_gib), *sizes, _speed(one.tokens_per_s)])
    return table(["form", "peak memory", "base", "adapter", "tokens/s"], rows)


def _data(facts: CardFacts) -> str:
    data = facts.manifest["data"]
    rows = [
        [split, code(data[split].removeprefix("sha256:")[:16], in_table=True)]
        for split in ("train", "validation", "test")
        if data.get(split)
    ]
    counts = {one.data.name: one.data.rows for one in facts.evaluations}
    rows = [[*row, str(counts.get(row[0], "–"))] for row in rows]
    style = (
        f"Prompts are {plain(data.get('prompt_style'))}, rows are cut at "
        f"{plain(data.get('max_tokens'))} tokens."
    )
    listed = table(["split", "digest of its rows", "rows measured"], rows)
    said = " ".join([style, *_layout(data.get("layout") or {}), *_overlaps(data)])
    return f"{listed}\n\n{said}" if listed else said


def _layout(layout: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on prompts made from several columns or by a template."""
    if layout.get("template"):
        yield f"Prompts were made of columns by {code(repr(layout['template']))}."
    elif layout.get("format") == "alpaca":
        yield "Prompts were made in Alpaca's words around instruction and input."


def _overlaps(data: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on rows shared by two splits, from the counts in a manifest's `data.overlaps`."""
    names = {"train": "training"}
    for one in data.get("overlaps", ()):
        said = {key: plain(names.get(value, value)) for key, value in one.items()}
        near = f", and {said['near']} more are nearly the same as one" if one["near"] else ""
        yield (
            f"{said['same']} of {said['total']} {said['rows']} rows are also {said['other']} "
            f"rows{near}."
        )


# --------------------------------------------------------------------------------------- loading


def _loading(facts: CardFacts) -> str:
    version = "VERSION" if facts.version is None else str(facts.version)
    ref, folder = f"{facts.name}/{version}", "adapter"
    base = facts.manifest["base"]
    from_hub = base.get("source") == "hub"
    model = str(base["model"]) if from_hub else "BASE"
    lines = [
        "import mlflow, peft",
        "from registry import Registry",
        "",
        "adapters = Registry(URI)",
        f"model = adapters.load({ref!r})",
        f"model = mlflow.pyfunc.load_model({f'models:/{ref}'!r})  # after set_tracking_uri(URI)",
        *_asking(facts.manifest["data"]),
        "",
        f"# with PEFT, on the base loaded with transformers {_how_loaded(facts)}",
        f"folder = adapters.pull({ref!r}, {folder!r})",
        "model = peft.PeftModel.from_pretrained(base, folder)",
    ]
    if facts.form in MERGED_FORMS:
        lines += ['model.merge_and_unload().save_pretrained("merged")']
    parts = [code_block("python", lines), _chat_settings(facts.manifest["data"])]
    parts += _vllm(facts, model, folder)
    if not from_hub:
        parts.append(f"BASE is a folder with {code(base['model'])} in transformers' format.")
    return "\n\n".join(part for part in parts if part)


def _asking(data: Mapping[str, Any]) -> list[str]:
    """Python lines that call a loaded version with an example input."""
    if data.get("prompt_style") != "chat":
        return ['model.predict({"prompt": ["…"]})']
    turns = '[{"role": "user", "content": "…"}]'
    has_tools = any(split.get("tools") for split in (data.get("learned") or {}).values())
    tools = ', "tools": [{…}]' if has_tools else ""
    return [f'model.predict([{{"messages": {turns}{tools}}}])']


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


def _how_loaded(facts: CardFacts) -> str:
    base = facts.manifest["base"]
    if facts.form == "trained" and base["quantization"] != "none":
        return "and manifest.json's quantization_config"
    return f"in {base['compute_dtype']}"


def _vllm(facts: CardFacts, model: str, folder: str) -> Iterator[str]:
    """Commands for vLLM (docs.vllm.ai, features/lora and features/quantization/bnb)."""
    base, lora = facts.manifest["base"], facts.manifest["lora"]
    quantized = facts.form in ("trained", "requantized") and base["quantization"] != "none"
    flags = " --quantization bitsandbytes" if quantized else ""
    if facts.form in MERGED_FORMS:
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
        served = shlex.quote(f"{one_line(facts.name)}={folder}")
        command = (
            f"vllm serve {shlex.quote(one_line(model))}{revision}{flags} --enable-lora "
            f"--max-lora-rank {rank} --lora-modules {served}"
        )
        yield code_block("sh", [command])
    if quantized:
        yield (
            "vLLM quantizes the base in its own way (nf4), which was not measured here; the form "
            "`unquantized` or `merged` is what it computes without that flag."
        )


# ----------------------------------------------------------------------------------------- numbers


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return f"{value:.4g}"


def _gib(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} GiB"


def _size(size: float | None) -> str:
    """Bytes in a unit that leaves 1 or more; a dash for 0, the size of a merged adapter."""
    if not size:
        return "–"
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _speed(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
