"""A base that stays loaded while adapters are served on it, one after another.

    KeptBases.serve(bundle, form)  --with-->  Served  --end-->  the base, as it was loaded

Adapters come and go through PEFT, as a server loads them, so a served model is the one that
`load_served` loads, bit for bit. At most one base is kept. It is dropped before another one is
loaded, and whenever it may differ from a fresh one: after any error, or if a check finds a change.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D

from trainables.base.loading import LoadedBase, load_base, stored_form
from trainables.base.memory import free_memory
from trainables.base.origin import BaseSource
from trainables.contract import ADAPTER_WEIGHTS, ServingForm
from trainables.errors import TrialError
from trainables.evaluation.requantized import (
    QuantizedLayer,
    exchanged,
    quantize_layers,
    quantized_names,
)
from trainables.evaluation.serving import (
    Served,
    attach,
    load_served,
    recorded_base,
    recorded_source,
    require_form,
    weight_bytes,
)
from trainables.spec import BaseSpec
from trainables.training.bundle import read_manifest

logger = logging.getLogger(__name__)

_ROOM = 2
"""Copies are made only if free memory holds them this many times."""


_Copy = tuple[nn.Parameter, torch.Tensor, torch.Tensor]
"""A parameter, its storage, and a copy of its content."""


def has_room(size: int) -> bool:
    """Whether main memory has room for copies of this many bytes."""
    try:
        return free_memory() >= _ROOM * size
    except (OSError, LookupError, ValueError) as error:  # no Linux
        logger.debug("the free memory is not known: %s", error)
        return False


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A loaded base and what its structure was when it was loaded."""

    key: tuple[object, ...]
    base: LoadedBase
    model_bytes: int
    structure: Mapping[str, Any] = field(repr=False)

    @property
    def model(self) -> Any:
        return self.base.model

    def is_untouched(self) -> bool:
        """Whether modules, parameters, buffers and settings are those of the loaded base.

        The contents of parameters are not compared: an adapter that could change them is not
        served on a kept base, and merged weights are restored.
        """
        now, then = _structure(self.model), self.structure
        return all(now[part] == then[part] for part in ("modules", "parameters", "tied")) and all(
            name in now["buffers"] and torch.equal(buffer, now["buffers"][name])
            for name, buffer in then["buffers"].items()
        )


@dataclass(frozen=True, kw_only=True)
class _Order:
    """An adapter to serve, with its base."""

    bundle: Path
    manifest: Mapping[str, Any]
    spec: BaseSpec
    source: BaseSource
    base_model: str | None

    @property
    def plain(self) -> BaseSpec:
        """The base without quantization."""
        return replace(self.spec, quantization="none")

    @property
    def digest(self) -> str:
        """Identity of the adapter."""
        return str(self.manifest["digest"])


