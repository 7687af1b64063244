"""Cards of adapters: Markdown on identity, origin, scores, costs, data, licences and loading.

The sections follow model cards (Mitchell et al. 2019, arXiv:1810.03993), as far as records exist.
A card is short, as MLflow keeps 5,000 characters of a description.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from registry.bundles.card_usage import loading_section
from registry.bundles.markdown import code, plain, table
from registry.errors import RegistryError
from registry.evaluations.evaluation import Evaluation
from registry.evaluations.significance import interval
from trainables.contract import ADAPTER_WEIGHTS, FORM_WORDS, SERVING_FORMS

_LICENSES = ("base", "data", "adapter")
_LEFT_OUT = "perplexity"  # the exponential of the loss
_MOST_MEASURES = 6
_MOST_TARGETS = 12


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
        verdict: What the sweep found, in a few sentences; empty if unknown.
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
    verdict: str = ""


def build_card(facts: CardFacts) -> str:
    """The card in Markdown, with a newline at its end.

    Raises:
        RegistryError: The form or a key of `licenses` is unknown.
    """
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
    version = "" if facts.version is None else f", version {facts.version}"
    sections = {
        "How it was found": _found(facts),
        "Scores": _scores(facts),
        "Memory and speed": _costs(facts),
        "Data": _data(facts),
        "Licences": "\n".join(
            f"- {kind}: {plain(facts.licenses.get(kind) or 'not stated')}" for kind in _LICENSES
        ),
        "Loading": loading_section(facts.name, facts.version, facts.manifest, facts.form),
    }
    titled = (f"## {title}\n\n{content}" for title, content in sections.items() if content)
    verdict = f"**Verdict:** {plain(facts.verdict)}" if facts.verdict else ""
    parts = [f"# {plain(facts.name)}{version}", verdict, _summary(facts), *titled]
    return "\n\n".join(part for part in parts if part) + "\n"


# -------------------------------------------------------------------------------------- identity


def _summary(facts: CardFacts) -> str:
    base, lora = facts.manifest["base"], facts.manifest["lora"]
    revision = f" at {code(base['revision'])}" if base.get("revision") else ""
    kind, stored = base["quantization"], plain(base["compute_dtype"])
    if kind != "none":
        is_double = base.get("double_quant") and kind != "int8"
        double = " with double quantization" if is_double else ""
        stored = f"{plain(kind)}{double}, computing in {stored}"
    flags = [word for key, word in (("rslora", "rsLoRA"), ("dora", "DoRA")) if lora.get(key)]
    dropout = f", dropout {_number(lora['dropout'])}" if lora.get("dropout") else ""
    targets = ", ".join(map(code, lora["targets"][:_MOST_TARGETS]))
    left_out = len(lora["targets"]) - _MOST_TARGETS
    if left_out > 0:
        targets += f" and {left_out} more"
    return (
        f"A LoRA adapter for {code(base['model'])}{revision}, trained on the base as {stored}: "
        f"rank {lora['rank']}, alpha {_number(lora['alpha'])}{dropout}"
        f"{''.join(f', {word}' for word in flags)}, on {targets}. "
        f"It is meant to be used {FORM_WORDS[facts.form]} (form `{facts.form}`)."
    )


def _found(facts: CardFacts) -> str:
    sweep, manifest = facts.sweep, facts.manifest
    lines = []
    if sweep.get("name") or sweep.get("id"):
        named = " ".join(code(sweep[key]) for key in ("name", "id") if sweep.get(key))
        tried = f", which tried {sweep['trials']} configurations" if sweep.get("trials") else ""
        place = f"; this one ranked number {sweep['rank']}" if sweep.get("rank") else ""
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
        f"\n\nOn {counted}; in brackets intervals at {facts.confidence:.0%} over rows. They hold "
        "for rows like these only."
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
    sentences = [
        f"Prompts are {plain(data.get('prompt_style'))}, rows are cut at "
        f"{plain(data.get('max_tokens'))} tokens."
    ]
    layout = data.get("layout") or {}
    if layout.get("template"):
        sentences.append(f"Prompts were made of columns by {code(repr(layout['template']))}.")
    elif layout.get("format") == "alpaca":
        sentences.append("Prompts were made in Alpaca's words around instruction and input.")
    for overlap in data.get("overlaps", ()):
        # A count, or the name of a split.
        said = {k: plain("training" if v == "train" else v) for k, v in overlap.items()}
        near = f", and {said['near']} more are nearly the same as one" if overlap["near"] else ""
        sentences.append(
            f"{said['same']} of {said['total']} {said['rows']} rows are also {said['other']} "
            f"rows{near}."
        )
    listed = table(["split", "digest of its rows", "rows measured"], rows)
    return "\n\n".join(part for part in (listed, " ".join(sentences)) if part)


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
