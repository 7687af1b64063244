"""Load a frozen base model in a stored form, quantizing it only once.

    source (hub snapshot | folder | .gguf)  --quantize-->  cache entry  --mmap-->  LoadedBase

Quantizing 411 million weights on load cost 26.7 CPU-seconds where loading the quantized ones cost
0.35, so every (source, form) is quantized once and kept under `$LORCHESTRA_CACHE`
(`~/.cache/lorchestra`):

    bases/<16 hex digits of the source's digest>/<nf4|fp4|int8>[-dq]/   safetensors, tokenizer,
                                                 plain/                 complete.json
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from trainables.base.layers import require_text_only
from trainables.base.origin import COMPLETE, BaseSource, SourceKind, cache_entry, locate
from trainables.base.stored import StoredForm, read_stored_form, settle_form
from trainables.errors import BaseModelError
from trainables.spec import BaseSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BaseRecord:
    """What a bundle's manifest says of the base its adapter was trained on.

    Attributes:
        prequantized: Whether the base's own files are in the stored form, so that there are no
            unquantized weights.
    """

    model: str
    revision: str | None
    source: SourceKind
    digest: str
    quantization: str
    double_quant: bool
    quantization_config: dict[str, Any] | None
    compute_dtype: str
    parameters: int
    prequantized: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class LoadedBase:
    """A frozen base on its device, in eval mode, none of its weights needing gradients."""

    model: Any
    tokenizer: Any
    record: BaseRecord
    device: torch.device
    compute_dtype: torch.dtype


def default_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def require_gpu(given: Sequence[str]) -> None:
    """Raise `BaseModelError` if GPUs were given to this process and torch sees none.

    Args:
        given: Ids of the GPUs that Ray gave.
    """
    if given and not torch.cuda.is_available():
        raise BaseModelError(
            f"torch: Ray gave this process GPU {', '.join(given)}, but torch {torch.__version__} "
            "sees none; allowed: a build of torch with CUDA, and a driver that it can use. "
            "Install such a build, or start Ray with --num-gpus 0 to train on the CPU."
        )


def pick_compute_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, else float32, unless one is wanted."""
    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_native = torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if is_native else torch.float32


def load_base(spec: BaseSpec, device: torch.device | None = None) -> LoadedBase:
    """Load a base in its stored form, from the prequantized cache if it has been loaded before.

    Args:
        spec: Which base, in which form.
        device: Where to put it; `default_device()` when not given.

    Raises:
        BaseModelError: The base cannot be found, read or quantized.
        SpecError: The base is quantized already, in another form.
    """
    device = device or default_device()
    compute_dtype = pick_compute_dtype(spec.compute_dtype, device)
    source = locate(spec)
    own = _own_form(spec, source)
    spec = settle_form(spec, own)
    folder = source.folder if own is not None else stored_form(spec, source)
    model = _load_stored_form(spec, folder, compute_dtype, device)
    require_text_only(model.config, spec.model)
    model.requires_grad_(False)
    model.eval()
    settle_types(model, compute_dtype)
    quantization = _quantization_config(spec, compute_dtype) if own is None else _config_of(model)
    record = BaseRecord(
        model=spec.model,
        revision=source.revision,
        source=source.kind,
        digest=source.digest,
        quantization=spec.quantization,
        double_quant=_is_double(spec),
        quantization_config=None if quantization is None else _plain_config(quantization),
        compute_dtype=str(compute_dtype).removeprefix("torch."),
        parameters=count_parameters(model),
        prequantized=own is not None,
    )
    return LoadedBase(
        model=model,
        tokenizer=load_tokenizer(source),
        record=record,
        device=device,
        compute_dtype=compute_dtype,
    )


def _load_stored_form(
    spec: BaseSpec, folder: Path, compute_dtype: torch.dtype, device: torch.device
) -> Any:
    try:
        # A stored form carries its own quantization config.
        return _from_pretrained(folder, compute_dtype, device, quantization=None)
    except BaseModelError as error:
        if COMPLETE not in {file.name for file in folder.iterdir()} or spec.quantization == "none":
            raise
        if not isinstance(error.__cause__, torch.OutOfMemoryError):
            shutil.rmtree(folder)  # what cannot be read again is of no use
        raise BaseModelError(
            f"base.quantization: got {spec.quantization!r}, but transformers does not read the "
            f"quantized weights of {spec.model!r} again ({error}); allowed: none for this base. "
            "Set it, or choose another base."
        ) from error


