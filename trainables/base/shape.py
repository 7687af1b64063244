"""Sizes of a base model, read from its configuration without loading weights."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import struct
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from trainables.spec import BaseSpec

logger = logging.getLogger(__name__)

# Types of a GGUF header: github.com/ggml-org/ggml/blob/master/docs/gguf.md
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9

_LIKE_LLAMA = ("llama", "qwen2", "qwen3")
"""Architectures of GGUF files whose blocks have the linear layers of Llama."""
_LLAMA_LAYERS = (
    *(f"self_attn.{letter}_proj" for letter in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)

_GGUF_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "vocab_size": "vocab_size",
}
"""Keys of a GGUF header behind the architecture's name, by name in a `config.json`."""


def hidden_size(base: BaseSpec, hub_cache: Path | None = None) -> int | None:
    """Width of a base's residual stream; `None` if unknown, such as offline.

    Args:
        base: The base.
        hub_cache: Folder of the hub's cache, if not the usual one.
    """
    return _described(base, "hidden_size", ".embedding_length", hub_cache)


def context_length(base: BaseSpec, hub_cache: Path | None = None) -> int | None:
    """Context length of a base in tokens; `None` if unknown, such as offline.

    Args:
        base: The base.
        hub_cache: Folder of the hub's cache, if not the usual one.
    """
    return _described(base, "max_position_embeddings", ".context_length", hub_cache)


def vocabulary_size(base: BaseSpec, hub_cache: Path | None = None) -> int | None:
    """Rows of a base's embeddings; `None` if unknown, such as offline.

    Args:
        base: The base.
        hub_cache: Folder of the hub's cache, if not the usual one.
    """
    return _described(base, "vocab_size", ".vocab_size", hub_cache)


def weight_count(base: BaseSpec, hub_cache: Path | None = None) -> int | None:
    """About how many weights a base has; `None` if its sizes are unknown, such as offline.

    Counted as for Llama: gated feed-forward layers, a head that shares the embeddings.

    Args:
        base: The base.
        hub_cache: Folder of the hub's cache, if not the usual one.
    """
    names = {
        "hidden_size": ".embedding_length",
        "num_hidden_layers": ".block_count",
        "intermediate_size": ".feed_forward_length",
        "num_attention_heads": ".attention.head_count",
    }
    found = [_described(base, name, key, hub_cache) for name, key in names.items()]
    if None in found:
        return None
    hidden, blocks, inner, heads = (number or 0 for number in found)
    kv_key = ".attention.head_count_kv"
    kv_heads = _described(base, "num_key_value_heads", kv_key, hub_cache) or heads
    attention = hidden * hidden * (2 + 2 * kv_heads / heads)
    words = vocabulary_size(base, hub_cache) or 0
    return round(words * hidden + blocks * (attention + 3 * hidden * inner))


def _described(base: BaseSpec, name: str, gguf_key: str, hub_cache: Path | None) -> int | None:
    """A number from a base's `config.json`, or from the header of its `.gguf` file."""
    try:
        if base.model.startswith("package:") or base.model.endswith(".gguf"):
            with gguf_path(base.model).open("rb") as file:
                return _gguf_number(file, gguf_key)
        path = config_path(base, hub_cache)
        config = None if path is None else json.loads(path.read_text())
    except (
        OSError,
        ValueError,
        struct.error,
        HFValidationError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
    ) as error:
        logger.info("%s of %s is not known: %s", name, base.model, error)
        return None
    if not isinstance(config, dict):
        return None
    # Models of text and pictures have the numbers of the language model in a section.
    sections = [config, config.get("text_config")]
    found = [one.get(name) for one in sections if isinstance(one, dict)]
    return next((number for number in found if isinstance(number, int) and number > 0), None)


def config_path(
    base: BaseSpec, hub_cache: Path | None = None, *, is_fetched: bool = True
) -> Path | None:
    """Path of a base's `config.json`; `None` without one, such as for a `.gguf` file.

    Args:
        base: The base.
        hub_cache: Folder of the hub's cache, if not the usual one.
        is_fetched: Whether a missing file may be downloaded from the hub.

    Raises:
        HfHubHTTPError: The hub did not deliver the file.
        HFValidationError: The name is no hub id.
        LocalEntryNotFoundError: The hub cannot be reached.
    """
    path = Path(base.model).expanduser()
    if base.model.startswith("package:") or base.model.endswith(".gguf"):
        return None
    if path.is_dir() or base.model.startswith((".", "/", "~")):
        return path / "config.json"
    if not is_fetched:
        kept = try_to_load_from_cache(
            base.model, "config.json", cache_dir=hub_cache, revision=base.revision
        )
        return Path(kept) if isinstance(kept, str) else None
    fetch = functools.partial(
        hf_hub_download, base.model, "config.json", revision=base.revision, cache_dir=hub_cache
    )
    try:
        return Path(fetch(local_files_only=True))  # without a request for a newer file
    except LocalEntryNotFoundError:
        return Path(fetch())