class KeptBases:
    """Serves adapters one after another, and keeps the base from one to the next.

    Args:
        device: Device of the models.
        has_room: Whether main memory has room for copies of so many bytes. Without room, nothing
            is copied, and bases are loaded anew after weights were merged into them.

    Attributes:
        loads: Number of bases loaded so far.
    """

    def __init__(self, device: torch.device, has_room: Callable[[int], bool] = has_room) -> None:
        self._has_room = has_room
        self.loads = 0
        self._device = device
        self._kept: _Kept | None = None
        # A base that is not kept any more can be in memory until it is collected.
        self._is_in_memory = False
        self._digest = ""
        self._merged_layers: dict[str, dict[str, QuantizedLayer]] = {}
        self._other_layers: dict[tuple[object, ...], dict[str, QuantizedLayer]] = {}

    @contextmanager
    def serve(
        self,
        bundle: Path,
        form: ServingForm,
        *,
        base_model: str | None = None,
        later: Collection[str] = (),
    ) -> Iterator[Served]:
        """An adapter in a serving form, until the block ends.

        Args:
            bundle: Folder of the bundle.
            form: One of `trainables.evaluation.serving.forms_of` the manifest's base.
            base_model: Location of the base, where it differs from the manifest's.
            later: Forms of the adapter that will be served, too: merged weights are quantized at
                once if `requantized` is among them.

        Raises:
            BundleError: A file of the bundle differs from the manifest.
            SpecError: The base does not have the form.
            BaseModelError: The base cannot be found or loaded, or is not the training base.
        """
        manifest = read_manifest(bundle)
        require_form(manifest, form)
        spec = recorded_base(manifest, base_model)
        order = _Order(
            bundle=bundle,
            manifest=manifest,
            spec=spec,
            source=recorded_source(spec, manifest),
            base_model=base_model,
        )
        try:
            with self._served(order, form, later) as served:
                yield served
        except BaseException:
            self._kept = None
            raise

    def drop(self) -> None:
        """Release the base and its memory, so that the next order loads one anew."""
        self._kept = None
        if self._is_in_memory:
            self._is_in_memory = False
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _served(
        self, order: _Order, form: ServingForm, later: Collection[str]
    ) -> AbstractContextManager[Served]:
        if not _adds_to_layers_only(order.bundle):
            return self._fresh(order, form)
        if form == "merged":
            return self._merged(order, later)
        if form == "requantized":
            return self._requantized(order)
        return self._beside(order, form)

    @contextmanager
    def _fresh(self, order: _Order, form: ServingForm) -> Iterator[Served]:
        """The form as `load_served` loads it; nothing is kept."""
        self.drop()
        self.loads += 1
        self._is_in_memory = True
        yield load_served(
            order.bundle, form, base_model=order.base_model, device=str(self._device)
        )

    @contextmanager
    def _beside(self, order: _Order, form: ServingForm) -> Iterator[Served]:
        kept = self._base(order.spec if form == "trained" else order.plain, order.source)
        model, adapter_bytes = attach(kept.model, order.bundle)
        yield _serve(order, form, model, kept, adapter_bytes=adapter_bytes)
        model.unload()
        self._keep_if_untouched()

    @contextmanager
    def _merged(self, order: _Order, later: Collection[str]) -> Iterator[Served]:
        kept = self._base(order.plain, order.source)
        model, _ = attach(kept.model, order.bundle)
        layers = _tuned_layers(kept.model)
        copies = self._copies(layers.values())
        merged = model.merge_and_unload().eval()
        spare = sum(copy.nbytes for _, _, copy in copies or () if copy.device == self._device)
        yield _serve(order, "merged", merged, kept, spare_bytes=spare)
        if "requantized" in later:
            try:
                self._quantize(order, merged, layers)
            except (TrialError, OSError, RuntimeError, ValueError) as error:
                # The form `requantized` will fail by itself, or not.
                logger.warning("merged weights could not be quantized in advance: %s", error)
        if copies is None:
            self._kept = None
            return
        _restore(copies)
        self._keep_if_untouched()

    @contextmanager
    def _requantized(self, order: _Order) -> Iterator[Served]:
        if order.digest not in self._merged_layers and self._can_exchange(order):
            with self._merged(order, ("requantized",)):
                pass
        layers = self._merged_layers.pop(order.digest, None)
        if layers is None:
            with self._fresh(order, "requantized") as served:
                yield served
            return
        kept = self._base(order.spec, order.source)
        whole = {**self._other_layers[_key(order.spec, order.source)], **layers}
        own = {name for name, one in kept.model.named_modules() if isinstance(one, Linear4bit)}
        if own != set(whole):
            del kept
            with self._fresh(order, "requantized") as served:
                yield served
            return
        with exchanged(kept.model, whole, kept.base.compute_dtype):
            yield _serve(order, "requantized", kept.model, kept)
        self._keep_if_untouched()

    def _base(self, spec: BaseSpec, source: BaseSource) -> _Kept:
        key = _key(spec, source)
        if self._kept is None or self._kept.key != key:
            self.drop()
            if source.digest != self._digest:
                self._digest = source.digest
                self._merged_layers.clear()
                self._other_layers.clear()
            base = load_base(spec, self._device)
            self.loads += 1
            self._is_in_memory = True
            self._kept = _Kept(
                key=key,
                base=base,
                model_bytes=weight_bytes(base.model),
                structure=_structure(base.model, is_copy=True),
            )
        return self._kept

    def _can_exchange(self, order: _Order) -> bool:
        """Whether single layers can be quantized, and main memory has room for them."""
        weight_size = getattr(torch, order.spec.compute_dtype).itemsize
        size = order.manifest["base"]["parameters"] * weight_size
        return _is_4bit(order.spec) and self._has_room(size)

    def _copies(self, layers: Iterable[nn.Module]) -> list[_Copy] | None:
        """Copies of the layers' weights in main memory; `None` if it is short."""
        parameters = [one for layer in layers for one in layer.parameters()]
        if not self._has_room(sum(one.nbytes for one in parameters)):
            return None
        return [(one, one.data, one.data.detach().to("cpu", copy=True)) for one in parameters]

    def _keep_if_untouched(self) -> None:
        if self._kept is not None and not self._kept.is_untouched():
            logger.debug("the base is loaded anew: its structure changed")
            self._kept = None

    def _quantize(self, order: _Order, merged: Any, layers: Mapping[str, nn.Module]) -> None:
        """Quantize merged layers; leave it to `load_served` where layers are of another kind."""
        if not self._can_exchange(order):
            return
        names = quantized_names(stored_form(order.spec, order.source))
        is_usual = all(isinstance(one, (nn.Linear, Conv1D)) for one in layers.values())
        if not is_usual or not set(layers) <= names:
            return
        record = order.manifest["base"]
        others = self._other_layers.setdefault(_key(order.spec, order.source), {})
        missing = sorted(names - set(layers) - set(others))
        others |= quantize_layers(merged, missing, record)
        self._merged_layers[order.digest] = quantize_layers(merged, sorted(layers), record)


