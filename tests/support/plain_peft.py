"""Trials as anyone would train them: `peft.get_peft_model` and a public optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bitsandbytes
import peft
import torch
from peft.optimizers import create_loraplus_optimizer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import transpose
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.pytorch_utils import Conv1D

from trainables.base.layers import linear_layers
from trainables.base.loading import LoadedBase, load_base
from trainables.engine import Engine
from trainables.packing.attention import causal_attention, has_slow_gradient
from trainables.packing.kernels import dropout_seed, layer_shape
from trainables.packing.lora import initial_weights
from trainables.rows.data import collate, load_splits
from trainables.rows.epochs import batch_rows
from trainables.spec import OptimSpec, TrialSpec


def attention_with_our_gradient(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention, with the gradient in float32 where ours is."""
    if attention_mask is None and has_slow_gradient(query, value):
        return causal_attention(query, key, value, options.get("scaling")), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


AttentionInterface.register("our_gradient", attention_with_our_gradient)
AttentionMaskInterface.register("our_gradient", sdpa_mask)


def peft_model(spec: TrialSpec, base: LoadedBase, key: Sequence[int]) -> Any:
    """The base with a fresh adapter that begins as ours does.

    Args:
        spec: The trial.
        base: As loaded.
        key: (seed, step, micro-step) that dropout masks are drawn for; changed by the caller.
    """
    if base.model.config._attn_implementation == "sdpa":
        base.model.set_attn_implementation("our_gradient")
    layers = linear_layers(base.model)
    targets = spec.lora.targets
    groups = {"attention": "self_attn", "mlp": "mlp", "all-linear": ""}
    if isinstance(targets, str):
        targets = [name for name in layers if groups[targets] in name]
    model = peft.get_peft_model(
        base.model,
        peft.LoraConfig(
            r=spec.lora.rank,
            lora_alpha=spec.lora.alpha,
            target_modules=list(targets),
            lora_dropout=spec.lora.dropout,
            use_rslora=spec.lora.rslora,
            use_dora=spec.lora.dora,
            fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
        ),
    ).train()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and "lora_dropout" not in name:
            module.eval()  # a frozen base has no use for its own dropout
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            _start_as_ours(module, name, spec)
            module.lora_dropout.default.register_forward_pre_hook(
                lambda *_, name=name: torch.manual_seed(dropout_seed(name, tuple(key))) and None
            )
    return model


def _start_as_ours(module: Any, name: str, spec: TrialSpec) -> None:
    layer = module.get_base_layer()
    a, b = (
        weights.to(layer.weight.device)
        for weights in initial_weights(spec.lora, name, *layer_shape(layer), spec.seed)
    )
    module.lora_A.default.weight.data, module.lora_B.default.weight.data = a, b
    if spec.lora.dora:
        # PEFT computes it in the base's type: in bfloat16 it does not start as the base.
        weight = transpose(dequantize_module_weight(layer).float(), module.fan_in_fan_out)
        norms = torch.linalg.norm(weight + module.scaling["default"] * (b @ a), dim=1)
        module.lora_magnitude_vector.default.weight.data = norms


OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adamw_8bit": bitsandbytes.optim.AdamW8bit,
    "paged_adamw": bitsandbytes.optim.PagedAdamW,
    "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit,
    "lion": bitsandbytes.optim.Lion,
    "lion_8bit": bitsandbytes.optim.Lion8bit,
    "paged_lion_8bit": bitsandbytes.optim.PagedLion8bit,
}


def train_with_peft(spec: TrialSpec, steps: int) -> dict[str, torch.Tensor]:
    """The same trial with `peft.get_peft_model`, the named optimizer, and nothing of ours."""
    base = load_base(spec.base)
    key = [0, 0, 0]
    model = peft_model(spec, base, key)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optim = spec.optim
    optimizer = create_loraplus_optimizer(
        model,
        OPTIMIZERS[optim.optimizer],
        betas=(optim.beta1, optim.beta2),
        lr=optim.learning_rate,
        loraplus_lr_ratio=optim.loraplus_ratio,
        loraplus_weight_decay=optim.weight_decay,
    )
    ratios = [group["lr"] / optim.learning_rate for group in optimizer.param_groups]
    rows = load_splits(spec.data, base.tokenizer).train.rows
    lengths = tuple(len(row.input_ids) for row in rows)
    micro = optim.micro_batch_size or optim.batch_size
    for step in range(steps):
        chosen = [rows[i] for i in batch_rows(lengths, optim.batch_size, spec.seed, step)]
        answers = sum(int(row.is_answer.sum()) for row in chosen)
        for start in range(0, len(chosen), micro):
            key[:] = spec.seed, step, start // micro
            ids, targets = map(torch.from_numpy, collate(chosen[start : start + micro], 0))
            logits = model(input_ids=ids.to(base.device), use_cache=False).logits
            loss = F.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(),
                targets[:, 1:].flatten().to(base.device),
                ignore_index=-100,
                reduction="sum",
            )
            (loss / answers).backward()
        torch.nn.utils.clip_grad_norm_(parameters, optim.max_grad_norm)
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = written_out_learning_rate(optim, step) * ratio
        optimizer.step()
        optimizer.zero_grad()
    return {
        name.removeprefix("base_model.model.")
        .replace(".lora_A.default.weight", "/a")
        .replace(".lora_B.default.weight", "/b")
        .replace(".lora_magnitude_vector.default.weight", "/magnitude"): p.detach().cpu()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def written_out_learning_rate(optim: OptimSpec, step: int) -> float:
    if step < optim.warmup_steps:
        return optim.learning_rate * step / optim.warmup_steps
    done = torch.tensor(
        (step - optim.warmup_steps) / (optim.steps - optim.warmup_steps), dtype=torch.float64
    )
    factor = {
        "constant": torch.ones_like(done),
        "linear": 1 - done,
        "cosine": 0.5 * (1 + torch.cos(torch.pi * done)),
    }[optim.schedule]
    return optim.learning_rate * factor.item()


def adapter_of(engine: Engine, seat: str) -> dict[str, torch.Tensor]:
    tensors = engine.snapshot(seat).tensors
    return {n: t for n, t in tensors.items() if n.endswith(("/a", "/b", "/magnitude"))}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)