def gguf_path(model: str) -> Path:
    """Path of a `.gguf` file given by path or as `package:NAME/FILE`.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    if not model.startswith("package:"):
        return Path(model).expanduser()
    package, _, name = model.removeprefix("package:").partition("/")
    # find_spec does not run the package, so the package's dependencies need not be installed.
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"no package {package!r} is installed")
    return Path(next(iter(found.submodule_search_locations))) / name


def gguf_layers(model: str) -> tuple[str, ...] | None:
    """Full names of the linear layers that a `.gguf` file becomes; `None` if they are not known.

    Args:
        model: Path of the file, or `package:NAME/FILE`.
    """
    try:
        with gguf_path(model).open("rb") as file:
            kind = _gguf_field(file, "general.architecture")
        if kind not in _LIKE_LLAMA:
            return None
        with gguf_path(model).open("rb") as file:
            blocks = _gguf_number(file, ".block_count") or 0
    except (OSError, ValueError, struct.error) as error:
        logger.info("the layers of %s are not known: %s", model, error)
        return None
    return tuple(f"model.layers.{n}.{name}" for n in range(blocks) for name in _LLAMA_LAYERS)


def gguf_config(model: str) -> dict[str, Any] | None:
    """Sizes of a `.gguf` file under the names of a `config.json`; `None` if they are not known.

    Args:
        model: Path of the file, or `package:NAME/FILE`.
    """
    try:
        with gguf_path(model).open("rb") as file:
            values, tensors = _gguf_header(file)
    except (OSError, ValueError, struct.error) as error:
        logger.info("the sizes of %s are not known: %s", model, error)
        return None
    kind = str(values.get("general.architecture"))
    if kind not in _LIKE_LLAMA:
        return None
    found = {name: values.get(f"{kind}.{key}") for name, key in _GGUF_SIZES.items()}
    words = values.get("tokenizer.ggml.tokens")
    if found["vocab_size"] is None and isinstance(words, list):
        found["vocab_size"] = len(words)
    known = {name: value for name, value in found.items() if value is not None}
    return {**known, "model_type": kind, "tie_word_embeddings": "output.weight" not in tensors}


def _gguf_header(file: BinaryIO) -> tuple[dict[str, Any], set[str]]:
    """All values of a GGUF header, and the names of its tensors."""
    magic, _version, tensors, fields = struct.unpack("<4sIQQ", file.read(24))
    if magic != b"GGUF":
        raise ValueError("not a GGUF file")
    values = {}
    for _ in range(fields):
        key = _gguf_value(file, _STRING)
        values[key] = _gguf_value(file, _number(file, "I"))
    names = set()
    for _ in range(tensors):
        names.add(_gguf_value(file, _STRING))
        dimensions = _number(file, "I")
        file.read(8 * dimensions + 4 + 8)  # sizes, type and place
    return values, names


def _gguf_number(file: BinaryIO, ending: str) -> int | None:
    """Number in a GGUF header, found by the ending of its key, such as `.embedding_length`."""
    value = _gguf_field(file, ending)
    return None if value is None else int(value)


def _gguf_field(file: BinaryIO, ending: str) -> Any:
    """Value in a GGUF header, found by the ending of its key.

    `gguf.GGUFReader` would take seconds, because it also reads the vocabulary behind the number.
    """
    magic, _version, _tensors, fields = struct.unpack("<4sIQQ", file.read(24))
    if magic != b"GGUF":
        raise ValueError("not a GGUF file")
    for _ in range(fields):
        key = _gguf_value(file, _STRING)
        value = _gguf_value(file, _number(file, "I"))
        if key.endswith(ending):
            return value
    return None


def _gguf_value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return file.read(_number(file, "Q")).decode(errors="replace")
    if kind == _ARRAY:
        of, length = _number(file, "I"), _number(file, "Q")
        return [_gguf_value(file, of) for _ in range(length)]
    if kind not in _SCALARS:
        raise ValueError(f"a GGUF field of unknown type {kind}")
    return _number(file, _SCALARS[kind])


def _number(file: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0]
