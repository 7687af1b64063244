"""A base's tokenizer and the tokens it stops at, read without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainables.base.origin import COMPLETE, cache_entry, locate
from trainables.base.shape import gguf_path
from trainables.errors import BaseModelError
from trainables.spec import BaseSpec


def load_tokenizer_only(base: BaseSpec) -> Any:
    """The tokenizer of a base; of a hub model, its weights are not fetched.

    Raises:
        BaseModelError: The base has no tokenizer that can be read.
    """
    # Imported here, as below: it takes seconds.
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
    """Tokens that the base's own configuration stops at: those of its model once it is loaded.

    Raises:
        BaseModelError: The base has no configuration that can be read.
    """
    from transformers import AutoConfig, GenerationConfig

    place, options = place_of(base)
    try:
        if "gguf_file" not in options:
            return tokens_of(GenerationConfig.from_pretrained(place, **options))
    except OSError:
        pass  # Without generation_config.json a model stops at what its config.json says.
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
    """Tokens that a generation config stops at."""
    known = config.eos_token_id
    return (known,) if isinstance(known, int) else tuple(known or ())


def place_of(base: BaseSpec) -> tuple[str, Mapping[str, Any]]:
    """What transformers reads a base from: a folder or hub id, and options for it."""
    if base.model.startswith("package:") or base.model.endswith(".gguf"):
        # Reading a .gguf file's vocabulary takes many seconds; once loaded, a copy is kept.
        plain = cache_entry(locate(base), "plain")
        if (plain / COMPLETE).is_file():
            return str(plain), {}
        file = gguf_path(base.model)
        return str(file.parent), {"gguf_file": file.name}
    if Path(base.model).expanduser().is_dir():
        return str(Path(base.model).expanduser()), {}
    return base.model, {"revision": base.revision or "main"}