def _own_form(spec: BaseSpec, source: BaseSource) -> StoredForm | None:
    if source.gguf_file is not None:
        return None
    return read_stored_form(source.folder / "config.json", spec.model)


def load_tokenizer(source: BaseSource) -> Any:
    """The tokenizer that ships with a base.

    Raises:
        BaseModelError: The base has none.
    """
    try:
        if source.gguf_file is None:
            return AutoTokenizer.from_pretrained(source.folder)
        return AutoTokenizer.from_pretrained(_plain_entry(source))
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"base.model: {source.folder} has no tokenizer ({error}); allowed: a base with its "
            "tokenizer files. Save the tokenizer beside the weights."
        ) from error


def stored_form(spec: BaseSpec, source: BaseSource) -> Path:
    """The folder that holds the base in its stored form; built on first use.

    Two processes that ask at once build it once; an entry that was being written when its process
    died is written anew.
    """
    if spec.quantization == "none":
        return source.folder if source.gguf_file is None else _plain_entry(source)
    entry = cache_entry(source, spec.quantization + ("-dq" if _is_double(spec) else ""))

    def build(folder: Path) -> None:
        origin = source.folder if source.gguf_file is None else _plain_entry(source)
        # "auto" quantizes from the numbers as stored, so the form does not depend on who computes.
        model = _from_pretrained(
            origin, "auto", default_device(), _quantization_config(spec, torch.float32)
        )
        try:
            model.save_pretrained(folder)
        except NotImplementedError as error:
            raise BaseModelError(
                f"base.quantization: got {spec.quantization!r}, but transformers cannot save "
                f"{spec.model!r} quantized ({_said(error)}); allowed: none for this base. Set it, "
                "or choose another base."
            ) from error

    return _build_once(entry, build)


def count_parameters(model: nn.Module) -> int:
    """Weights of the model, counting a packed 4-bit tensor by the weights it stands for."""
    total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        total += parameter.numel() if state is None else int(torch.Size(state.shape).numel())
    return total


# --------------------------------------------------------------------------------------- forms


def _is_double(spec: BaseSpec) -> bool:
    return spec.double_quant and spec.quantization in ("nf4", "fp4")


def _quantization_config(spec: BaseSpec, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if spec.quantization == "none":
        return None
    if spec.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.quantization,
        bnb_4bit_use_double_quant=spec.double_quant,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _config_of(model: Any) -> BitsAndBytesConfig:
    config: BitsAndBytesConfig = model.config.quantization_config
    return config


def _plain_config(config: BitsAndBytesConfig) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str, sort_keys=True))
    return plain


def _from_pretrained(
    folder: Path,
    dtype: torch.dtype | Literal["auto"],
    device: torch.device,
    quantization: BitsAndBytesConfig | None,
) -> Any:
    # Given as None, it would hide the config that a stored form carries.
    options = {} if quantization is None else {"quantization_config": quantization}
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device},
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except (
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        RuntimeError,
        ImportError,
        SafetensorError,
    ) as error:
        raise BaseModelError(
            f"base.model: {folder} cannot be loaded as a causal language model ({_said(error)}); "
            "allowed: an architecture that transformers knows. Check config.json and the weights."
        ) from error
    # transformers fills what a checkpoint lacks with random numbers, and only warns.
    lacking = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    if lacking:
        raise BaseModelError(
            f"base.model: {folder} lacks {len(lacking)} weights, the first of them {lacking[0]}; "
            "allowed: a whole checkpoint of this architecture. Download or save it again."
        )
    return model


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def settle_types(model: Any, compute_dtype: torch.dtype) -> None:
    """Make a loaded model compute in one type, whatever type it was stored in.

    A stored form keeps the type of embeddings, norms, biases and head; transformers does not cast
    them when it loads quantized weights. What a model's class keeps in float32 stays in float32.
    """
    kept = _kept_in_float32(model, compute_dtype)
    for name, module in model.named_modules():
        for part, tensor in _unquantized_tensors(module):
            dtype = torch.float32 if kept(f"{name}.{part}") else compute_dtype
            tensor.data = tensor.data.to(dtype)
        _settle_linear4bit(module, compute_dtype)
    model.config.dtype = compute_dtype


