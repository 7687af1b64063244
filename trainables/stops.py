"""A base's tokenizer and the tokens it stops at, read without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from trainables.errors import BaseModelError
from trainables.origin import local_file
from trainables.spec import BaseSpec


def stop_tokens(base: BaseSpec) -> tuple[int, ...]:
    """Tokens that the base's own configuration stops at; the same as those of the loaded model.

    Raises:
        BaseModelError: The base has no configuration.
    """
    place, options = _place(base)
    try:
        if "gguf_file" not in options:
            return tokens_of(GenerationConfig.from_pretrained(place, **options))
    except OSError:
        pass  # A base without generation_config.json stops at what its config.json says.
    try:
        config = AutoConfig.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(base, "configuration", error) from error
    return tokens_of(GenerationConfig.from_model_config(config))


def tokens_of(config: Any) -> tuple[int, ...]:
    """Tokens that a generation config stops at."""
    known = config.eos_token_id
    return (known,) if isinstance(known, int) else tuple(known or ())


def load_tokenizer_only(base: BaseSpec) -> Any:
    """The tokenizer of a base; of a hub model, its other files are not fetched.

    Raises:
        BaseModelError: The base cannot be found, or has no tokenizer.
    """
    place, options = _place(base)
    try:
        return AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(base, "tokenizer", error) from error


def _place(base: BaseSpec) -> tuple[str, Mapping[str, Any]]:
    """What transformers reads a base from."""
    file = local_file(base.model)
    if file is not None:
        return str(file.parent), {"gguf_file": file.name, "local_files_only": True}
    if Path(base.model).expanduser().is_dir():
        return str(Path(base.model).expanduser()), {"local_files_only": True}
    return base.model, {"revision": base.revision or "main"}


def _unreadable(base: BaseSpec, what: str, error: Exception) -> BaseModelError:
    reason = " ".join(str(error).split())[:300]
    return BaseModelError(
        f"base.model: the {what} of {base.model!r} cannot be read ({reason}); allowed: a hub id "
        "that you may read, a folder as save_pretrained leaves it with its tokenizer, a .gguf "
        "file or package:NAME/FILE. Check the name, your network and HF_TOKEN."
    )
