"""Contract between training and the registry: bundles, serving forms, formulas, outcomes.

Both packages import these definitions from here. The module imports neither torch nor MLflow, so
every process can import it. `registry/flavor.py` keeps a copy, because each version carries that
file alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from trainables.claims import LARGEST, huge_number, show

# ---------------------------------------------------------------------------------------- bundles

BUNDLE_FORMAT = "lorchestra.bundle/1"
"""Value of `format` in a bundle's manifest."""

MANIFEST = "manifest.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
"""Files of a bundle besides the manifest, which lists them under `files`."""

CARD = "card.md"
"""Optional file of a bundle: a text for people."""

_NOT_IDENTITY = ("metrics", "packages", "engine", "digest")


def identity_digest(manifest: Mapping[str, Any]) -> str:
    """Digest `sha256:...` of a manifest without its metrics, packages, engine and digest."""
    identity = {key: value for key, value in manifest.items() if key not in _NOT_IDENTITY}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) <= len("sha256:") + 64


def _is_text_if_any(value: object) -> bool:
    return value is None or _is_text(value)


def _is_count_if_any(value: object) -> bool:
    return value is None or _is_count(value)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _is_metric(value: object) -> bool:
    return type(value) is int or isinstance(value, float)


def _is_number(value: object) -> bool:
    return _is_metric(value) and math.isfinite(cast(float, value))


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_file(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and _is_digest(value.get("sha256"))
        and _is_count(value.get("bytes"))
    )


def _is_setting(value: object) -> bool:
    return value is None or _is_text(value) or _is_flag(value) or _is_number(value)


_KINDS: Mapping[Callable[[object], bool], str] = {
    _is_text: "text",
    _is_digest: "a digest",
    _is_text_if_any: "text or null",
    _is_count_if_any: "a whole number or null",
    _is_flag: "true or false",
    _is_count: "a whole number",
    _is_metric: "a number",
    _is_number: "a finite number",
    _is_names: "a list of names",
    _is_file: "a digest with a size",
    _is_setting: "a number, text, true, false or null",
}

_NEEDED: Mapping[str, Mapping[str, Callable[[object], bool]]] = {
    "": {
        **dict.fromkeys(("seed", "steps", "tokens"), _is_count),
        "digest": _is_digest,
        "engine": _is_text_if_any,  # bundles of before there were two name none
    },
    "base": {
        **dict.fromkeys(("model", "source", "digest", "quantization", "compute_dtype"), _is_text),
        "double_quant": _is_flag,
        "parameters": _is_count,
        "revision": _is_text_if_any,
    },
    "lora": {
        "rank": _is_count,
        **dict.fromkeys(("alpha", "scaling", "dropout"), _is_number),
        "rslora": _is_flag,
        "targets": _is_names,
    },
    "data": {
        "prompt_style": _is_text,
        **dict.fromkeys(("train", "validation", "test"), _is_text_if_any),
        **dict.fromkeys(("template_digest", "tokenizer_digest"), _is_text_if_any),
        "max_tokens": _is_count_if_any,
    },
}
"""Values that a manifest must have, by section."""

_EACH = {"files": _is_file, "optim": _is_setting, "metrics": _is_metric, "packages": _is_text}
"""Sections whose values all have one kind."""


def manifest_flaw(manifest: Mapping[str, Any]) -> str:
    """What is wrong with the values of a manifest, for a message; empty if nothing is.

    A digest says that a manifest was not changed, not that its writer knew the format.
    """
    huge = huge_number(manifest)
    if huge is not None:
        return f"{huge[0]} is {show(huge[1])}, which is too large"
    for section in (*filter(None, _NEEDED), *_EACH):
        if not isinstance(manifest.get(section), Mapping):
            return f"{section} is {show(manifest.get(section))}, which is no section"
    for name, value, is_right in _claims(manifest):
        if not is_right(value):
            return f"{name} is {show(value)}, which is not {_KINDS[is_right]}"
    return ""


