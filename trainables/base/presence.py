"""Whether a base can be had, and its layers, within two seconds: no torch, no repeated requests.

A hub that cannot be reached costs `huggingface_hub` 23 seconds of retries for each file. Here the
way to the hub is tried once, and a missing base is refused before anything is imported for it.
"""

from __future__ import annotations

import difflib
import json
import os
import queue
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from trainables.base.shape import config_path, gguf_layers
from trainables.base.stored import tensors_of
from trainables.claims import similar_path
from trainables.errors import BaseModelError
from trainables.spec import BaseSpec

_CONNECT_S = 1.5
"""Time limit for finding and connecting to the hub."""

_ALLOWED = "a hub id that can be read, a folder, a .gguf file or package:NAME/FILE"

_SAME_NAMES = (
    "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo", "olmo2", "phi",
    "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
"""Kinds of models whose files name each layer as the built model does. Others are only known after
transformers has built them: it renames or joins weights of some kinds."""

_NO_TARGETS = ("lm_head", "embed_tokens")


def is_hub_model(model: str) -> bool:
    """Whether a base is named by a hub id, not by a folder, file or package."""
    is_file = model.startswith("package:") or model.endswith(".gguf")
    return not (is_file or Path(model).expanduser().exists() or model.startswith((".", "/", "~")))


def require_base(base: BaseSpec) -> None:
    """Refuse a hub model that is neither in the hub's cache nor on a hub that answers.

    Raises:
        BaseModelError: The model cannot be had.
    """
    if not is_hub_model(base.model) or _is_cached(base):
        return
    fault = hub_fault()
    if fault:
        raise BaseModelError(
            f"base.model: got {base.model!r}, which is not in the hub's cache on this machine, "
            f"and the hub cannot be reached ({fault}); allowed: {_ALLOWED}. {_remedy(base.model)}"
        )
    try:
        hf_hub_download(base.model, "config.json", revision=base.revision)
    except LocalEntryNotFoundError:
        return  # the connection broke: the next request for the base says so
    except (HFValidationError, HfHubHTTPError, EntryNotFoundError) as error:
        said = _refusal(base, error)
        if said:
            raise BaseModelError(said) from error


def _refusal(base: BaseSpec, error: Exception) -> str:
    """What the hub's answer says against a base; empty if the hub is only busy."""
    where = f"base.model: got {base.model!r}"
    if isinstance(error, GatedRepoError):
        return (
            f"{where}, which the hub does not give to this user; allowed: {_ALLOWED}. Accept its "
            "conditions on its page, and set HF_TOKEN."
        )
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return (
            f"{where}, which the hub at {constants.ENDPOINT} does not have, or hides from this "
            f"user; allowed: {_ALLOWED}. {_remedy(base.model)}"
        )
    if isinstance(error, RevisionNotFoundError):
        return (
            f"base.revision: got {base.revision!r}, which {base.model!r} does not have on the "
            "hub; allowed: a commit, tag or branch. Correct it, or leave it out."
        )
    if isinstance(error, EntryNotFoundError):
        return (
            f"{where}, a repository without config.json; allowed: {_ALLOWED}. Name the repository "
            "of the model's safetensors weights."
        )
    return ""


def hub_fault() -> str:
    """Reason why the hub cannot be reached; empty if it accepts a connection.

    Takes at most `_CONNECT_S`, even while a name server does not answer.
    """
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    host, port = _first_hop(constants.ENDPOINT)
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_CONNECT_S).close()
            answers.put("")
        except OSError as error:
            answers.put(f"{host}: {(error.strerror or str(error)).lower()}")

    threading.Thread(target=connect, daemon=True).start()
    try:
        return answers.get(timeout=_CONNECT_S)
    except queue.Empty:
        return f"{host}: no answer within {_CONNECT_S:g} s"


def stay_offline() -> None:
    """Read hub repositories from the cache alone, in this process and in those it starts."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def layers_of_files(base: BaseSpec) -> tuple[str, ...] | None:
    """Full names of a base's linear layers, from the headers of its files.

    `None` where the files are not on this machine, or name layers in another way.
    """
    if base.model.startswith("package:") or base.model.endswith(".gguf"):
        return gguf_layers(base.model)
    try:
        path = config_path(base, is_fetched=False)
        config = json.loads(path.read_text()) if path is not None else None
    except (OSError, ValueError, HFValidationError):
        return None
    if path is None or not isinstance(config, dict) or config.get("model_type") not in _SAME_NAMES:
        return None
    return tuple(_linear(path.parent)) or None


def _linear(folder: Path) -> Iterator[str]:
    try:
        for tensor, _, shape in tensors_of(folder):
            name = tensor.removesuffix(".weight")
            is_target = name.rpartition(".")[2] not in _NO_TARGETS
            if name != tensor and len(shape) == 2 and is_target:
                yield name
    except (OSError, struct.error):
        return  # loading the weights reports a broken file


def _is_cached(base: BaseSpec) -> bool:
    """Whether configuration and weights of a hub model are in the hub's cache."""
    try:
        path = config_path(base, is_fetched=False)
    except HFValidationError:
        return False
    return path is not None and any(path.parent.glob("*.safetensors"))


def _remedy(model: str) -> str:
    near = _similar(model)
    return f"Did you mean {near}?" if near else "Check the name, your network and HF_TOKEN."


def _similar(model: str) -> str:
    """The cached model, or else the file or folder, with the most similar name."""
    found = Path(constants.HF_HUB_CACHE).glob("models--*")
    cached = [one.name.removeprefix("models--").replace("--", "/") for one in found]
    by_lower = {name.lower(): name for name in cached if name != model}
    near = difflib.get_close_matches(model.lower(), list(by_lower), n=1, cutoff=0.75)
    if near:
        return by_lower[near[0]]
    beside = similar_path(Path(model))
    return "" if beside is None else str(beside)


def _first_hop(endpoint: str) -> tuple[str, int]:
    """Host and port to connect to: the hub, or the proxy that leads there."""
    parts = urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
