"""Load a frozen base model in a stored form; each form is quantized only once.

    source (hub snapshot | folder | .gguf)  --quantize-->  cache entry  --mmap-->  LoadedBase

Quantizing 411 million weights takes 26.7 CPU-seconds; loading the quantized weights takes 0.35. So
every (source, form) is quantized once and kept under `$LORCHESTRA_CACHE` (`~/.cache/lorchestra`):

    bases/<16 hex digits of the source's digest>/<nf4|fp4|int8>[-dq]/   safetensors, tokenizer,
                                                 plain/                 complete.json
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
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
from trainables.base.stored import read_stored_form, settle_form
from trainables.contract import file_record
from trainables.errors import BaseModelError
from trainables.spec import BaseSpec
from trainables.whole import set_usual_modes, sync, sync_tree

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BaseRecord:
    """Record of the training base in a bundle's manifest.

    Attributes:
        prequantized: Whether the base's own files are quantized, so that no unquantized weights
            exist.
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
    """A frozen base on its device, in eval mode and without gradients."""

    model: Any
    tokenizer: Any
    record: BaseRecord
    device: torch.device
    compute_dtype: torch.dtype


DEVICE = "LORCHESTRA_DEVICE"
"""Environment variable; `cpu` trains on the CPU, whatever Ray and torch say of GPUs."""


def default_device() -> torch.device:
    """The first CUDA device, or the CPU on a machine without CUDA or by order of the user."""
    has_gpu = torch.cuda.is_available() and os.environ.get(DEVICE) != "cpu"
    return torch.device("cuda", 0) if has_gpu else torch.device("cpu")


def require_gpu(given: Sequence[str]) -> None:
    """Require that torch sees a GPU, if Ray gave GPUs to the process and nobody chose the CPU.

    Args:
        given: Ids of the GPUs from Ray.

    Raises:
        BaseModelError: torch sees no GPU.
    """
    if given and not torch.cuda.is_available() and os.environ.get(DEVICE) != "cpu":
        raise BaseModelError(
            f"torch: Ray gave this process GPU {', '.join(given)}, but torch {torch.__version__} "
            "sees no GPU; allowed: a build of torch with CUDA, and a matching driver. "
            "Install both, or start Ray with --num-gpus 0 to train on the CPU."
        )


def pick_compute_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The wanted type; `auto` is bfloat16 with native hardware support, else float32."""
    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_native = torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if is_native else torch.float32


def load_base(spec: BaseSpec, device: torch.device | None = None) -> LoadedBase:
    """Load a base in its stored form, or from the cache after the first load.

    Args:
        spec: The base and its stored form.
        device: Device of the base; `default_device()` when not given.

    Raises:
        BaseModelError: The base cannot be found, read or quantized.
        SpecError: The base's own files are quantized in another form.
    """
    device = device or default_device()
    compute_dtype = pick_compute_dtype(spec.compute_dtype, device)
    source = locate(spec)
    own = None
    if source.gguf_file is None:
        own = read_stored_form(source.folder / "config.json", spec.model)
    spec = settle_form(spec, own)
    folder = source.folder if own is not None else stored_form(spec, source)
    model = _load_stored_form(spec, folder, compute_dtype, device)
    require_text_only(model.config, spec.model)
    model.requires_grad_(False)
    model.eval()
    settle_types(model, compute_dtype)
    if own is None:
        quantization = _quantization_config(spec, compute_dtype)
    else:
        quantization = model.config.quantization_config
    config = None if quantization is None else quantization.to_dict()
    record = BaseRecord(
        model=spec.model,
        revision=source.revision,
        source=source.kind,
        digest=source.digest,
        quantization=spec.quantization,
        double_quant=_is_double(spec),
        quantization_config=json.loads(json.dumps(config, default=str, sort_keys=True)),
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
            shutil.rmtree(folder)  # an unreadable entry is useless
        raise BaseModelError(
            f"base.quantization: got {spec.quantization!r}, but transformers cannot load the "
            f"saved quantized weights of {spec.model!r} ({error}); allowed: none for this base. "
            "Set base.quantization: none, or choose another base."
        ) from error


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
    """Folder of a base in its stored form, built on first use.

    Two processes that call at the same time build the folder once. An entry whose writer died, or
    whose files have changed since, is written again.
    """
    if spec.quantization == "none":
        return source.folder if source.gguf_file is None else _plain_entry(source)
    entry = cache_entry(source, spec.quantization + ("-dq" if _is_double(spec) else ""))

    def build(folder: Path) -> None:
        origin = source.folder if source.gguf_file is None else _plain_entry(source)
        # "auto" quantizes the numbers as stored, so the form does not depend on the compute type.
        model = _from_pretrained(
            origin, "auto", default_device(), _quantization_config(spec, torch.float32)
        )
        try:
            model.save_pretrained(folder)
        except NotImplementedError as error:
            raise BaseModelError(
                f"base.quantization: got {spec.quantization!r}, but transformers cannot save "
                f"{spec.model!r} quantized ({_said(error)}); allowed: none for this base. Set "
                "base.quantization: none, or choose another base."
            ) from error

    return _build_once(entry, build)


def count_parameters(model: nn.Module) -> int:
    """Number of weights in a model; a packed 4-bit tensor counts with its unpacked size."""
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


def _from_pretrained(
    folder: Path,
    dtype: torch.dtype | Literal["auto"],
    device: torch.device,
    quantization: BitsAndBytesConfig | None,
) -> Any:
    # An explicit None would hide the quantization config of a stored form.
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
    # transformers fills missing weights with random numbers and only warns.
    lacking = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    if lacking:
        raise BaseModelError(
            f"base.model: {folder} lacks {len(lacking)} weights, the first of them {lacking[0]}; "
            "allowed: a complete checkpoint of this architecture. Download or save it again."
        )
    return model


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def settle_types(model: Any, compute_dtype: torch.dtype) -> None:
    """Make a loaded model compute in one type, independent of the stored types.

    A stored form keeps the types of embeddings, norms, biases and head, and transformers does not
    cast these tensors when loading quantized weights. Tensors that the model's class keeps in
    float32 stay in float32.
    """
    kept = _kept_in_float32(model, compute_dtype)
    for name, module in model.named_modules():
        for part, tensor in _unquantized_tensors(module):
            dtype = torch.float32 if kept(f"{name}.{part}") else compute_dtype
            tensor.data = tensor.data.to(dtype)
        _settle_linear4bit(module, compute_dtype)
    model.config.dtype = compute_dtype


def _unquantized_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Unquantized floating-point parameters and saved buffers of a module, without submodules."""
    for part, parameter in module.named_parameters(recurse=False):
        if parameter.is_floating_point() and getattr(parameter, "quant_state", None) is None:
            yield part, parameter
    for part, buffer in module.named_buffers(recurse=False):
        is_saved = part not in module._non_persistent_buffers_set
        if is_saved and buffer.is_floating_point():
            yield part, buffer