def _claims(
    manifest: Mapping[str, Any],
) -> Iterator[tuple[str, object, Callable[[object], bool]]]:
    """Dotted name, value and wanted kind of each checked value."""
    for section, needed in _NEEDED.items():
        values = manifest[section] if section else manifest
        for name, is_right in needed.items():
            yield f"{section}.{name}".lstrip("."), values.get(name), is_right
    for section, is_right in _EACH.items():
        for name, value in manifest[section].items():
            yield f"{section}.{name}", value, is_right


def digest_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_record(path: Path) -> dict[str, Any]:
    """A file's entry under `files` in a manifest: `sha256` and `bytes`."""
    return {"sha256": digest_file(path), "bytes": path.stat().st_size}


# ------------------------------------------------------------------------------------ evaluations

EVALUATION_FORMAT = "lorchestra.evaluation/1"
"""Value of `format` in an evaluation document."""

ServingForm = Literal["trained", "unquantized", "merged", "requantized"]
"""How a server holds an adapter; `trainables.evaluation.serving` describes each form."""

SERVING_FORMS: tuple[ServingForm, ...] = get_args(ServingForm)

FORM_WORDS: Mapping[str, str] = {
    "trained": "beside the stored base that it was trained on",
    "unquantized": "beside the base in its compute type",
    "merged": "merged into the base in its compute type",
    "requantized": "merged into the base, which is then quantized again",
}
"""How an adapter is used in each form, for sentences about the adapter."""

MERGED_FORMS: tuple[ServingForm, ...] = ("merged", "requantized")
"""Forms without an adapter beside the base."""

TRAINED: ServingForm = "trained"
"""The form that every base has: the stored base of the training, the adapter beside it."""

SAME_UNQUANTIZED: Mapping[str, ServingForm] = {"unquantized": "trained", "requantized": "merged"}
"""Forms that equal another one on a base without quantization."""

COSTS = (
    "seconds",
    "rows_per_s",
    "tokens_per_s",
    "peak_memory_gib",
    "model_bytes",
    "adapter_bytes",
)
"""Numbers on time, memory and size in an evaluation document; `None` where unknown."""

Scale = Literal["identity", "exp", "bits"]
Mode = Literal["min", "max"]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Formula:
    """A measure as a formula over columns: `scale(sum of one column / sum of another)`.

    Attributes:
        of: Column whose sum is the numerator.
        per: Column whose sum is the denominator; `None` stands for the number of rows.
        scale: Function applied to the ratio: `identity`, `exp`, or `bits` (converts from nats).
        mode: `min` where less is better, `max` where more is better.
    """

    of: str
    per: str | None
    scale: Scale
    mode: Mode

    def scaled(self, ratios: npt.ArrayLike) -> Numbers:
        """Values of the measure for ratios of sums, of any shape; an overflow gives infinity."""
        values = np.asarray(ratios, dtype=np.float64)
        if self.scale == "exp":
            with np.errstate(over="ignore"):
                return cast(Numbers, np.exp(values))
        return values / math.log(2) if self.scale == "bits" else values


# --------------------------------------------------------------------------------------- outcomes


class Outcome(StrEnum):
    """The ways a trial can end.

    Only `stopped` can result from comparing a trial with others. `infeasible` and `diverged` mean
    that the configuration cannot work; `failed` and `cancelled` say nothing about the
    configuration.
    """

    COMPLETED = "completed"
    """Trained to the horizon."""
    STOPPED = "stopped"
    """Ended early, because other trials were better or the trial overfitted."""
    INFEASIBLE = "infeasible"
    """Does not fit the accelerator's memory, even at half the micro-batch."""
    DIVERGED = "diverged"
    """The loss became non-finite, or many times its first value (`exits.divergence`)."""
    FAILED = "failed"
    """An error for another reason than the configuration, after all retries."""
    CANCELLED = "cancelled"
    """Ended by the user or by the budget."""
