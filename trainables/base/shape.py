"""How wide a base model is, read from its description alone: no weights are loaded."""

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


def hidden_size(base: BaseSpec, hub_cache: Path | None = None) -> int | None:
    """Width of a base's residual stream; `None` when it cannot be told here, as when offline.

    Args:
        base: Which base.
        hub_cache: Where hub models are kept, if not where they usually are.
    """
    return _described(base, "hidden_size", ".embedding_length", hub_cache)


def context_length(base: BaseSpec, hub_cache: Path | None = None) -> int | None:
    """Positions that a base was made for; `None` when it cannot be told here, as when offline.

    Args:
        base: Which base.
        hub_cache: Where hub models are kept, if not where they usually are.
    """
    return _described(base, "max_position_embeddings", ".context_length", hub_cache)


def vocabulary_size(base: BaseSpec, hub_cache: Path | None = None) -> int | None:
    """Rows of a base's embeddings; `None` when it cannot be told here, as when offline.

    Args:
        base: Which base.
        hub_cache: Where hub models are kept, if not where they usually are.
    """
    return _described(base, "vocab_size", ".vocab_size", hub_cache)


def _described(base: BaseSpec, name: str, gguf_key: str, hub_cache: Path | None) -> int | None:
    """A number of a base's `config.json`, or of the header of its `.gguf` file."""
    try:
        if base.model.startswith("package:") or base.model.endswith(".gguf"):
            with gguf_path(base.model).open("rb") as file:
                return _gguf_number(file, gguf_key)
        path = config_path(base, hub_cache)
        return None if path is None else _config_number(json.loads(path.read_text()), name)
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


def config_path(
    base: BaseSpec, hub_cache: Path | None = None, *, is_fetched: bool = True
) -> Path | None:
    """Where a base's `config.json` lies; `None` where it has none here, as a `.gguf` file.

    Args:
        base: Which base.
        hub_cache: Where hub models are kept, if not where they usually are.
        is_fetched: Whether the hub may be asked for one that is not on this machine.

    Raises:
        HfHubHTTPError: The hub was asked and did not give the file.
        HFValidationError: The name is no hub id.
        LocalEntryNotFoundError: The hub was asked and cannot be reached.
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
        return Path(fetch(local_files_only=True))  # without asking for a newer one
    except LocalEntryNotFoundError:
        return Path(fetch())


def _config_number(config: Any, name: str) -> int | None:
    """A number, which models of text and pictures have in a section of their own."""
    if not isinstance(config, dict):
        return None
    sections = [config, config.get("text_config")]
    found = [one.get(name) for one in sections if isinstance(one, dict)]
    return next((number for number in found if isinstance(number, int) and number > 0), None)


def gguf_path(model: str) -> Path:
    """Where a `.gguf` file lies that is given by path or as `package:NAME/FILE`.

    Raises:
        FileNotFoundError: There is no such package.
    """
    if not model.startswith("package:"):
        return Path(model).expanduser()
    package, _, name = model.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"no package {package!r} is installed")
    return Path(next(iter(found.submodule_search_locations))) / name


def _gguf_number(file: BinaryIO, ending: str) -> int | None:
    """The number of a GGUF header whose key has an ending, such as `.embedding_length`.

    `gguf.GGUFReader` takes seconds, as it reads the vocabulary too, which comes after this.
    """
    magic, _version, _tensors, fields = struct.unpack("<4sIQQ", file.read(24))
    if magic != b"GGUF":
        raise ValueError("not a GGUF file")
    for _ in range(fields):
        key = _gguf_value(file, _STRING)
        value = _gguf_value(file, _number(file, "I"))
        if key.endswith(ending):
            return int(value)
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
