"""Tokenizer and end tokens of a base, read without loading weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainables.base.origin import COMPLETE, cache_entry, locate
from trainables.base.shape import gguf_path
from trainables.errors import BaseModelError
from trainables.spec import BaseSpec


def load_tokenizer_only(base: BaseSpec) -> Any:
    """The tokenizer of a base; a hub model's weights are not downloaded.

    Raises:
        BaseModelError: The base has no readable tokenizer.
    """
    # Imported here and below, because the import takes seconds.
    from transformers import AutoTokenizer

    place, options = place_of(base)
    try:
        return AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BaseModelError(
            f"base.model: the tokenizer of {base.model!r} cannot be read ({reason}); allowed: a "
            "base with its tokenizer files. Check the name, your network and HF_TOKEN, or save "
            "the tokenizer beside the weights."
        ) from error


def stop_tokens(base: BaseSpec) -> tuple[int, ...]:
    """End tokens from a base's configuration, equal to those of the loaded model.

    Raises:
        BaseModelError: The base has no readable configuration.
    """
    from transformers import AutoConfig, GenerationConfig

    place, options = place_of(base)
    try:
        if "gguf_file" not in options:
            return tokens_of(GenerationConfig.from_pretrained(place, **options))
    except OSError:
        pass  # Without generation_config.json, config.json gives the end tokens.
    try:
        config = AutoConfig.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BaseModelError(
            f"base.model: the configuration of {base.model!r} cannot be read ({reason}); allowed: "
            "a base with its config.json. Check the name, your network and HF_TOKEN."
        ) from error
    return tokens_of(GenerationConfig.from_model_config(config))


def tokens_of(config: Any) -> tuple[int, ...]:
    """End tokens of a generation config."""
    known = config.eos_token_id
    return (known,) if isinstance(known, int) else tuple(known or ())


def place_of(base: BaseSpec) -> tuple[str, Mapping[str, Any]]:
    """Folder or hub id of a base for transformers, with the options for loading."""
    if base.model.startswith("package:") or base.model.endswith(".gguf"):
        # Reading the vocabulary of a .gguf file takes many seconds; a loaded base has a copy.
        plain = cache_entry(locate(base), "plain")
        if (plain / COMPLETE).is_file():
            return str(plain), {}
        file = gguf_path(base.model)
        return str(file.parent), {"gguf_file": file.name}
    if Path(base.model).expanduser().is_dir():
        return str(Path(base.model).expanduser()), {}
    return base.model, {"revision": base.revision or "main"}