def _serve(
    order: _Order,
    form: ServingForm,
    model: Any,
    kept: _Kept,
    *,
    adapter_bytes: int = 0,
    spare_bytes: int = 0,
) -> Served:
    return Served(
        model=model,
        tokenizer=kept.base.tokenizer,
        form=form,
        manifest=order.manifest,
        model_bytes=kept.model_bytes,
        adapter_bytes=adapter_bytes,
        spare_bytes=spare_bytes,
    )


def _key(spec: BaseSpec, source: BaseSource) -> tuple[object, ...]:
    """Identity of a loaded base: its files, stored form and compute type."""
    return (
        source.digest,
        source.folder,
        source.gguf_file,
        spec.quantization,
        spec.double_quant and _is_4bit(spec),
        spec.compute_dtype,
    )


def _is_4bit(spec: BaseSpec) -> bool:
    return spec.quantization in ("nf4", "fp4")


def _structure(model: Any, *, is_copy: bool = False) -> dict[str, Any]:
    """Modules, parameters, buffers and settings of a model.

    Args:
        model: A model of transformers.
        is_copy: Copy the buffers, such as rotary frequencies, which a forward pass can change.
    """
    buffers = dict(model.named_buffers())
    return {
        "modules": dict(model.named_modules()),
        "parameters": {
            name: (id(parameter), parameter.data_ptr())
            for name, parameter in model.named_parameters()
        },
        "buffers": {name: one.clone() for name, one in buffers.items()} if is_copy else buffers,
        "tied": getattr(model.config, "tie_word_embeddings", None),
    }


def _adds_to_layers_only(bundle: Path) -> bool:
    """Whether PEFT leaves all weights of the base as they are when it loads the adapter.

    Trained biases, whole modules and tokens of an adapter replace weights of the base.
    """
    with safe_open(bundle / ADAPTER_WEIGHTS, framework="pt") as tensors:
        return all(".lora_" in name and ".bias" not in name for name in tensors.keys())  # noqa: SIM118


def _tuned_layers(model: Any) -> dict[str, nn.Module]:
    """Layers of the base that carry an adapter, by full name."""
    return {
        name: module.get_base_layer()
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def _restore(copies: Sequence[_Copy]) -> None:
    for parameter, storage, copy in copies:
        storage.copy_(copy)
        parameter.data = storage
