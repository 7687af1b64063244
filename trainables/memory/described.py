"""Sizes of a base from its files: `config.json`, or the header of a `.gguf` file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from trainables.base.shape import config_path, gguf_config
from trainables.errors import BaseModelError
from trainables.memory.architecture import FAMILIES, Architecture
from trainables.memory.stored_bytes import Form, weight_bytes
from trainables.spec import BaseSpec

logger = logging.getLogger(__name__)


def config_of(base: BaseSpec, hub_cache: Path | None = None) -> Mapping[str, Any]:
    """Values of a base's `config.json`, or those of a `.gguf` header under the same names.

    Args:
        base: The base.
        hub_cache: Folder of the hub's cache, if not the usual one.

    Raises:
        BaseModelError: The base has no description on this machine, and none can be fetched.
    """
    try:
        path = config_path(base, hub_cache)
        config = gguf_config(base.model) if path is None else json.loads(path.read_text())
    except (
        OSError,
        ValueError,
        HFValidationError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
    ) as error:
        raise BaseModelError(
            f"base.model: the sizes of {base.model!r} are not known ({error}); allowed: a base "
            "whose config.json is on this machine or on a hub that answers. Download it first."
        ) from error
    if not isinstance(config, dict):
        raise BaseModelError(
            f"base.model: {base.model!r} does not tell its sizes; allowed: a config.json, or a "
            ".gguf file of the kinds llama, qwen2 and qwen3. Name the original weights."
        )
    return config


def architecture_of(base: BaseSpec, hub_cache: Path | None = None) -> Architecture:
    """The architecture of a base, from its files alone.

    Args:
        base: The base.
        hub_cache: Folder of the hub's cache, if not the usual one.

    Raises:
        BaseModelError: The sizes are not known, or the kind of model is none of `FAMILIES`.
    """
    return Architecture.from_config(config_of(base, hub_cache))


def is_known(base: BaseSpec) -> bool:
    """Whether the memory of this kind of model can be told before it is loaded."""
    try:
        return config_of(base).get("model_type") in FAMILIES
    except BaseModelError as error:
        logger.info("%s", error)
        return False


def built_base_bytes(base: BaseSpec, form: Form) -> int:
    """Bytes of a base of any kind in a stored form, from its model built without memory.

    transformers builds the model on torch's `meta` device, so this takes seconds, and no weights.
    It tells nothing of activations.

    Args:
        base: The base, with a `config.json`.
        form: The stored form.

    Raises:
        BaseModelError: transformers cannot build the model.
    """
    # Imported here: importing torch takes seconds.
    from trainables.base.layers import build_empty

    linears, whole = build_empty(base)
    stored = sum(weight_bytes(weights, rows, form) for weights, rows in linears)
    kept = whole - sum(weights for weights, _ in linears)
    return stored + kept * form.compute
