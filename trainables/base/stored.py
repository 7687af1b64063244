"""Stored form of a checkpoint, read from its files without loading weights.

A checkpoint quantized by bitsandbytes is used unchanged, in its own form. A checkpoint of another
quantization method is refused, because training needs the original weights.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import HFValidationError

from trainables.base.shape import config_path
from trainables.errors import BaseModelError, SpecError
from trainables.spec import BaseSpec

_NAMES = {
    "awq": "AWQ",
    "fbgemm_fp8": "FP8",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "mxfp4": "MXFP4",
    "nvfp4": "NVFP4",
}
"""Names of quantization methods that differ from the key in `config.json`."""

_SECTIONS = ("quantization_config", "compression_config", "quantization")
"""Sections of a config about quantization: of transformers, of older versions, of MLX."""

_ENDINGS = (".qweight", ".weight_packed", ".absmax", ".SCB", ".weight_scale", ".weight_scale_inv")
_PACKED = ("U8", "I8", "I32", "U32")
_LONGEST_HEADER = 100_000_000
_REMEDY = "Name the original, unquantized weights of this model."


@dataclass(frozen=True, kw_only=True)
class StoredForm:
    """Quantized form of the linear layers in a checkpoint.

    Attributes:
        quantization: Form produced by bitsandbytes.
        double_quant: Whether the 4-bit constants are quantized, too.
    """

    quantization: Literal["nf4", "fp4", "int8"]
    double_quant: bool

    def __str__(self) -> str:
        """The form in words."""
        return self.quantization + (" with double quantization" if self.double_quant else "")


def stored_form(base: BaseSpec) -> StoredForm | None:
    """Quantized form of a base's checkpoint; `None` for plain weights or a missing checkpoint.

    A `.gguf` file counts as unquantized, because its weights are unpacked before use.

    Raises:
        BaseModelError: The checkpoint is quantized in a form that cannot be trained on.
    """
    try:
        path = config_path(base, is_fetched=False)
    except HFValidationError:
        return None  # The search for the base reports an invalid name.
    if path is None or not path.is_file():
        return None
    return read_stored_form(path, base.model)


def read_stored_form(config: Path, model: str) -> StoredForm | None:
    """Quantized form of the checkpoint beside a `config.json`; `None` for plain weights.

    Args:
        config: Path of the file.
        model: Name of the base in messages.

    Raises:
        BaseModelError: As for `stored_form`, or the file cannot be read.
    """
    return _read_once(config, config.stat().st_mtime_ns, model)


def settle_form(base: BaseSpec, stored: StoredForm | None) -> BaseSpec:
    """The spec of a base with `double_quant` of the checkpoint.

    Raises:
        SpecError: The checkpoint is quantized in another form than the requested one.
    """
    if stored is None:
        return base
    if base.quantization != stored.quantization:
        raise SpecError(
            f"base.quantization: got {base.quantization!r}, but {base.model!r} is stored in "
            f"{stored} already; allowed: {stored.quantization} for this base. Set "
            f"base.quantization: {stored.quantization}, or name the original, unquantized "
            "weights in base.model."
        )
    return dataclasses.replace(base, double_quant=stored.double_quant)


@lru_cache(maxsize=256)
def _read_once(config: Path, changed_ns: int, model: str) -> StoredForm | None:
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BaseModelError(
            f"base.model: {config} cannot be read ({error}); allowed: the config.json that "
            "save_pretrained writes. Download or save the base again."
        ) from error
    nested = values.get("text_config") if isinstance(values, Mapping) else None
    parts = [part for part in (values, nested) if isinstance(part, Mapping)]
    sections = [part.get(name) for part in parts for name in _SECTIONS]
    section = next((one for one in sections if isinstance(one, Mapping) and one), None)
    if section is None:
        for name, dtype, shape in tensors_of(config.parent):
            is_packed = dtype in _PACKED and len(shape) >= 2 and name.endswith("weight")
            if is_packed or dtype.startswith(("F8", "F4", "F6")) or name.endswith(_ENDINGS):
                raise BaseModelError(
                    f"base.model: {model!r} holds quantized weights ({name}, {dtype}), but its "
                    "config.json does not name the method; allowed: unquantized weights, or a "
                    f"bitsandbytes checkpoint with its quantization_config. {_REMEDY}"
                )
        return None
    # Checkpoints of bitsandbytes from 2023 name no method.
    is_flagged = section.get("load_in_4bit") or section.get("load_in_8bit")
    method = section.get("quant_method", "bitsandbytes" if is_flagged else None)
    if method != "bitsandbytes":
        label = f"a method that config.json does not name ({section.get('bits', '?')} bits)"
        if method:
            label = _NAMES.get(str(method), str(method))
        raise BaseModelError(
            f"base.model: {model!r} is a checkpoint quantized with {label}, which "
            "cannot be trained on here; allowed: unquantized weights, or a bitsandbytes "
            f"checkpoint in nf4, fp4 or int8. {_REMEDY}"
        )
    return _bitsandbytes_form(section, model)


def _bitsandbytes_form(section: Mapping[str, Any], model: str) -> StoredForm:
    if section.get("load_in_8bit"):
        return StoredForm(quantization="int8", double_quant=False)
    # The default of bitsandbytes.
    kind = section.get("bnb_4bit_quant_type", "fp4")
    if section.get("load_in_4bit") and kind in ("nf4", "fp4"):
        return StoredForm(
            quantization=kind, double_quant=bool(section.get("bnb_4bit_use_double_quant"))
        )
    raise BaseModelError(
        f"base.model: the config.json of {model!r} does not say how bitsandbytes quantized it; "
        f"allowed: load_in_8bit, or load_in_4bit with the type nf4 or fp4. {_REMEDY}"
    )


def tensors_of(folder: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Name, type and shape of the tensors in a folder's safetensors files, from their headers."""
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            text = stream.read(length) if length <= _LONGEST_HEADER else b""
        try:
            header = json.loads(text)
        except ValueError:
            continue  # Loading the weights reports a broken file.
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, entry["dtype"], entry["shape"]
