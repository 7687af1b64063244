"""An adapter as a server holds it: read through PEFT, on its base in one of four forms.

    trained        the base in the stored form it was trained on, adapter beside it
    unquantized    the base in its compute type, adapter beside it
    merged         the adapter's update added to the unquantized base's weights
    requantized    merged, then quantized like the base it was trained on

A base without quantization has two of them: trained and merged. One whose own files are quantized
has trained alone.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trainables.base import default_device, load_base, load_tokenizer
from trainables.bundle import read_manifest
from trainables.contract import SERVING_FORMS, ServingForm
from trainables.errors import BaseModelError, SpecError
from trainables.origin import BaseSource, locate
from trainables.spec import BaseSpec

_NOTES = ("bitsandbytes__nf4", "bitsandbytes__fp4", "weight_format")


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model that answers, in eval mode.

    Attributes:
        model: Of transformers, in PEFT where the adapter is beside it.
        tokenizer: The base's.
        manifest: Of the bundle.
        model_bytes: Bytes of the model's weights as loaded, the adapter's left out: 4-bit ones
            packed, with the constants they are scaled by; shared ones once.
        adapter_bytes: Bytes of the adapter's weights beside them; 0 once merged.
    """

    model: Any
    tokenizer: Any
    form: ServingForm
    manifest: Mapping[str, Any]
    model_bytes: int
    adapter_bytes: int

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        device: torch.device = self.model.device
        return device


def forms_of(base: Mapping[str, Any]) -> tuple[ServingForm, ...]:
    """The forms an adapter can be served in, by what its manifest records of the base."""
    if base.get("prequantized"):
        return ("trained",)
    quantization = base["quantization"]
    return ("trained", "merged") if quantization == "none" else SERVING_FORMS


def require_form(manifest: Mapping[str, Any], form: str) -> ServingForm:
    """The form, where the base of a bundle has it.

    Raises:
        SpecError: It has not.
    """
    base = manifest["base"]
    allowed = forms_of(base)
    for one in allowed:
        if one == form:
            return one
    kind = f"a base with quantization {base['quantization']}"
    if base.get("prequantized"):
        kind = f"{base['model']!r}, whose own files are quantized ({base['quantization']})"
    raise SpecError(
        f"form: got {form!r}; allowed: {', '.join(allowed)} for {kind}. Choose one of these."
    )


def load_served(
    bundle: Path, form: ServingForm, *, base_model: str | None = None, device: str | None = None
) -> Served:
    """Put a bundle and its base together in one form.

    Merging is PEFT's: the update is computed in the adapter's float32, added to the weight, and
    the sum is rounded once to the recorded compute type. Requantizing starts from those rounded
    numbers and is read back in the compute type, as a base's stored form is in training; it takes
    room for the merged model in the folder for temporary files.

    Args:
        bundle: Its folder.
        form: One of `forms_of` its base.
        base_model: Where the base lies, where that is not what the manifest says.
        device: Such as `cuda:0`; `default_device()` when not given.

    Raises:
        BundleError: The bundle's files are not what its manifest says.
        SpecError: The base has no such form.
        BaseModelError: The base cannot be found or loaded, or is not the one trained on.
    """
    manifest = read_manifest(bundle)
    require_form(manifest, form)
    place = default_device() if device is None else torch.device(device)
    spec = _base_spec(manifest, base_model)
    _recorded_source(spec, manifest)
    base = load_base(spec if form == "trained" else _unquantized(spec), place)
    model_bytes = _weight_bytes(base.model.state_dict())
    model = _with_adapter(base.model, bundle)
    adapter_bytes = _weight_bytes(get_peft_model_state_dict(model))
    tokenizer = base.tokenizer
    del base
    if form in ("merged", "requantized"):
        model, adapter_bytes = model.merge_and_unload().eval(), 0
    if form == "requantized":
        with tempfile.TemporaryDirectory(prefix="lorchestra-") as work:
            model.save_pretrained(Path(work) / "merged")
            # Two models of unquantized weights would be the peak of it all.
            del model
            gc.collect()
            model = _requantized(Path(work), manifest["base"], tokenizer, place)
        model_bytes = _weight_bytes(model.state_dict())
    return Served(
        model=model,
        tokenizer=tokenizer,
        form=form,
        manifest=manifest,
        model_bytes=model_bytes,
        adapter_bytes=adapter_bytes,
    )


def load_served_tokenizer(manifest: Mapping[str, Any], base_model: str | None = None) -> Any:
    """The tokenizer that `load_served` would give, without loading the base's weights.

    Raises:
        BaseModelError: The base cannot be found, has no tokenizer, or is not the one trained on.
    """
    return load_tokenizer(_recorded_source(_base_spec(manifest, base_model), manifest))


def _with_adapter(model: Any, bundle: Path) -> Any:
    with warnings.catch_warnings():
        # PEFT says so of each Conv1D layer of GPT-2, and then does what is right.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False but the target module")
        return PeftModel.from_pretrained(model, str(bundle)).eval()


def _base_spec(manifest: Mapping[str, Any], base_model: str | None) -> BaseSpec:
    record = manifest["base"]
    return BaseSpec(
        model=base_model or record["model"],
        revision=record["revision"],
        quantization=record["quantization"],
        double_quant=record["double_quant"],
        compute_dtype=record["compute_dtype"],
    )


def _unquantized(spec: BaseSpec) -> BaseSpec:
    return BaseSpec(
        model=spec.model,
        revision=spec.revision,
        quantization="none",
        compute_dtype=spec.compute_dtype,
    )


def _recorded_source(spec: BaseSpec, manifest: Mapping[str, Any]) -> BaseSource:
    """Where the base lies that the adapter was trained on."""
    record, source = manifest["base"], locate(spec)
    if source.digest != record["digest"]:
        raise BaseModelError(
            f"base.model: {spec.model!r} at {source.folder} has the digest {source.digest}; "
            f"allowed: {record['digest']}, the base that the adapter was trained on "
            f"({record['model']!r}, revision {record['revision']}). Say with base_model where "
            "that base lies."
        )
    return source


def _requantized(
    work: Path, record: Mapping[str, Any], tokenizer: Any, device: torch.device
) -> Any:
    """The model in `work`/merged in the stored form that a base's record describes."""
    merged, stored = work / "merged", work / "requantized"
    config = {**record["quantization_config"], "bnb_4bit_compute_dtype": "float32"}
    config.pop("quant_method", None)
    quantized = AutoModelForCausalLM.from_pretrained(
        merged,
        dtype="auto",
        device_map={"": device},
        local_files_only=True,
        quantization_config=BitsAndBytesConfig(**config),
    )
    quantized.save_pretrained(stored)
    tokenizer.save_pretrained(stored)
    del quantized
    gc.collect()
    spec = BaseSpec(
        model=str(stored),
        quantization=record["quantization"],
        compute_dtype=record["compute_dtype"],
    )
    return load_base(spec, device).model


def _weight_bytes(tensors: Mapping[str, Any]) -> int:
    sizes = {
        tensor.data_ptr(): tensor.nbytes
        for name, tensor in tensors.items()
        # Beside its weights a quantized layer keeps notes on their format.
        if isinstance(tensor, torch.Tensor) and not name.endswith(_NOTES)
    }
    return sum(sizes.values())
