"""Read a bundle, the folder of an exported adapter, and check all its files.

A bundle holds `adapter_config.json`, `adapter_model.safetensors`, `manifest.json` and perhaps
`card.md`. The manifest names the digest of every file and of the bundle as a whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from registry.errors import IntegrityError
from trainables.contract import (
    ADAPTER_FILES,
    ADAPTER_WEIGHTS,
    BUNDLE_FORMAT,
    CARD,
    MANIFEST,
    file_record,
    identity_digest,
    manifest_flaw,
)

_ALLOWED = {MANIFEST, *ADAPTER_FILES, CARD}
_RECORDS = ("base", "lora", "optim", "data", "metrics", "packages", "files")


def read_bundle(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle, after a check of every file.

    Raises:
        IntegrityError: A file is missing, changed, unexpected or a link; or the manifest was
            changed or has another format.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise IntegrityError(
            f"bundle {folder}: it is no folder; allowed: the folder of an exported adapter. "
            "Check the path."
        )
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not path.is_file() or path.name not in _ALLOWED:
            kind = "link" if path.is_symlink() else "file" if path.is_file() else "folder"
            raise IntegrityError(
                f"bundle {folder}: unexpected {kind} {path.name!r}; allowed: the files "
                f"{', '.join(sorted(_ALLOWED))}. Pickles and code are never loaded: remove it."
            )
    manifest = _read_manifest(folder / MANIFEST)
    for name, expected in manifest["files"].items():
        if not (folder / name).is_file():
            raise IntegrityError(
                f"bundle {folder}: {name} is missing; allowed: the files of its manifest. "
                "Copy the whole folder."
            )
        found = file_record(folder / name)
        if found != dict(expected):
            raise IntegrityError(
                f"bundle {folder}: {name} has {found['bytes']} bytes and sha256 "
                f"{found['sha256']}; allowed: {expected.get('bytes')} bytes and "
                f"{expected.get('sha256')}, as its manifest says. Copy or export it again."
            )
    _require_safetensors(folder / ADAPTER_WEIGHTS)
    return manifest


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(
            f"bundle {path.parent}: {MANIFEST} cannot be read ({error}); allowed: the manifest "
            "that training wrote. Export the adapter again."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != BUNDLE_FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise IntegrityError(
            f"bundle {path.parent}: {MANIFEST} has format {str(found)[:60]!r}; allowed: "
            f"{BUNDLE_FORMAT!r}. Export the adapter again with this version."
        )
    missing = [name for name in _RECORDS if not isinstance(manifest.get(name), dict)]
    if missing or set(manifest["files"]) != set(ADAPTER_FILES):
        raise IntegrityError(
            f"bundle {path.parent}: {MANIFEST} lacks {', '.join(missing) or 'a file'}; allowed: "
            f"records of {', '.join(_RECORDS)}, files {', '.join(ADAPTER_FILES)}. Export it again."
        )
    flaw = manifest_flaw(manifest)
    if flaw:
        raise IntegrityError(
            f"bundle {path.parent}: in {MANIFEST}, {flaw}; allowed: the manifest that training "
            "wrote. Export the adapter again."
        )
    if manifest.get("digest") != identity_digest(manifest):
        raise IntegrityError(
            f"bundle {path.parent}: {MANIFEST} was changed since it was written: its digest is "
            f"{manifest.get('digest')!r}, allowed: {identity_digest(manifest)!r}. Export it again."
        )
    return manifest


def _require_safetensors(path: Path) -> None:
    """Refuse a pickle with a wrong name: safetensors start with a length and a JSON object."""
    with path.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        starts_json = stream.read(1) == b"{"
    if not starts_json or header_bytes > path.stat().st_size - 8:
        raise IntegrityError(
            f"bundle {path.parent}: {path.name} is not in safetensors format; allowed: weights "
            "saved with safetensors. Pickles are never loaded: export the adapter again."
        )