def _unquantized_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and saved buffers of a module itself that hold numbers as they are."""
    for part, parameter in module.named_parameters(recurse=False):
        if parameter.is_floating_point() and getattr(parameter, "quant_state", None) is None:
            yield part, parameter
    for part, buffer in module.named_buffers(recurse=False):
        is_saved = part not in module._non_persistent_buffers_set
        if is_saved and buffer.is_floating_point():
            yield part, buffer


def _kept_in_float32(model: Any, compute_dtype: torch.dtype) -> Callable[[str], bool]:
    """Which tensors, by full name, the model's class wants in float32 (`from_pretrained` too)."""
    wanted: set[str] = set()
    if compute_dtype != torch.float32:
        wanted |= set(model._keep_in_fp32_modules_strict or ())
    if compute_dtype == torch.float16:
        wanted |= set(model._keep_in_fp32_modules or ())
    patterns = [re.compile(rf"(^|\.){re.escape(one)}($|\.)") for one in wanted]
    return lambda name: any(pattern.search(name) for pattern in patterns)


def _settle_linear4bit(module: nn.Module, compute_dtype: torch.dtype) -> None:
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    if state is None:
        return
    # After one no-grad forward, bitsandbytes 0.50.2 repacks the weights on AVX512-BF16 CPUs and
    # the next backward silently gives no input gradient.
    module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    # The stored form does not say who computes with it.
    module.compute_dtype = compute_dtype  # type: ignore[assignment]
    module.compute_type_is_set = True  # type: ignore[assignment]
    # Backward dequantizes to this type before it multiplies: were it narrower than the compute
    # type, the gradient would belong to other weights than the forward pass used.
    state.dtype = compute_dtype


# --------------------------------------------------------------------------------------- cache


def _plain_entry(source: BaseSource) -> Path:
    """A .gguf file as a plain bfloat16 model folder with its tokenizer."""

    def build(folder: Path) -> None:
        options = {"gguf_file": source.gguf_file, "local_files_only": True}
        try:
            # The weights come dequantized; bfloat16 keeps all the precision 4 or 8 bits had.
            loaded = AutoModelForCausalLM.from_pretrained(
                source.folder, dtype=torch.bfloat16, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(source.folder, **options)
        except (OSError, ValueError, KeyError, NotImplementedError) as error:
            raise BaseModelError(
                f"base.model: {source.gguf_file} cannot be read ({error}); allowed: a .gguf file "
                "of an architecture that transformers can dequantize. Use the original weights."
            ) from error
        # A model loaded from .gguf refuses to be saved: its weights go into a fresh one.
        config = type(loaded.config)(**_without_quantization(loaded.config.to_dict()))
        fresh = type(loaded)(config).to(torch.bfloat16)
        fresh.load_state_dict(loaded.state_dict())
        fresh.tie_weights()
        fresh.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return _build_once(cache_entry(source, "plain"), build)


def _without_quantization(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "quantization_config"}


def _build_once(entry: Path, build: Any) -> Path:
    if _is_complete(entry):
        return entry
    entry.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(entry.with_name(entry.name + ".lock")):
        if _is_complete(entry):
            return entry
        shutil.rmtree(entry, ignore_errors=True)
        for leftover in entry.parent.glob(f"{entry.name}.building-*"):
            shutil.rmtree(leftover)
        building = Path(tempfile.mkdtemp(prefix=f"{entry.name}.building-", dir=entry.parent))
        logger.info("building base cache entry %s", entry)
        try:
            build(building)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        gc.collect()
        sizes = {file.name: file.stat().st_size for file in building.iterdir()}
        (building / COMPLETE).write_text(json.dumps({"bytes": sizes}, sort_keys=True))
        building.chmod(0o755)
        building.rename(entry)
    return entry


def _is_complete(entry: Path) -> bool:
    """Whether an entry was finished and every file still has the size it was written with."""
    note = entry / COMPLETE
    if not note.is_file():
        return False
    sizes = json.loads(note.read_text())["bytes"]
    return all(
        (entry / name).is_file() and (entry / name).stat().st_size == size
        for name, size in sizes.items()
    )