def _kept_in_float32(model: Any, compute_dtype: torch.dtype) -> Callable[[str], bool]:
    """Test of a tensor's full name: whether the model's class keeps the tensor in float32.

    `from_pretrained` follows the same rule.
    """
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
    # The stored form does not record the compute type.
    module.compute_dtype = compute_dtype  # type: ignore[assignment]
    module.compute_type_is_set = True  # type: ignore[assignment]
    # The backward pass dequantizes to this type before multiplying. With a type narrower than the
    # compute type, the gradient would belong to other weights than those of the forward pass.
    state.dtype = compute_dtype


# --------------------------------------------------------------------------------------- cache


def _plain_entry(source: BaseSource) -> Path:
    """Cache entry of a .gguf file: a plain bfloat16 model folder with its tokenizer."""

    def build(folder: Path) -> None:
        options = {"gguf_file": source.gguf_file, "local_files_only": True}
        try:
            # The weights are loaded dequantized; bfloat16 keeps the precision of 4 or 8 bits.
            loaded = AutoModelForCausalLM.from_pretrained(
                source.folder, dtype=torch.bfloat16, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(source.folder, **options)
        except (OSError, ValueError, KeyError, NotImplementedError) as error:
            raise BaseModelError(
                f"base.model: {source.gguf_file} cannot be read ({error}); allowed: a .gguf file "
                "of an architecture that transformers can dequantize. Use the original weights."
            ) from error
        # transformers cannot save a model loaded from .gguf, so a fresh model takes the weights.
        config = loaded.config.to_dict()
        config.pop("quantization_config", None)
        fresh = type(loaded)(type(loaded.config)(**config)).to(torch.bfloat16)
        fresh.load_state_dict(loaded.state_dict())
        fresh.tie_weights()
        fresh.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return _build_once(cache_entry(source, "plain"), build)


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
        files = {file.name: file_record(file) for file in sorted(building.iterdir())}
        (building / COMPLETE).write_text(json.dumps({"files": files}, sort_keys=True))
        set_usual_modes(building)
        sync_tree(building)
        building.rename(entry)
        sync(entry.parent)
    return entry


def _is_complete(entry: Path) -> bool:
    """Whether an entry was finished and no file has changed since.

    Sizes are compared at every call; contents once in each process, as that takes half a second
    per gigabyte.
    """
    if not (entry / COMPLETE).is_file():
        return False
    try:
        files = dict(json.loads((entry / COMPLETE).read_text())["files"])
        changed = [
            name
            for name, record in files.items()
            if not (entry / name).is_file() or (entry / name).stat().st_size != record["bytes"]
        ]
        if not changed and str(entry) not in _CHECKED:
            changed = [name for name in files if file_record(entry / name) != files[name]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        logger.warning("base cache entry %s cannot be read (%s): building it again", entry, error)
        return False
    if changed:
        logger.warning("%s: %s changed since it was built: building it again", entry, changed[0])
        return False
    _CHECKED.add(str(entry))
    return True


_CHECKED: set[str] = set()
"""Cache entries whose contents this process has compared with their digests."""
