"""Loading of an adapter and its base through PEFT, in one of four serving forms.

    trained        the base in the stored form it was trained on, adapter beside it
    unquantized    the base in its compute type, adapter beside it
    merged         the adapter's update added to the unquantized base's weights
    requantized    merged, then quantized like the base it was trained on

A base without quantization has only the forms trained and merged; a base whose own files are
quantized has only trained.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict

from trainables.base.loading import default_device, load_base, load_tokenizer
from trainables.base.origin import BaseSource, locate
from trainables.contract import SAME_UNQUANTIZED, SERVING_FORMS, TRAINED, ServingForm
from trainables.errors import BaseModelError, SpecError
from trainables.evaluation.requantized import requantize
from trainables.spec import BaseSpec
from trainables.training.bundle import read_manifest

_NOTES = ("bitsandbytes__nf4", "bitsandbytes__fp4", "weight_format")


@dataclass(frozen=True, kw_only=True)
class Served:
    """A loaded model in eval mode, ready to answer.

    Attributes:
        model: A model of transformers, wrapped by PEFT unless the adapter is merged.
        tokenizer: Tokenizer of the base.
        manifest: Manifest of the bundle.
        model_bytes: Bytes of the model's weights as loaded, without the adapter's: packed 4-bit
            weights with their scaling constants; shared weights count once.
        adapter_bytes: Bytes of the separate adapter weights; 0 once merged.
        spare_bytes: Bytes beside the model that serving it does not need: copies of weights from
            which a kept base is restored.
    """

    model: Any
    tokenizer: Any
    form: ServingForm
    manifest: Mapping[str, Any]
    model_bytes: int
    adapter_bytes: int
    spare_bytes: int = 0

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        device: torch.device = self.model.device
        return device


def forms_of(base: Mapping[str, Any]) -> tuple[ServingForm, ...]:
    """Serving forms of adapters on a base with this manifest record."""
    if base.get("prequantized"):
        return (TRAINED,)
    is_other = base["quantization"] == "none"
    return tuple(form for form in SERVING_FORMS if not (is_other and form in SAME_UNQUANTIZED))


def require_form(manifest: Mapping[str, Any], form: str) -> ServingForm:
    """The validated serving form of a bundle's base.

    Raises:
        SpecError: The base does not have the form.
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
    """Load a bundle and its base in a serving form.

    PEFT merges: the update is computed in the adapter's float32, added to the weight, and the sum
    is rounded once to the recorded compute type. Requantizing starts from the rounded weights; the
    result is loaded in the compute type, as a base's stored form is in training. The temporary
    folder needs room for the merged model.

    Args:
        bundle: Folder of the bundle.
        form: One of `forms_of` the manifest's base.
        base_model: Location of the base, where it differs from the manifest's.
        device: Such as `cuda:0`; `default_device()` when not given.

    Raises:
        BundleError: A file of the bundle differs from the manifest.
        SpecError: The base does not have the form.
        BaseModelError: The base cannot be found or loaded, or is not the training base.
    """
    manifest = read_manifest(bundle)
    require_form(manifest, form)
    place = default_device() if device is None else torch.device(device)
    spec = recorded_base(manifest, base_model)
    recorded_source(spec, manifest)
    base = load_base(spec if form == "trained" else replace(spec, quantization="none"), place)
    model_bytes = weight_bytes(base.model)
    model, adapter_bytes = attach(base.model, bundle)
    tokenizer = base.tokenizer
    del base
    if form in ("merged", "requantized"):
        model, adapter_bytes = model.merge_and_unload().eval(), 0
    if form == "requantized":
        with tempfile.TemporaryDirectory(prefix="lorchestra-") as work:
            plain, stored = Path(work) / "merged", Path(work) / "requantized"
            model.save_pretrained(plain)
            # Free it first: two unquantized models would set the peak of memory use.
            del model
            gc.collect()
            requantize(plain, stored, manifest["base"], tokenizer, place)
            form_of_it = BaseSpec(
                model=str(stored), quantization=spec.quantization, compute_dtype=spec.compute_dtype
            )
            model = load_base(form_of_it, place).model
        model_bytes = weight_bytes(model)
    return Served(
        model=model,
        tokenizer=tokenizer,
        form=form,
        manifest=manifest,
        model_bytes=model_bytes,
        adapter_bytes=adapter_bytes,
    )


def attach(model: Any, bundle: Path) -> tuple[PeftModel, int]:
    """The base with the adapter of a bundle beside it, in eval mode, and the adapter's bytes."""
    with warnings.catch_warnings():
        # PEFT warns about each Conv1D layer of GPT-2 and then corrects the setting itself.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False but the target module")
        attached = PeftModel.from_pretrained(model, str(bundle)).eval()
    return attached, _tensor_bytes(get_peft_model_state_dict(attached))


def load_served_tokenizer(manifest: Mapping[str, Any], base_model: str | None = None) -> Any:
    """The tokenizer that `load_served` would load, without the base's weights.

    Raises:
        BaseModelError: The base cannot be found, has no tokenizer, or is not the training base.
    """
    return load_tokenizer(recorded_source(recorded_base(manifest, base_model), manifest))


def recorded_base(manifest: Mapping[str, Any], base_model: str | None) -> BaseSpec:
    """The base of a manifest in its stored form, at `base_model` if it lies elsewhere."""
    record = manifest["base"]
    return BaseSpec(
        model=base_model or record["model"],
        revision=record["revision"],
        quantization=record["quantization"],
        double_quant=record["double_quant"],
        compute_dtype=record["compute_dtype"],
    )


def recorded_source(spec: BaseSpec, manifest: Mapping[str, Any]) -> BaseSource:
    """Location of the base that the adapter was trained on.

    Raises:
        BaseModelError: The base cannot be found, or is not the training base.
    """
    record, source = manifest["base"], locate(spec)
    if source.digest != record["digest"]:
        raise BaseModelError(
            f"base.model: {spec.model!r} at {source.folder} has the digest {source.digest}; "
            f"allowed: {record['digest']}, the base that the adapter was trained on "
            f"({record['model']!r}, revision {record['revision']}). Give the location of that "
            "base as base_model."
        )
    return source


def weight_bytes(model: Any) -> int:
    """Bytes of a model's weights: packed 4-bit weights with their scaling constants.

    Shared weights count once.
    """
    return _tensor_bytes(model.state_dict())


def _tensor_bytes(tensors: Mapping[str, Any]) -> int:
    sizes = {
        tensor.data_ptr(): tensor.nbytes
        for name, tensor in tensors.items()
        # The state of a quantized layer holds notes on its format beside the weights.
        if isinstance(tensor, torch.Tensor) and not name.endswith(_NOTES)
    }
    return sum(sizes.values())
